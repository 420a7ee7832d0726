"""Writes rules.yaml: the rules of dashboards/rules.yml as the Prometheus operator takes them.

python rules.py           writes it
python rules.py --check   exit status 1 if it is not up to date
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

HERE = Path(__file__).resolve().parent
RULES = HERE.parents[2] / "dashboards" / "rules.yml"
MANIFEST = HERE / "rules.yaml"

HEAD = """\
# Written from dashboards/rules.yml by rules.py.

apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: layby
  labels: {app.kubernetes.io/name: shop}
spec:
"""


def manifest() -> str:
    rules = RULES.read_text()
    groups = rules[rules.index("\ngroups:") + 1 :]
    return HEAD + textwrap.indent(groups, "  ")


if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        sys.exit(MANIFEST.read_text() != manifest())
    MANIFEST.write_text(manifest())
