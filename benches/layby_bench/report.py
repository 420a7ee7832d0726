"""Results, for people and for machines.

A table is written once, as Markdown: it reads well in a terminal and is what goes into
`docs/benchmarks.md`. For machines each row is a line `bench NAME key=value ...`. A row that
must not be believed keeps its figures and says why.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

Value = float | int | str | None


@dataclass(frozen=True)
class Column:
    key: str
    heading: str
    # As in format(); values that are missing are shown as a dash.
    format: str = ""


@dataclass(frozen=True)
class Row:
    name: str
    values: Mapping[str, Value]
    invalid: str = ""
    # Another server than layby, for comparison.
    peer: bool = False


@dataclass
class Table:
    name: str
    title: str
    # What was done, and how to read the figures.
    text: str
    columns: Sequence[Column]
    rows: list[Row] = field(default_factory=list)
    # One sentence each, below the table.
    remarks: list[str] = field(default_factory=list)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        print(line(self.name, row), flush=True)

    def markdown(self) -> str:
        cells = [["", *(column.heading for column in self.columns)]]
        cells.append(["---", *("---:" for _ in self.columns)])
        for row in self.rows:
            shown = (_shown(row.values.get(column.key), column.format) for column in self.columns)
            cells.append([row.name, *shown])
        widths = [max(len(each) for each in column) for column in zip(*cells, strict=True)]
        lines = [_markdown_line(each, widths) for each in cells]
        invalid = [f"{row.name} is **invalid**: {row.invalid}." for row in self.rows if row.invalid]
        parts = [f"## {self.title}", self.text, "\n".join(lines), *invalid, *self.remarks]
        return "\n\n".join(parts)


def line(table: str, row: Row) -> str:
    """`bench main/layby rate=386.2 ...`"""
    name = f"{table}/{row.name}".replace(" ", "_")
    pairs = [f"{key}={_plain(value)}" for key, value in row.values.items() if value is not None]
    if row.invalid:
        pairs.append(f"invalid={shlex.quote(row.invalid)}")
    return " ".join(["bench", name, *pairs])


def document(heading: Iterable[str], tables: Iterable[Table]) -> str:
    parts = [
        "# Benchmarks",
        "<!-- Written by `make bench`: `python benches/run.py --write` measures all anew. -->",
        *heading,
        *(table.markdown() for table in tables),
    ]
    return "\n\n".join(parts) + "\n"


def _plain(value: Value) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return shlex.quote(str(value))


def _shown(value: Value, spec: str) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return format(value, spec) if spec else str(value)


def _markdown_line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = cells
    if first == "---":
        padded = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    else:
        padded = [first.ljust(widths[0])]
        padded += [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
    return f"| {' | '.join(padded)} |"
