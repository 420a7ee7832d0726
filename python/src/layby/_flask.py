"""Flask's `async def` views: stepped in place where they use layby.

Flask gives each to an event loop in a thread of its own (asgiref's `async_to_sync`), where
nothing parks. A view whose module refers to layby is stepped by the slot's thread instead,
without a loop: it parks in greenlet mode, else it waits in place through the gateway, and
may block. What it needs of asyncio goes under `async with layby.io`. All other views keep
their loop, to which the job is lent: what they fetch waits in place.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

from flask import Flask

from layby._drive import drive
from layby._job import tls


@functools.cache
def install() -> None:
    """Hook into Flask; for the life of the process."""
    # Without asgiref Flask has no asynchronous views.
    if importlib.util.find_spec("asgiref") is not None:
        from layby import _asgiref

        _asgiref.install_lent_jobs()
        _asgiref.install_direct_calls()
    original = Flask.async_to_sync

    def async_to_sync(self: Flask, func: Callable[..., Any]) -> Callable[..., Any]:
        if tls.job is None or not _uses_layby(func):
            return original(self, func)

        @functools.wraps(func)
        def step(*args: Any, **kwargs: Any) -> Any:
            return drive(func(*args, **kwargs))

        return step

    Flask.async_to_sync = async_to_sync  # type: ignore[method-assign]


# Flask asks at every request.
@functools.lru_cache(maxsize=1024)
def _uses_layby(func: Callable[..., Any]) -> bool:
    module = inspect.getmodule(inspect.unwrap(func))
    return module is not None and any(_is_ours(value) for value in vars(module).values())


def _is_ours(value: Any) -> bool:
    if isinstance(value, ModuleType):
        name: Any = value.__name__
    else:
        name = getattr(value if isinstance(value, type) else type(value), "__module__", None)
        if callable(value):
            name = getattr(value, "__module__", name)
    return isinstance(name, str) and (name == "layby" or name.startswith("layby."))
