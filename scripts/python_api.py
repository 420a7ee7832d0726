"""Writes docs/python-api.md: what the package makes public, from its own docstrings.

    .venv/bin/python scripts/python_api.py           writes it
    .venv/bin/python scripts/python_api.py --check   exit status 1 if it is not up to date

A module is public if it has a row below; what it makes public is in its `__all__`. The words are
the docstrings': Markdown, with the headings of their sections (`# Raises`) in bold.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import textwrap
import typing
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

PAGE = Path(__file__).resolve().parent.parent / "docs" / "python-api.md"
SOURCES = PAGE.parent.parent / "python" / "src"

MODULES = [
    "layby",
    "layby.django",
    "layby.flask",
    "layby.testing",
    "layby.requests",
    "layby.urllib3",
    "layby.httpx",
    "layby.httpx2",
    "layby.sqlalchemy",
    "layby.gunicorn",
]

INTRODUCTION = """\
# The Python package: reference

<!-- Written from the docstrings by scripts/python_api.py. -->

Everything public, module by module. [The guide](python.md) shows how it goes together.
"""

# Public for other modules of the package, not for applications.
INTERNAL = {"Gather.fetches", "Op.call", "Op.call_on_loop", "Op.settle"}

# Signatures longer than this get a line for each parameter.
WIDTH = 92


def page() -> str:
    parts = [INTRODUCTION, *contents()]
    for name in MODULES:
        parts += module(importlib.import_module(name))
    return "\n".join(parts).rstrip() + "\n"


def contents() -> Iterator[str]:
    for name in MODULES:
        yield f"- [`{name}`](#{anchor(name)}): {first_line(importlib.import_module(name))}"
    yield ""


def first_line(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0].removesuffix(".")


def anchor(name: str) -> str:
    """As GitHub makes it of a heading that is a name in backticks."""
    return re.sub(r"[^\w-]", "", name.lower())


def public(module: ModuleType) -> list[str]:
    """The public names, classes of exceptions last; in their modules' own order otherwise."""
    names = list(getattr(module, "__all__", ()))
    if not names:
        names = [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
        ]
    return sorted(names, key=lambda name: (rank(getattr(module, name)), name.lower()))


def rank(thing: Any) -> int:
    if isinstance(thing, type):
        return 3 if issubclass(thing, BaseException) else 2
    return 0 if inspect.isroutine(thing) else 1


def module(module: ModuleType) -> Iterator[str]:
    yield f"## `{module.__name__}`\n"
    yield prose(module)
    for name in public(module):
        thing = getattr(module, name)
        yield f"### `{module.__name__}.{name}`\n"
        if isinstance(thing, type):
            yield from of_class(f"{module.__name__}.{name}", thing)
        elif inspect.isroutine(thing):
            yield from of_function(f"{module.__name__}.{name}", thing)
        else:
            home = sys.modules[type(thing).__module__]
            yield strings(home).get(name, "") + "\n"


def of_function(name: str, function: Any) -> Iterator[str]:
    overloads = typing.get_overloads(function) or [function]
    yield fenced(*(signature(name, each) for each in overloads))
    yield prose(function)


def of_class(name: str, kind: type) -> Iterator[str]:
    bases = [f"`{written(base)}`" for base in kind.__bases__ if is_told(base)]
    if bases:
        yield f"Base: {', '.join(bases)}.\n"
    if is_made_by_users(name, kind):
        yield fenced(signature(name, kind))
    yield prose(kind)
    for attribute, text in attributes(kind).items():
        yield f"**`.{attribute}`**\n"
        yield indented(text)
    for member, thing in members(kind):
        if isinstance(thing, property):
            returned = thing.fget.__annotations__.get("return") if thing.fget else None
            yield f"**`.{member}`**" + (f" `{shortened(str(returned))}`" if returned else "") + "\n"
        else:
            for each in typing.get_overloads(thing) or [thing]:
                yield f"**`.{signature(member, each, method=True)}`**\n"
        yield indented(prose(thing))


def is_made_by_users(name: str, kind: type) -> bool:
    """Not those of `layby` itself, which its functions give, nor with a library's arguments."""
    if name.count(".") < 2 or "__init__" not in vars(kind) or issubclass(kind, Exception):
        return False
    kinds = {each.kind for each in inspect.signature(kind).parameters.values()}
    return inspect.Parameter.VAR_POSITIONAL not in kinds


def is_told(base: type) -> bool:
    """Whether users know this base: another library's, or a public one of ours."""
    ours = base.__module__.startswith("layby")
    return base not in (object, typing.Generic) and (
        not ours or any(base in vars(importlib.import_module(name)).values() for name in MODULES)
    )


def attributes(kind: type) -> dict[str, str]:
    """Its documented attributes: those with a string below them, in the class or in `__init__`."""
    if not kind.__module__.startswith("layby"):
        return {}
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    found = described(tree.body)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            found |= described(node.body)
    return {name: text for name, text in found.items() if not name.startswith("_")}


def strings(module: ModuleType) -> dict[str, str]:
    """The documented variables of a module."""
    return described(ast.parse(inspect.getsource(module)).body)


def described(body: list[ast.stmt]) -> dict[str, str]:
    found = {}
    for assigned, below in pairwise(body):
        match assigned, below:
            case (
                ast.Assign(targets=[target]) | ast.AnnAssign(target=target),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                name = target.attr if isinstance(target, ast.Attribute) else ast.unparse(target)
                found[name] = inspect.cleandoc(text)
    return found


def written(base: type) -> str:
    home = base.__module__.split(".")
    if home[0] == "builtins":
        return base.__qualname__
    # Private modules of ours are an accident of where it is written.
    return ".".join([part for part in home if not part.startswith("_")] + [base.__qualname__])


def members(kind: type) -> Iterator[tuple[str, Any]]:
    """Its documented methods and properties, its own and those of its private bases.

    Not what it has for another library's sake, whose own documents tell of it.
    """
    libraries = [base for base in kind.__mro__ if not base.__module__.startswith("layby")]
    seen: set[str] = set()
    for base in kind.__mro__:
        if base in libraries:
            continue
        for name, thing in vars(base).items():
            documented = isinstance(thing, property) or inspect.isfunction(thing)
            if (
                not documented
                or not thing.__doc__
                or name.startswith("_")
                or name in seen
                or f"{kind.__name__}.{name}" in INTERNAL
                or any(hasattr(library, name) for library in libraries)
            ):
                continue
            seen.add(name)
            yield name, thing


class Bare(str):
    """An annotation, which `inspect` shows as it is."""

    def __repr__(self) -> str:
        return str(self)


def signature(name: str, thing: Any, *, method: bool = False) -> str:
    found = inspect.signature(thing)
    parameters = [
        each.replace(annotation=bare(each.annotation)) for each in found.parameters.values()
    ]
    if method:
        parameters = parameters[1:]
    found = found.replace(parameters=parameters, return_annotation=bare(found.return_annotation))
    if isinstance(thing, type):
        found = found.replace(return_annotation=inspect.Signature.empty)
    prefix = "async " if inspect.iscoroutinefunction(thing) else ""
    line = f"{prefix}{name}{found}"
    if len(line) <= WIDTH or method:
        return line
    inner = ",\n    ".join(pieces(parameters))
    return f"{prefix}{name}(\n    {inner},\n){line.rpartition(')')[2]}"


def bare(annotation: Any) -> Any:
    if annotation is inspect.Signature.empty:
        return annotation
    return Bare(shortened(annotation if isinstance(annotation, str) else repr(annotation)))


def pieces(parameters: list[inspect.Parameter]) -> Iterator[str]:
    starred = False
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL:
            starred = True
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            starred = True
            yield "*"
        yield str(parameter)


def shortened(annotation: str) -> str:
    """Without the modules that names are written in."""
    return re.sub(r"\b(?:layby\._\w+|_exceptions|typing|collections\.abc)\.(?=\w)", "", annotation)


def prose(thing: Any) -> str:
    text = inspect.getdoc(thing) or ""
    return re.sub(r"^# (.+)$", r"**\1**", text, flags=re.MULTILINE) + "\n"


def indented(text: str) -> str:
    return textwrap.indent(text, "> ", lambda line: True).rstrip("> \n") + "\n"


def fenced(*lines: str) -> str:
    return "```text\n" + "\n".join(lines) + "\n```\n"


def main() -> int:
    # The sources beside this script, whatever is installed.
    sys.path.insert(0, str(SOURCES))
    fresh = page()
    if "--check" in sys.argv[1:]:
        return 0 if PAGE.read_text() == fresh else 1
    PAGE.write_text(fresh)
    return 0


if __name__ == "__main__":
    sys.exit(main())
