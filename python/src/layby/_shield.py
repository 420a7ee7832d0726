"""`layby.shield`: what is inside is not ended because its client has left.

In a slot that is up to the gateway, which is told with every PARK and HOLD. On the event
loop PARK is out already, and its CANCEL may come: then the ride's task is cancelled when
the shield is left, and the slot that ends the request waits for that.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from layby import _ride
from layby._job import tls

# A job's depth may be counted by tasks on the loop and by a slot at the same time.
_counting = threading.Lock()


@contextmanager
def shield() -> Iterator[None]:
    """While inside, a client that leaves does not cancel this request.

    For what must be seen through, whatever the gateway's `on_disconnect`. Nests. Inside
    `async with layby.io` the request is cancelled when the outermost shield there is left, if
    that was due meanwhile, be it because its time is over. Does nothing outside layby.
    """
    ride = _ride.here()
    job = tls.job if ride is None else ride.job
    if job is None:
        yield
        return
    with _counting:
        job.shields += 1
    if ride is not None:
        ride.shield()
    try:
        yield
    finally:
        with _counting:
            job.shields -= 1
        if ride is not None:
            ride.unshield()
