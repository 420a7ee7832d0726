#!/bin/sh
# Runs the Django tests with every supported Django, and asgiref from the oldest to the
# newest, in throw-away environments. Arguments go to pytest.
#
#     tests/django/matrix.sh -x
#
# A combination whose interpreter is missing is skipped, and said to be.
set -eu

python_dir=$(cd "$(dirname "$0")/../.." && pwd)
envs=$(mktemp -d)
trap 'rm -rf "$envs"' EXIT

combinations='
4.2 3.6.0 3.11
4.2 3.8.1 3.11
5.0 3.7.2 3.11
5.1 3.12.0 3.12
5.2 3.11.0 3.11
5.2 3.13.0 3.13
6.0 3.13.0 3.12
6.0 3.13.0 3.13
'

interpreter() {
    for candidate in "python$1" "$HOME"/.pyenv/versions/"$1".*/bin/python; do
        if "$candidate" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" 2>/dev/null
        then
            echo "$candidate"
            return
        fi
    done
}

failed=''
while read -r django asgiref python; do
    [ -n "$django" ] || continue
    name="Django $django, asgiref $asgiref, Python $python"
    found=$(interpreter "$python")
    if [ -z "$found" ]; then
        echo "== $name: skipped, there is no Python $python"
        continue
    fi
    echo "== $name"
    env="$envs/$django-$asgiref-$python"
    "$found" -m venv "$env"
    "$env/bin/pip" install -q --disable-pip-version-check "Django==$django.*" \
        "asgiref==$asgiref" "psycopg[binary]" gunicorn "pytest>=8"
    "$env/bin/pip" install -q --disable-pip-version-check --no-deps -e "$python_dir"
    (cd "$python_dir" && "$env/bin/python" -m pytest tests/django "$@" </dev/null) ||
        failed="$failed
    $name"
    rm -rf "$env"
done <<END
$combinations
END

if [ -n "$failed" ]; then
    echo "failed:$failed"
    exit 1
fi
