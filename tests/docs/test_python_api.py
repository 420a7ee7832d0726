"""The reference of the Python package is what its docstrings say now, and they say something."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
import textwrap
from types import ModuleType

import pytest
from documents import REPOSITORY

SCRIPT = REPOSITORY / "scripts" / "python_api.py"


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("python_api", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


api = script()


def test_it_is_fresh() -> None:
    check = subprocess.run([sys.executable, SCRIPT, "--check"], check=False)
    assert check.returncode == 0, "docs/python-api.md is old; run scripts/python_api.py"


def sections() -> list[tuple[str, str]]:
    """Every heading and what is below it."""
    parts = api.PAGE.read_text().split("\n### ")[1:]
    return [(heading.strip("`"), text) for heading, _, text in (p.partition("\n") for p in parts)]


def test_everything_public_is_said_something_of() -> None:
    silent = [
        heading
        for heading, text in sections()
        # Beside signatures and bases.
        if not [
            line
            for line in text.replace("```text", "").split("```")[-1].splitlines()
            if line.strip() and not line.startswith("Base: ")
        ]
    ]
    assert silent == []


def test_everything_public_is_in_it() -> None:
    headings = {heading for heading, _ in sections()}
    modules = [importlib.import_module(name) for name in api.MODULES]
    names = {f"{module.__name__}.{name}" for module in modules for name in module.__all__}
    assert names - headings == set()
    # A module that is not private has a place here.
    files = (api.SOURCES / "layby").iterdir()
    public = {f"layby.{file.stem}" for file in files if not file.name.startswith(("_", "py.typed"))}
    assert public - set(api.MODULES) == set()


def examples() -> list[tuple[str, str]]:
    """The indented code of the page."""
    found, lines, heading = [], [], ""
    text = re.sub(r"^```.*?^```$", "", api.PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    for line in [*text.splitlines(), ""]:
        if line.startswith("#"):
            heading = line
        if line.startswith("    ") or (lines and not line):
            lines.append(line)
        elif lines:
            found.append((heading, textwrap.dedent("\n".join(lines))))
            lines = []
    return [(heading, text) for heading, text in found if "\n- " not in text and text.strip()]


@pytest.mark.parametrize(("heading", "text"), examples(), ids=lambda text: text[:40])
def test_an_example_in_a_docstring_is_python(heading: str, text: str) -> None:
    tree = compile(
        # A view's last line may be its answer.
        f"async def example():\n{textwrap.indent(text, '    ')}",
        heading,
        "exec",
        ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
    )
    assert tree
