"""What a view calls to have its request's body, on routes where it comes later."""

from __future__ import annotations

from typing import Any

from layby._body import body_of


async def body_ready(request: Any) -> None:
    """Wait until the whole body of `request` is in; the request is parked meanwhile.

    For routes with `body = "lazy"`, where the view starts at the headers. Afterwards
    everything that reads the body works as usual: `request.body`, `request.POST`,
    `request.FILES`, `request.read()`, `request.get_data()`. Returns at once when the body
    is in, so always on other routes and outside layby. `request` is a request of Django,
    Flask or Django REST framework, or a WSGI environ.

    When the client leaves or stalls, or sends more than it may, the request ends here
    with `layby.Cancelled`; the gateway answers.
    """
    body = body_of(request)
    if body is not None:
        await body


async def read_uploaded_file(request: Any, name: str) -> Any:
    """Wait for the upload, as `body_ready` does, and return the file of the field `name`.

    That is the framework's own object, the same as `request.FILES[name]` (Flask:
    `request.files[name]`). The last one if several files came under this name.

    Raises `KeyError` if there is none.
    """
    await body_ready(request)
    files = request.FILES if hasattr(request, "FILES") else request.files
    found = files.getlist(name)
    if not found:
        raise KeyError(name)
    return found[-1]
