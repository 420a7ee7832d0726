"""Layby: requests that wait leave their thread to others.

    quote = await layby.get("https://ship.example/quote", params={"zip": "80331"})

In a worker of the layby gateway such an await parks the request: its slot, a thread
with its database connection, serves others until the answer is in. Outside it does
the fetch in place.
"""

__version__ = "0.1.0"

from layby._exceptions import (
    BodyNotReady,
    Cancelled,
    ConnectError,
    Error,
    FetchError,
    NotInASlot,
    ParkRefused,
    Refused,
    StatusError,
    Timeout,
    TooLarge,
)
from layby._hooks import on_park, on_resume
from layby._logging import RequestIdFilter, request_id
from layby._parallel import Op, Parallel, parallel
from layby._patch import patch, unpatch
from layby._plan import (
    Fetch,
    Gather,
    Sleep,
    UnusedWarning,
    delete,
    gather,
    get,
    head,
    post,
    put,
    request,
    sleep,
)
from layby._relay import Captured, stream
from layby._response import Headers, Response
from layby._ride import in_slot, io
from layby._shield import shield
from layby._uploads import body_ready, read_uploaded_file

__all__ = [
    "BodyNotReady",
    "Cancelled",
    "Captured",
    "ConnectError",
    "Error",
    "Fetch",
    "FetchError",
    "Gather",
    "Headers",
    "NotInASlot",
    "Op",
    "Parallel",
    "ParkRefused",
    "Refused",
    "RequestIdFilter",
    "Response",
    "Sleep",
    "StatusError",
    "Timeout",
    "TooLarge",
    "UnusedWarning",
    "body_ready",
    "delete",
    "gather",
    "get",
    "head",
    "in_slot",
    "io",
    "on_park",
    "on_resume",
    "parallel",
    "patch",
    "post",
    "put",
    "read_uploaded_file",
    "request",
    "request_id",
    "shield",
    "sleep",
    "stream",
    "unpatch",
]
