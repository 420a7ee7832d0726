"""The demonstration of alerts (`make alerts`) is whole, and runs. One fault of it is tried here."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from support.places import BINARY, REPOSITORY, environment
from support.prometheus import RULES

DRILL = REPOSITORY / "tests" / "drill"
REPORT = REPOSITORY / "docs" / "alerts-demonstration.md"
# All but the one for which there must be no gateway to break; the rules' own tests have that.
ALERTS = set(re.findall(r"alert: (\S+)", RULES.read_text())) - {"LaybyGone"}


@pytest.fixture
def hastened(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    monkeypatch.syspath_prepend(str(DRILL))
    from hasten import hastened

    return hastened


def test_a_fault_has_its_alert_and_its_panel() -> None:
    done = subprocess.run(
        [sys.executable, DRILL / "alerts.py", "CrashLoop"],
        env=environment(LAYBY_BINARY=str(BINARY)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| `LaybyWorkerCrashLoop` |" in done.stdout


def test_every_alert_has_its_fault() -> None:
    faults = (DRILL / "alarms.py").read_text()
    assert set(re.findall(r'^        "(Layby\w+)",$', faults, re.MULTILINE)) == ALERTS


def test_the_report_has_every_alert_and_says_that_each_fired() -> None:
    rows = re.findall(r"^\| [^|]+ \| `(\w+)` \| ([^|]+) \|", REPORT.read_text(), re.MULTILINE)
    assert {alert for alert, after in rows if re.fullmatch(r"\d+ s", after)} == ALERTS


def test_hastening_changes_windows_and_nothing_else(hastened: Callable[[str], str]) -> None:
    assert hastened("expr: rate(a:ratio5m[5m]) > 10\n for: 15m\n") == (
        "expr: rate(a:ratio5m[5s]) > 10\n for: 15s\n"
    )
    rules = RULES.read_text()
    faster = hastened(rules)
    assert not re.search(r"\[\d+[mh]\]|for: \d+[mh]", faster)
    # Back again: an hour has become sixty seconds.
    assert len(re.findall(r"\[60s\]", faster)) == rules.count("[1h]")
    assert re.sub(r"\d+[smh]\b", "", faster) == re.sub(r"\d+[smh]\b", "", rules)
