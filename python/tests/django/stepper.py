"""A stand-in for worker and gateway: slots that start, park and resume jobs in this process.

Deterministic where the real ones are not: parked jobs resume once every running job has
parked or ended, and each on another slot than the one that parked it. That makes the
most of whatever a request could leave behind on its thread.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from contextvars import Context
from io import BytesIO
from typing import Any
from urllib.parse import urlencode

from layby import _job
from layby._drive import NO_ASYNCIO, wait_in_place
from layby._exceptions import Cancelled, Error
from layby._job import Job, tls
from layby._wire import FLAG_LOCAL


class Answer:
    """What a client would see of one request, and how it got there."""

    def __init__(self) -> None:
        self.status = ""
        self.headers: list[tuple[str, str]] = []
        self.body = b""
        self.chunks: list[bytes] = []
        self.quick_close = False
        self.error: BaseException | None = None
        # Slot of every step, reason of every wait in place.
        self.slots: list[int] = []
        self.waits: list[str] = []

    def __repr__(self) -> str:
        return f"<Answer {self.status!r} slots {self.slots} waits {self.waits} {self.body[:80]!r}>"

    @property
    def code(self) -> int:
        if self.error is not None:
            raise self.error
        return int(self.status.split()[0])

    @property
    def text(self) -> str:
        return self.body.decode()

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    @property
    def cookies(self) -> dict[str, str]:
        sent = (value.split(";")[0] for name, value in self.headers if name == "Set-Cookie")
        return {name: value for name, _, value in (pair.partition("=") for pair in sent)}


class _Request:
    def __init__(self, number: int, environ: dict[str, Any], cancel: bool) -> None:
        self.answer = Answer()
        self.cancel = cancel
        self.job = Job(request=number, epoch=0, environ=environ, context=Context(), slot=-1)
        # What the next step sends into the coroutine.
        self.value: Any = None


class _Waiter:
    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def wait_in_place(self, job: Job, suspend: Any, reason: str, detail: str = "") -> Any:
        self._answer.waits.append(reason)
        return None if suspend.flags & FLAG_LOCAL else suspend.outside(None)


class Slots:
    """`count` slot threads that run the requests given to `run`."""

    def __init__(self, app: Any, count: int) -> None:
        self._app = app
        self._queues: list[queue.SimpleQueue[_Request | None]] = [
            queue.SimpleQueue() for _ in range(count)
        ]
        self._threads = [
            threading.Thread(target=self._serve, args=(number,), name=f"slot-{number}")
            for number in range(count)
        ]
        self._lock = threading.Condition()
        self._running = 0
        self._parked: deque[_Request] = deque()
        self._requests = 0

    def __enter__(self) -> Slots:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        for each in self._queues:
            each.put(None)
        for thread in self._threads:
            thread.join()

    def run(self, *environs: dict[str, Any], cancel: bool = False) -> list[Answer]:
        """Run all of them at once; with `cancel`, each loses its client while parked."""
        requests = []
        for environ in environs:
            self._requests += 1
            requests.append(_Request(self._requests, environ, cancel))
        self._running = len(requests)
        for number, request in enumerate(requests):
            self._queues[number % len(self._queues)].put(request)
        with self._lock:
            while self._lock.wait_for(lambda: self._running == 0, timeout=60):
                if not self._parked:
                    return [request.answer for request in requests]
                resumed, self._parked = self._parked, deque()
                self._running = len(resumed)
                for request in resumed:
                    self._queues[(request.job.slot + 1) % len(self._queues)].put(request)
        raise TimeoutError("a step takes longer than a minute")

    def get(self, path: str, **kwargs: Any) -> Answer:
        """One GET."""
        cancel = kwargs.pop("cancel", False)
        return self.run(environ(path, **kwargs), cancel=cancel)[0]

    def _serve(self, number: int) -> None:
        for opener in _job.slot_openers:
            opener(number)
        while (request := self._queues[number].get()) is not None:
            parked = False
            try:
                parked = self._step(request, number)
            except BaseException as error:
                request.answer.error = error
            with self._lock:
                if parked:
                    self._parked.append(request)
                self._running -= 1
                self._lock.notify_all()
        for closer in _job.slot_closers:
            closer()

    def _step(self, request: _Request, number: int) -> bool:
        """Step until the request parks (True) or has answered."""
        job = request.job
        request.answer.slots.append(number)
        job.slot, first = number, job.coroutine is None
        tls.job, tls.waiter = job, _Waiter(request.answer)
        try:
            if first:
                job.coroutine = self._app(job.environ)
            else:
                for hook in _job.before_resume:
                    job.context.run(hook, job)
                if request.cancel:
                    job.cancelled = True
            failure: BaseException | None = Cancelled() if job.cancelled else None
            while True:
                assert job.coroutine is not None
                try:
                    if failure is not None:
                        suspend = job.context.run(job.coroutine.throw, failure)
                    else:
                        suspend = job.context.run(job.coroutine.send, request.value)
                except StopIteration as stop:
                    job.context.run(_send, stop.value, request.answer)
                    return False
                failure = None
                if not isinstance(suspend, _job.Suspend):
                    failure = Error(NO_ASYNCIO)
                    continue
                if reason := _reason_to_wait(job):
                    waiter: Any = tls.waiter
                    request.value = wait_in_place(waiter, job, suspend, job.coroutine, reason)
                    continue
                request.value = suspend.outside(None)
                for leave in _job.on_leave:
                    job.context.run(leave, job)
                return True
        finally:
            tls.job = tls.waiter = None


def _reason_to_wait(job: Job) -> Any:
    if job.inline:
        return job.inline[-1]
    for check in _job.park_checks:
        if obstacle := job.context.run(check, job):
            return obstacle.reason
    return None


def _send(response: Any, answer: Answer) -> None:
    answer.quick_close = response.quick_close
    answer.status, answer.headers = response.status, response.headers
    try:
        answer.chunks = list(response)
        answer.body = b"".join(answer.chunks)
    finally:
        response.close()


def environ(
    path: str,
    *,
    post: dict[str, str] | None = None,
    cookies: dict[str, str] | None = None,
    headers: dict[str, str] | None = None,
) -> dict[str, Any]:
    """The environ of a GET, or of a POST of a form."""
    path, _, query = path.partition("?")
    body = urlencode(post or {}).encode()
    result = {
        "REQUEST_METHOD": "GET" if post is None else "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "SERVER_NAME": "testserver",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": BytesIO(body),
        "wsgi.errors": BytesIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    if post is not None:
        result["CONTENT_TYPE"] = "application/x-www-form-urlencoded"
        result["CONTENT_LENGTH"] = str(len(body))
    if cookies:
        result["HTTP_COOKIE"] = "; ".join(f"{name}={value}" for name, value in cookies.items())
    for name, value in (headers or {}).items():
        result["HTTP_" + name.upper().replace("-", "_")] = value
    return result
