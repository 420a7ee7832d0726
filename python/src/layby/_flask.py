"""Flask's `async def` views: stepped in greenlet mode where they use layby.

Flask gives each to an event loop in a thread of its own (asgiref's `async_to_sync`), where
nothing parks. The job is lent to that loop, so that what a view fetches there goes through the
gateway, in place. In greenlet mode a view whose module refers to layby is stepped by the
slot's thread instead, without a loop: it parks, and may block. What it needs of asyncio goes
under `async with layby.io`, or it is marked with `on_event_loop` and keeps its loop.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

from flask import Flask

from layby._drive import drive
from layby._job import tls

View = TypeVar("View", bound=Callable[..., Any])

_ON_LOOP = "_layby_on_event_loop"


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
        if tls.job is None or tls.park is None or not _is_stepped(func):
            return original(self, func)

        @functools.wraps(func)
        def step(*args: Any, **kwargs: Any) -> Any:
            return drive(func(*args, **kwargs))

        return step

    Flask.async_to_sync = async_to_sync  # type: ignore[method-assign]


def on_event_loop(view: View) -> View:
    """Leave this `async def` view on the event loop that Flask makes for it, in greenlet mode too.

    For views that use asyncio throughout. Their requests wait in place: where only a part of the
    view needs asyncio, `async with layby.io` around that part does better.

        @app.get("/rates")
        @on_event_loop
        async def rates(): ...
    """
    setattr(view, _ON_LOOP, True)
    return view


# Flask asks at every request.
@functools.lru_cache(maxsize=1024)
def _is_stepped(func: Callable[..., Any]) -> bool:
    if hasattr(func, _ON_LOOP):
        return False
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
