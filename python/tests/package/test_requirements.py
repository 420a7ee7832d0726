"""What the tests are installed with: all that the package's extras name, pinned, and nothing else.

A package that somebody installed by hand would let tests pass here that fail on a fresh machine.
"""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import distribution, distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PINNED = ROOT / "requirements-dev.txt"

# Every environment has them, and the package itself.
GIVEN = {"pip", "setuptools", "wheel", "layby"}


def name_of(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match, requirement
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def extras_of(requirement: str) -> set[str]:
    match = re.search(r"\[([^]]*)]", requirement)
    return {extra.strip() for extra in match[1].split(",")} if match else set()


def pinned() -> list[str]:
    lines = PINNED.read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def needed(requirements: list[str]) -> set[str]:
    """The names of all that installing these brings, whatever the markers but for extras say."""
    found: set[str] = set()
    ahead = [(name_of(text), extras_of(text)) for text in requirements]
    seen: set[tuple[str, frozenset[str]]] = set()
    while ahead:
        name, extras = ahead.pop()
        if (name, frozenset(extras)) in seen:
            continue
        seen.add((name, frozenset(extras)))
        found.add(name)
        try:
            requires = distribution(name).requires or []
        except ModuleNotFoundError:
            continue  # Of another platform or Python.
        for text in requires:
            marker = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", text)
            if marker is None or marker[1] in extras:
                ahead.append((name_of(text), extras_of(text.partition(";")[0])))
    return found


def test_every_extra_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    named = {name_of(text) for extra in extras for text in extra}
    assert named - {name_of(text) for text in pinned()} == set()


def test_nothing_else_is_installed() -> None:
    installed = {name_of(found.metadata["Name"]) for found in distributions()}
    by_hand = installed - needed(pinned()) - GIVEN
    assert by_hand == set(), f"not in {PINNED.name}; pip uninstall it, or name it there"
