"""The documents of the repository, and what is in them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
BINARY = Path(os.environ.get("LAYBY_BINARY", REPOSITORY / "target" / "debug" / "layby"))

# Written from the code, and tested there.
GENERATED = {
    REPOSITORY / "docs" / name
    for name in ("commands.md", "configuration.md", "metrics.md", "python-api.md")
}

_FENCE = re.compile(r"^( *)```(\S*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def environment() -> dict[str, str]:
    """Ours, without what would configure a gateway behind our back."""
    return {name: value for name, value in os.environ.items() if not name.startswith("LAYBY_")}


@dataclass(frozen=True)
class Block:
    """A fenced block: what it is in, where its first line is, and its text."""

    path: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(REPOSITORY)}:{self.line}"


def documents() -> list[Path]:
    """Every Markdown file that is ours."""
    found = []
    for folder, folders, files in os.walk(REPOSITORY):
        # Hidden folders, what cargo builds, and environments.
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".")
            and name != "target"
            and not Path(folder, name, "pyvenv.cfg").exists()
        ]
        found += [Path(folder, name) for name in files if name.endswith(".md")]
    return sorted(found)


def written() -> list[Path]:
    """The documents that people write."""
    return [path for path in documents() if path not in GENERATED]


def blocks(path: Path, language: str) -> Iterator[Block]:
    text = path.read_text()
    for fence in _FENCE.finditer(text):
        indent, named, body = fence.groups()
        if named == language:
            line = text[: fence.start(3)].count("\n") + 1
            yield Block(path, line, language, re.sub(f"^{indent}", "", body, flags=re.MULTILINE))


def prose(path: Path) -> str:
    """The text without its fenced blocks."""
    return _FENCE.sub("", path.read_text())


def code(path: Path) -> list[str]:
    """What stands between backticks in the prose."""
    return re.findall(r"`([^`\n]+)`", prose(path))
