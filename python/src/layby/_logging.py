"""The request's id in the application's own log, as it is in the gateway's."""

from __future__ import annotations

import logging

from layby._job import current_job
from layby._ride import here


def request_id() -> str | None:
    """The id of the request that this code runs for, as the gateway and the client know it.

    It is `X-Request-ID` of the request. None outside of requests, and outside layby.
    """
    job = current_job()
    if job is None:
        ride = here()
        job = ride.job if ride else None
    return None if job is None else job.environ.get("HTTP_X_REQUEST_ID")


class RequestIdFilter(logging.Filter):
    """Gives every log record the `request_id` of the request it was made for, else `-`.

    It filters nothing out. For a handler, with `%(request_id)s` in its format.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the id to the record, unless it has one."""
        if not hasattr(record, "request_id"):
            record.request_id = request_id() or "-"
        return True
