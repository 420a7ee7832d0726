"""Django on layby.

With `"layby.django"` in `INSTALLED_APPS`, `async def` views of mostly blocking code run
everywhere: on the gateway, where they park, and under the test client, `runserver` and
any WSGI server, where they wait in place. Without it they park all the same, but outside
the gateway Django runs them on an event loop, where the ORM refuses to work.

Settings, all optional:

- `LAYBY_INLINE_ASYNC_VIEWS = False`: all `async def` views run on an event loop, as in
  plain Django; none parks.
- `LAYBY_PERSISTENT_CONNECTIONS = False`: leave a `CONN_MAX_AGE` of 0 alone. Otherwise
  layby's workers keep one connection per slot open.

`@on_event_loop` does for one view what the first setting does for all.
"""

from layby._exceptions import AsgirefUnsupported
from layby.django._application import application, prepare
from layby.django._asgiref import self_test
from layby.django._inplace import on_event_loop

__all__ = ["AsgirefUnsupported", "application", "on_event_loop", "prepare", "self_test"]
