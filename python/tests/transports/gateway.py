"""A gateway for one slot that makes the fetches, so that a test can run code in a slot."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from fakegateway import Connection, Frame
from origin import BY_GATEWAY

# Headers that a gateway drops from a plan, as the real one does.
DROPPED = (
    "connection",
    "keep-alive",
    "te",
    "transfer-encoding",
    "content-length",
    "expect",
    "host",
)


class Gateway:
    """Runs code in a slot by `start`, the fixture of the core's tests."""

    def __init__(self, start: Any) -> None:
        self._start = start
        # What was asked for: the plan's fetches, and whether they came by HOLD or PARK.
        self.fetches: list[dict[str, Any]] = []
        self.kinds: list[str] = []
        # The reasons of HOLDs without a plan: real calls.
        self.real_calls: list[str] = []
        # Where origins are that are named in a test: beginnings of URLs.
        self.origins: dict[str, str] = {}
        # Set to answer instead of an origin: from a fetch to an entry of the results.
        self.instead: Callable[[dict[str, Any]], dict[str, Any]] | None = None

    def run(self, function: Callable[[], Any]) -> Any:
        """Call `function` in a slot of wsgi mode; its result, or its exception."""
        outcome: list[Any] = []

        def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
            try:
                outcome.append((function(), None))
            except Exception as error:
                outcome.append((None, error))
            start_response("200 OK", [])
            return [b""]

        self._drive(self._start(app)[0])
        return _result(outcome)

    def run_async(self, function: Callable[[], Any]) -> Any:
        """Await `function()` in slots of coroutine mode; its result, or its exception."""
        outcome: list[Any] = []

        async def app(environ: dict[str, Any]) -> Any:
            try:
                outcome.append((await function(), None))
            except Exception as error:
                outcome.append((None, error))
            return _Empty()

        self._drive(self._start(app, mode="coroutine")[0])
        return _result(outcome)

    def _drive(self, slot: Connection) -> None:
        slot.request(1)
        while (frame := slot.frame()).type != "ANSWER":
            if "gather" not in frame.plan:
                self.real_calls.append(frame.plan["hold"]["source"])
                continue
            self.kinds.append(frame.type)
            entries, body = self._run(frame)
            if frame.type == "HOLD":
                slot.results("RESULTS", 1, frame.epoch, *entries, body=body)
            else:
                slot.results("RESUME", 1, frame.epoch + 1, *entries, body=body)

    def _run(self, frame: Frame) -> tuple[list[Any], bytes]:
        entries, bodies = [], b""
        for thing in frame.plan["gather"]:
            if "sleep" in thing:
                entries.append({"slept": thing["sleep"]})
                continue
            fetch = thing["fetch"]
            self.fetches.append(fetch)
            if self.instead is not None:
                entries.append(self.instead(fetch))
                continue
            offset, length = fetch.get("body", (0, 0))
            for named, origin in self.origins.items():
                fetch["url"] = fetch["url"].replace(named, origin)
            entry, body = make(fetch, frame.body[offset : offset + length])
            entries.append({**entry, "body": [len(bodies), len(body)]})
            bodies += body
        return entries, bodies


class _Empty:
    status = "200 OK"
    headers: tuple[()] = ()
    quick_close = True

    def __iter__(self) -> Any:
        return iter(())

    def close(self) -> None:
        pass


def _result(outcome: list[Any]) -> Any:
    [(value, error)] = outcome
    if error is not None:
        raise error
    return value


def make(fetch: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
    """A fetch as the gateway makes it: the coding of a body stays on, redirects are passed on."""
    parts = urlsplit(fetch["url"])
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=20)
    try:
        target = urlunsplit(("", "", parts.path or "/", parts.query, ""))
        connection.putrequest(fetch["method"], target, skip_accept_encoding=True)
        for name, value in fetch["headers"]:
            if name.lower() not in DROPPED:
                connection.putheader(name, value)
        connection.putheader(BY_GATEWAY, "1")
        if body or fetch["method"] in ("POST", "PUT", "PATCH"):
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body or None)
        answer = connection.getresponse()
        content = answer.read()
    finally:
        connection.close()
    entry = {
        "status": answer.status,
        "reason": answer.reason,
        "url": fetch["url"],
        "headers": [[name.lower(), value] for name, value in answer.getheaders()],
        "seconds": 0.01,
        "redirects": 0,
    }
    return entry, content


def failure(kind: str, phase: str, message: str = "as the test has it") -> Callable[..., Any]:
    """For `instead`: every fetch fails so."""
    return lambda fetch: json.loads(
        json.dumps({"error": kind, "phase": phase, "message": message, "url": fetch["url"]})
    )
