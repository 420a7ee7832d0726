"""layby.patch(): every client library of the process by the gateway.

What a library calls to send one request is replaced in its own class, so that clients
that exist already are in. Nothing is different outside layby, on helper threads and
under event loops: there the replaced function is called.

The name is taken twice: with a URL, `layby.patch` is the fetch of that name.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, overload

from layby import _plan
from layby._plan import Fetch
from layby._request import Content, Data, HeaderTypes
from layby._urls import Params

log = logging.getLogger("layby")

# What is replaced, and by what it was before: (owner, name, original).
_replaced: list[tuple[Any, str, Any]] = []


@overload
def patch() -> None: ...
@overload
def patch(
    url: str,
    *,
    params: Params | None = None,
    headers: HeaderTypes | None = None,
    content: Content | None = None,
    data: Data | None = None,
    json: Any = None,
    timeout: float | None = None,
    follow_redirects: bool = False,
) -> Fetch: ...
def patch(url: str | None = None, **arguments: Any) -> Fetch | None:
    """Have the client libraries of this process ask the gateway; with a URL, a PATCH.

    `layby.patch()`, called once where the application starts, is for the installed ones of
    urllib3 (and with it requests and botocore), httpx and httpx2. Called again, it does
    nothing; `layby.unpatch()` takes it back.

    `layby.patch(url, …)` is a fetch: see `request`.
    """
    if url is not None:
        return _plan.patch(url, **arguments)
    if arguments:
        raise TypeError(f"patch() without a URL takes no arguments, not {sorted(arguments)}")
    if not _replaced:
        for owner, name, replacement in _replacements():
            _replaced.append((owner, name, getattr(owner, name)))
            setattr(owner, name, replacement)
    return None


def unpatch() -> None:
    """Take back `layby.patch()`."""
    while _replaced:
        owner, name, original = _replaced.pop()
        setattr(owner, name, original)


def _replacements() -> Iterator[tuple[Any, str, Any]]:
    # Imported here: whoever does not patch has no need of them.
    from layby import _httpx

    if find_spec("urllib3") is not None:
        installed = version("urllib3")
        if int(installed.partition(".")[0]) < 2:
            log.warning("layby.patch() needs urllib3 2 or newer, not %s: left as it is", installed)
        else:
            from layby import urllib3

            yield urllib3.replacement()
    for name in ("httpx", "httpx2"):
        if find_spec(name) is not None:
            yield from _httpx.replacements(import_module(name))
    # What asynchronous SDKs use beside their client.
    if find_spec("anyio") is not None:
        from layby import _anyio

        yield from _anyio.replacements()
