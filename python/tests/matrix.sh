#!/bin/sh
# Runs the package's tests with every supported Python, Django, asgiref (from the oldest to the
# newest) and Flask, in throw-away environments. Arguments go to pytest; ONLY picks lines of the
# table below:
#
#     ONLY='Django 6.0' python/tests/matrix.sh -x
#
# A line whose interpreter is missing is skipped. What ran and what did not is said at the end.
set -eu

python_dir=$(cd "$(dirname "$0")/.." && pwd)
envs=$(mktemp -d)
trap 'rm -rf "$envs"' EXIT

# Framework, its version, asgiref for Django, Python.
table='
Django 4.2 3.6.0 3.11
Django 4.2 3.8.1 3.12
Django 5.0 3.7.2 3.11
Django 5.1 3.12.0 3.12
Django 5.2 3.11.0 3.11
Django 5.2 3.13.0 3.13
Django 5.2 3.13.0 3.14
Django 6.0 3.13.0 3.12
Django 6.0 3.13.0 3.13
Django 6.0 3.13.0 3.14
Flask 3.0 - 3.11
Flask 3.1 - 3.12
Flask 3.1 - 3.13
Flask 3.1 - 3.14
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

# One environment per Python; each line puts its own versions into it.
environment() {
    env="$envs/$1"
    [ -d "$env" ] && return
    "$2" -m venv "$env"
    "$env/bin/pip" install -q --disable-pip-version-check gunicorn -e "$python_dir[test,sdks]"
}

report=''
failed=0
note() {
    report="$report
    $1"
}

# folders FOLDER… -- ARGUMENTS…: each in a process of its own, as they patch it in ways of their own.
folders() {
    outcome=passed
    for folder in $1; do
        (cd "$python_dir" && "$env/bin/python" -m pytest "tests/$folder" $2 </dev/null) ||
            outcome="FAILED in $folder"
    done
}

while read -r framework version asgiref python; do
    [ -n "$framework" ] || continue
    name="$framework $version, Python $python"
    [ "$asgiref" = - ] || name="$framework $version, asgiref $asgiref, Python $python"
    case "$name" in *"${ONLY:-}"*) ;; *) continue ;; esac
    found=$(interpreter "$python")
    if [ -z "$found" ]; then
        note "$name: skipped, there is no Python $python"
        continue
    fi
    echo "== $name"
    environment "$python" "$found"
    pip="$env/bin/pip install -q --disable-pip-version-check"
    case "$framework" in
    Django)
        $pip "Django==$version.*" "asgiref==$asgiref"
        folders 'django greenlet' "$*"
        ;;
    Flask)
        # With the applications that have no framework at all.
        $pip "flask==$version.*"
        folders 'core transports' "$*"
        ;;
    esac
    note "$name: $outcome"
    [ "$outcome" = passed ] || failed=1
done <<END_OF_TABLE
$table
END_OF_TABLE

echo "$report"
exit $failed
