"""What asynchronous SDKs use of anyio and sniffio, where there is no event loop.

In a slot a coroutine is stepped without a loop. The SDKs of openai and anthropic then pause
between attempts by `anyio.sleep` and read about their platform in a thread; both have an
answer in a slot, which may block. With a loop, everything is as it was.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

from layby._plan import sleep as pause
from layby._transport import under_loop


def replacements() -> Iterator[tuple[Any, str, Any]]:
    """What `layby.patch()` replaces: a module, a function's name, the new function."""
    import anyio
    import anyio.to_thread

    real_sleep, real_run_sync = anyio.sleep, anyio.to_thread.run_sync

    @functools.wraps(real_sleep)
    async def sleep(delay: float) -> None:
        if under_loop():
            await real_sleep(delay)
        else:
            await pause(delay)

    @functools.wraps(real_run_sync)
    async def run_sync(func: Callable[..., Any], *args: Any, **options: Any) -> Any:
        if under_loop():
            return await real_run_sync(func, *args, **options)
        return func(*args)

    yield anyio, "sleep", sleep
    yield anyio.to_thread, "run_sync", run_sync
    try:
        import sniffio
    except ImportError:
        return
    real_library = sniffio.current_async_library

    @functools.wraps(real_library)
    def current_async_library() -> str:
        # They ask for the name before they go to a thread. Only coroutines are told of us:
        # for everybody else there is no library, which is a usual way to find that out.
        caller = sys._getframe(1)
        if caller.f_code.co_flags & inspect.CO_COROUTINE and not under_loop():
            return "layby"
        return str(real_library())

    yield sniffio, "current_async_library", current_async_library
