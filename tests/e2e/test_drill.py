"""The fault drill (`make drill`) runs, and would notice."""

from __future__ import annotations

import subprocess
import sys

from support.places import BINARY, REPOSITORY, environment

DRILL = REPOSITORY / "tests" / "drill"


def test_two_faults_of_the_drill() -> None:
    done = subprocess.run(
        [sys.executable, DRILL / "run.py", "SIGKILL", "clients leave"],
        env=environment(LAYBY_BINARY=str(BINARY)),
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert "3 rounds" in done.stdout
    assert ", 0 violations" in done.stdout


def test_a_request_that_was_run_twice_is_a_violation() -> None:
    """As is one that was lost, or whose client was told what is not true."""
    judged = subprocess.run(
        [sys.executable, "-c", JUDGED],
        env=environment(
            PYTHONPATH=f"{DRILL}:{REPOSITORY / 'tests/e2e'}:{REPOSITORY / 'tests/e2e/apps'}"
        ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert judged.returncode == 0, judged.stderr
    assert judged.stdout.split("\n")[:-1] == [
        "",
        "done more than once: ['started', 'finished', 'started']",
        "charged 2 times after ['started', 'finished']",
        "told that it is done, but []",
        "the fault excuses no such status",
        "the connection was cut",
    ]


JUDGED = """
from crowd import Attempt, Kind
from support.client import Answer
from support.shop import Traces
from verdict import Books, Excuses, complaint

def said(events=("started", "finished"), charges=1, status=200, gone=None, excuses=Excuses()):
    body = b'{"reference": "a"}'
    answer = Answer(status, [], body, 0.1) if gone is None else None
    attempt = Attempt("a", Kind.CHECKOUT, answer=answer, gone=gone)
    traces = Traces(list(events), ["paid"] if events else [], {1} if events else set())
    books = Books({"a": traces} if events else {}, {"a": list(events)}, {"a": charges})
    print(complaint(attempt, books, excuses, killed=set()).partition(": r")[0])

said()
said(events=("started", "finished", "started"))
said(charges=2)
said(events=(), charges=0)
said(status=502)
said(gone="reset")
"""
