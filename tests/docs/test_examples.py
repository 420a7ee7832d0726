"""Examples in the documents work as they stand."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import subprocess
import sys
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import layby
import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import call_command
from django.http import HttpRequest
from django.test import Client, RequestFactory, override_settings
from django.urls import path as route
from documents import BINARY, REPOSITORY, Block, blocks, environment, written
from layby._drive import drive
from layby.testing import Fetches

GUIDE = REPOSITORY / "docs" / "python.md"
MIGRATING = REPOSITORY / "docs" / "migrating.md"
PACKAGE = REPOSITORY / "python" / "README.md"
README = REPOSITORY / "README.md"
# How many views each shows; a document that lost its code would pass in silence.
VIEWS = {
    GUIDE: 12,
    MIGRATING: 7,
    PACKAGE: 1,
    README: 1,
    REPOSITORY / "docs" / "how-to" / "django.md": 1,
    # Its view takes no request, as Flask's do not.
    REPOSITORY / "docs" / "how-to" / "flask.md": 0,
    REPOSITORY / "docs" / "explanation" / "parking.md": 1,
}
# Followed step by step in test_tutorial.py.
TUTORIAL = REPOSITORY / "docs" / "tutorial.md"

CONFIGURATIONS = [block for path in written() for block in blocks(path, "toml")]
# What each step of the tutorial needs is made by the one before.
COMMANDS = [path for path in written() if path != TUTORIAL]


def checked(folder: Path, configuration: str) -> tuple[int, str]:
    """Status and complaints of `layby check`. Fragments may leave the application out."""
    file = folder / "layby.toml"
    file.write_text(configuration)
    command = [BINARY, "check", "mysite.wsgi:application", "--config", file]
    check = subprocess.run(command, env=environment(), capture_output=True, text=True)
    return check.returncode, check.stderr


@pytest.mark.parametrize("block", CONFIGURATIONS, ids=str)
def test_a_configuration_passes_the_check(block: Block, tmp_path: Path) -> None:
    assert checked(tmp_path, block.text) == (0, "")


def test_the_check_of_configurations_can_fail(tmp_path: Path) -> None:
    status, complaints = checked(tmp_path, "lisen = 1\n")
    assert status == 1
    assert "lisen" in complaints


def compiled(block: Block, origin: str) -> CodeType:
    text = re.sub(r"https://([a-z{}]+)\.example", rf"{origin}/\1", block.text)
    # Padded, so that a traceback names the document's own line.
    padded = "\n" * (block.line - 1) + text
    return compile(padded, str(block.path), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def run(coroutine: Any) -> Any:
    """To its end, without an event loop. Outside layby nothing is ever waited for."""
    return drive(coroutine)


def views(names: dict[str, Any]) -> list[Any]:
    """The functions among `names` that take a request."""
    functions = [value for value in names.values() if inspect.isfunction(value)]
    return [view for view in functions if list(inspect.signature(view).parameters) == ["request"]]


def request_for(view: Any) -> HttpRequest:
    if view.__name__ == "photo":
        headers = {"authorization": "Bearer secret"}
        file = SimpleUploadedFile("cat.jpg", b"a cat")
        return RequestFactory().post("/", {"photo": file}, headers=headers)
    return RequestFactory().get("/", {"zip": "80331"})


def ask(view: Any) -> None:
    response = view(request_for(view))
    if inspect.iscoroutine(response):
        response = run(response)
    assert response.status_code == 200
    b"".join(response)
    response.close()


class Names(dict[str, Any]):
    """What blocks leave behind; `views` also has those that a later block has replaced."""

    def __init__(self) -> None:
        super().__init__(__name__="example")
        self.views: list[Any] = []


def executed(blocks: Iterable[Block], origin: str) -> Names:
    """The names that the blocks leave, run one after the other."""
    names = Names()
    for block in blocks:
        outcome = eval(compiled(block, origin), names)
        if inspect.iscoroutine(outcome):
            run(outcome)
        names.views += [view for view in views(names) if view not in names.views]
    return names


@pytest.fixture
def unpatched() -> Iterator[None]:
    """Documents may say layby.patch()."""
    yield
    layby.unpatch()


@pytest.mark.usefixtures("unpatched")
@pytest.mark.parametrize("path", VIEWS, ids=lambda path: path.name)
def test_every_block_of_code_runs_and_every_view_answers(path: Path, origin: str) -> None:
    # The first block of the README is a picture of the idea, with dots in it.
    found = [block for block in blocks(path, "python") if "(...)" not in block.text]
    names = executed(found, origin)
    assert len(names.views) == VIEWS[path]
    for view in names.views:
        ask(view)


@pytest.mark.usefixtures("unpatched")
def test_what_the_guide_builds_around_its_views_works(
    origin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = executed(blocks(GUIDE, "python"), origin)
    ask(names["chat"])
    assert names["usage"] == [(200, "complete", 49)]
    ask(names["Quote"].as_view())
    assert names["application"].test_client().get("/price").json == {"price": "4.90"}
    for call in ("client", "session"):
        assert names[call].get(f"{origin}/rates").json()["left"] == 3

    # Its tests, as pytest runs them: with a client, and the table of answers.
    urls = types.ModuleType("urls_of_the_guide")
    urls.urlpatterns = [route(view.__name__, view) for view in views(names)]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, urls.__name__, urls)
    tests = [value for name, value in names.items() if name.startswith("test_")]
    assert tests
    for test in tests:
        with Fetches() as fetches, override_settings(ROOT_URLCONF=urls.__name__):
            test(client=Client(), layby_fetches=fetches)


def shell_lines() -> list[tuple[str, list[str]]]:
    """Every command in the documents, without the variables before it."""
    lines = []
    for path in COMMANDS:
        for block in blocks(path, "sh"):
            for number, line in enumerate(block.text.splitlines()):
                words = shlex.split(line, comments=True)
                while words and re.match(r"[A-Z_]+=", words[0]):
                    words.pop(0)
                lines.append((f"{path.relative_to(REPOSITORY)}:{block.line + number}", words))
    return lines


def commands(*start: str) -> list[Any]:
    """What comes after `start` in each line that begins with it."""
    found = [
        pytest.param(words[len(start) :], id=where)
        for where, words in shell_lines()
        if words[: len(start)] == list(start)
    ]
    assert found, start
    return found


@pytest.mark.parametrize("words", [*commands("layby", "run"), *commands("layby", "serve")])
def test_a_command_line_of_the_gateway_is_right_usage(words: list[str], tmp_path: Path) -> None:
    # `check` takes what both of them take, but for what is no setting.
    checks = [BINARY, "check", *(word for word in words if word != "--reload")]
    check = subprocess.run(
        checks, env=environment(), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (check.returncode, check.stderr) == (0, "")


@pytest.mark.parametrize("words", commands("python", "-m", "layby"))
def test_a_command_line_of_a_worker_is_right_usage(words: list[str]) -> None:
    # It knows its usage before it imports anything: then the application is missing.
    worker = [sys.executable, "-m", "layby", *words]
    ended = subprocess.run(worker, env=environment(), capture_output=True, text=True, check=False)
    assert ended.returncode == 3
    assert "No module named 'mysite'" in ended.stderr


@pytest.mark.parametrize("words", commands("python", "manage.py"))
def test_a_command_of_manage_py_works(words: list[str]) -> None:
    call_command(*words)


@pytest.mark.parametrize("words", commands("gunicorn"))
def test_gunicorn_takes_the_configuration(words: list[str], tmp_path: Path) -> None:
    (configuration,) = [block for block in blocks(GUIDE, "python") if "worker_class" in block.text]
    (tmp_path / "gunicorn.conf.py").write_text(configuration.text)
    (tmp_path / "mysite").mkdir()
    (tmp_path / "mysite" / "wsgi.py").write_text("def application(environ, start_response): ...")
    checked = subprocess.run(
        [sys.executable, "-m", "gunicorn", "--print-config", *words],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    assert re.search(r"^worker_class +.*layby", checked.stdout, re.M)
    # Behind a link it listens nowhere, unless it is told to.
    listens = "--bind" in words
    assert listens or re.search(r"^bind +.*= \[\]$", checked.stdout, re.M)
