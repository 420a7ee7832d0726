"""Flask on layby.

Nothing of this is needed: Flask runs as it is. In greenlet mode `async def` views that use layby
are stepped without an event loop, so that they park; `on_event_loop` leaves one of them alone.
"""

from layby._flask import on_event_loop

__all__ = ["on_event_loop"]
