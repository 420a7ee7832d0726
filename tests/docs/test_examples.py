"""Examples in the documents work as they stand."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.http import HttpRequest
from django.test import RequestFactory
from documents import BINARY, REPOSITORY, Block, blocks, environment, written

PYTHON = REPOSITORY / "docs" / "python.md"
README = REPOSITORY / "README.md"
CONFIGURATIONS = [block for path in written() for block in blocks(path, "toml")]


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
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits for something that is not layby's")


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


def test_the_python_guide_runs_from_its_first_line_to_its_last(origin: str) -> None:
    names: dict[str, Any] = {}
    seen = 0
    for block in blocks(PYTHON, "python"):
        outcome = eval(compiled(block, origin), names)
        if inspect.iscoroutine(outcome):
            run(outcome)
        seen += 1
    assert seen > 5
    assert {view.__name__ for view in views(names)} == {"quote", "stock", "report", "photo", "chat"}
    for view in views(names):
        ask(view)
    assert names["usage"] == [(200, "complete", 49)]


def test_the_view_in_the_readme_works(origin: str) -> None:
    names: dict[str, Any] = {}
    for block in blocks(README, "python"):
        if "import layby" in block.text:
            eval(compiled(block, origin), names)
    (view,) = views(names)
    ask(view)
