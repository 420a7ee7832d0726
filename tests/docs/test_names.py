"""What the documents name exists: keys, metrics, flags, variables, modules, types, targets."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import layby
import pytest
from documents import BINARY, REPOSITORY, blocks, code, documents, written

ARCHITECTURE = REPOSITORY / "ARCHITECTURE.md"
CONFIGURATION = (REPOSITORY / "docs" / "configuration.md").read_text()
METRICS = (REPOSITORY / "docs" / "metrics.md").read_text()


def sources() -> str:
    files = [*(REPOSITORY / "src").rglob("*.rs"), *(REPOSITORY / "python/src").rglob("*.py")]
    return "\n".join(path.read_text() for path in files)


def named(pattern: str) -> set[str]:
    """All that matches in the documents that people write, wherever it stands."""
    return {match for path in written() for match in re.findall(pattern, path.read_text())}


def test_every_metric_is_in_the_list() -> None:
    metrics = named(r"\blayby_[a-z_]*[a-z]") - {"layby_bench", "layby_fetches"}
    assert metrics
    assert {name for name in metrics if f"`{name}`" not in METRICS} == set()


def test_every_key_is_in_the_list() -> None:
    keys = named(r"`((?:slots|workers|outbound|database)\.[a-z_]+)`")
    sections = named(r"`\[(\w+)\] ([a-z_]+)`")
    keys |= {f"{section}.{key}" for section, key in sections}
    # In the admin listener's status, the queue and slots have fields of their own.
    keys -= {"slots.idle", "slots.busy", "slots.lost"}
    # Dashboards, which are files.
    keys -= {"slots.json", "workers.json"}
    assert len(keys) > 5
    assert {key for key in keys if f"### `{key}`" not in CONFIGURATION} == set()


def test_every_variable_is_read_somewhere() -> None:
    text = sources() + CONFIGURATION
    variables = named(r"\bLAYBY_[A-Z_]*[A-Z]\b")
    assert variables
    assert {name for name in variables if name not in text} == set()


def flags_of_layby() -> str:
    commands = [
        [BINARY, command, "--help"] for command in ("run", "serve", "check", "advise", "top")
    ]
    commands += [[BINARY, "--help"], [sys.executable, "-m", "layby", "--help"]]
    return "".join(
        subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for command in commands
    )


def test_every_flag_and_command_exists() -> None:
    known = flags_of_layby()
    lines = [
        line.partition("#")[0]
        for path in written()
        for text in [*(block.text for block in blocks(path, "sh")), *code(path)]
        for line in text.splitlines()
        if re.match(r"(layby|python -m layby)\b ", line)
    ]
    assert len(lines) > 4
    commands = {match for line in lines for match in re.findall(r"^layby ([a-z]+)", line)}
    assert {name for name in commands if not re.search(rf"^  {name} ", known, re.M)} == set()
    flags = {flag for line in lines for flag in re.findall(r"(?<= )--[a-z-]+", line)}
    assert {flag for flag in flags if not re.search(rf"{flag}\b", known)} == set()


def test_every_name_of_the_package_exists() -> None:
    names = named(r"\blayby\.([a-z]\w*|[A-Z]\w*)")
    # Files, and ids of Django's checks.
    names -= {"toml", "service", "socket"}
    # Of a media type.
    names -= {"plan"}
    names -= {name for name in names if re.fullmatch(r"W\d+", name)}
    # Attributes of spans.
    names -= set(re.findall(r'"layby\.(\w+)', (REPOSITORY / "src/spans/otlp.rs").read_text()))
    assert len(names) > 15
    modules = {name for name in names if importlib.util.find_spec(f"layby.{name}")}
    assert {name for name in names - modules if not hasattr(layby, name)} == set()


def test_every_check_of_django_is_in_the_guide() -> None:
    checks = (REPOSITORY / "python/src/layby/django/_checks.py").read_text()
    ids = set(re.findall(r"\blayby\.(W\d+)", checks))
    assert ids
    assert named(r"\blayby\.(W\d+)") == ids


def test_every_target_of_make_exists() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = named(r"(?<=[`\n])make ([a-z]+(?:-[a-z]+)*)")
    assert {"run", "test", "check"} <= targets
    assert {name for name in targets if not re.search(rf"^{name}:", makefile, re.M)} == set()


def exists_in(folder: Path) -> Callable[[str], bool]:
    return lambda name: any((base / name).exists() for base in (REPOSITORY, folder))


def in_backticks(pattern: str) -> Iterator[str]:
    return (text for text in code(ARCHITECTURE) if re.fullmatch(pattern, text))


def test_the_map_names_files_that_exist() -> None:
    there = exists_in(REPOSITORY / "src")
    ours = exists_in(REPOSITORY / "python" / "src" / "layby")
    paths = list(in_backticks(r"[\w/]+/|[\w/.]+\.(rs|py|toml)"))
    assert len(paths) > 30
    # A file of a room may be named without its room.
    loose = {path.name for path in (REPOSITORY / "src").rglob("*.rs")}
    assert [p for p in paths if not (there(p) or ours(p) or p in loose)] == []


def test_the_map_has_every_module() -> None:
    modules = (REPOSITORY / "src").iterdir()
    named = {f"{module.name}/" if module.is_dir() else module.name for module in modules}
    assert named - {"lib.rs", "main.rs"} - set(code(ARCHITECTURE)) == set()


def test_the_map_names_types_and_functions_that_exist() -> None:
    text = sources()
    for name in in_backticks(r"[A-Z][a-z]\w+"):
        assert re.search(rf"\b(struct|enum|trait|type|class) {name}\b", text), name
    for name in in_backticks(r"\w+::\w+"):
        owner, _, function = name.partition("::")
        assert re.search(rf"\bfn {function}\b|\b(struct|enum) {function}\b", text), name
        assert re.search(rf"\b(struct|enum|trait|mod|impl) {owner}\b", text), name


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_nothing_is_left_to_be_done(path: Path) -> None:
    assert re.findall(r"\b(?:TODO|FIXME|XXX|TBD)\b", path.read_text()) == []
