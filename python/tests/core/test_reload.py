"""Watching files for `layby run --reload`."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from fakegateway import Link
from test_worker import Run, run

from layby._reload import Watch

__all__ = ["run"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    for name in ("app.py", "templates/page.html", "notes.md", ".git/hook.py", "env/lib/old.py"):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("first\n")
    (folder / "env" / "pyvenv.cfg").touch()
    return folder


def touch(file: Path, text: str = "changed\n") -> None:
    before = file.stat().st_mtime_ns
    file.write_text(text)
    # The clock of a file system may stand still between two writes.
    os.utime(file, ns=(before + 1_000_000, before + 1_000_000))


def test_nothing_changed_is_nothing_told(project: Path) -> None:
    watch = Watch(str(project))
    assert watch.settled() == []


def test_changes_are_told_together_when_they_have_settled(project: Path) -> None:
    watch = Watch(str(project))
    touch(project / "app.py")
    assert watch.settled() == []
    touch(project / "templates" / "page.html")
    assert watch.settled() == []
    assert watch.settled() == ["app.py", "templates/page.html"]
    assert watch.settled() == []


@pytest.mark.parametrize("name", ["notes.md", ".git/hook.py", "env/lib/old.py"])
def test_other_files_are_not_looked_at(project: Path, name: str) -> None:
    watch = Watch(str(project))
    touch(project / name)
    assert watch.settled() == watch.settled() == []


def test_a_loaded_module_is_watched_wherever_it_is(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "elsewhere.py"
    file.write_text("first\n")
    module = ModuleType("elsewhere")
    module.__file__ = str(file)
    monkeypatch.setitem(sys.modules, "elsewhere", module)
    watch = Watch(str(project))
    touch(file)
    assert watch.settled() == []
    assert watch.settled() == ["../elsewhere.py"]


def test_a_file_that_is_replaced_has_changed_and_one_that_is_gone_has_not(project: Path) -> None:
    watch = Watch(str(project))
    file = project / "app.py"
    before = file.stat().st_mtime_ns
    file.unlink()
    assert watch.settled() == watch.settled() == []
    file.write_text("other\n")
    os.utime(file, ns=(before + 1_000_000, before + 1_000_000))
    assert watch.settled() == []
    assert watch.settled() == ["app.py"]


def test_a_new_file_is_watched_from_then_on(project: Path) -> None:
    watch = Watch(str(project))
    (project / "new.py").write_text("def(\n")
    assert watch.settled() == watch.settled() == []
    touch(project / "new.py")
    assert watch.settled() == []
    assert watch.settled() == ["new.py"]


@pytest.fixture
def hangups() -> Iterator[list[int]]:
    """The SIGHUPs that this process, in the gateway's part, has got."""
    seen: list[int] = []
    before = signal.signal(signal.SIGHUP, lambda number, _: seen.append(number))
    yield seen
    signal.signal(signal.SIGHUP, before)


def test_a_worker_that_is_asked_to_tells_its_gateway(
    link: Link, run: Run, project: Path, hangups: list[int]
) -> None:
    app = project / "app.py"
    app.write_text(
        "import os\n"
        "def application(environ, start_response):\n"
        "    start_response('200 OK', [])\n"
        "    return [os.environ.get('LAYBY_RELOAD', 'not for the application').encode()]\n"
    )
    worker = run("app", directory=project, LAYBY_RELOAD=str(os.getpid()), LAYBY_TOKEN="t")
    control, _ = link.welcome()
    slot = link.grant(control, 0)
    slot.request(1)
    assert slot.answer()[1] == b"not for the application"
    touch(app, "def broken(:\n")
    deadline = time.monotonic() + 20
    while not hangups and time.monotonic() < deadline:
        time.sleep(0.02)
    assert hangups == [signal.SIGHUP]
    # It serves on, and goes on watching.
    slot.request(2)
    slot.answer()
    touch(app, "def application(): ...\n")
    while len(hangups) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(hangups) == 2
    control.close()
    _, errors = worker.end()
    assert "reloading: app.py changed" in errors
