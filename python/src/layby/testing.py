"""For tests: answers for fetches from a table, and what was fetched side by side.

    with layby.testing.Fetches() as fetches:
        fetches.get("https://ship.example/quote", json={"price": "4.90"})
        client.get("/checkout/")
    assert fetches.calls[0].headers["accept"] == "*/*"

Wherever code runs without a gateway (Django's and Flask's test clients, plain
coroutines), its fetches are answered from here and nothing touches the network; those of
the transports and of `layby.patch()` too. In pytest the fixture `layby_fetches` is the
same thing.

Time is simulated: answers and sleeps take the seconds that they say, and a test takes
none. So timeouts and joins come out as they would.
"""

from __future__ import annotations

import json as jsonlib
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, urljoin, urlsplit

from layby import _direct, _exceptions, _outside, _plan, _urls
from layby._direct import Failure
from layby._exceptions import FetchError
from layby._plan import Fetch, Gather, Join, Outcome, Sleep
from layby._request import Request
from layby._response import Headers, Response

__all__ = ["Answer", "Call", "Failed", "Fetches", "Plan", "UnexpectedFetch"]

_MAX_REDIRECTS = 20

# How each error comes about: the protocol's name, and how far the fetch came.
_KINDS: Mapping[type[FetchError], tuple[Any, str]] = {
    _exceptions.ConnectError: ("connect", "connect"),
    _exceptions.Timeout: ("timeout", "head"),
    _exceptions.Refused: ("refused", "dns"),
    _exceptions.TooLarge: ("too_large", "body"),
    FetchError: ("failed", "head"),
}


class UnexpectedFetch(AssertionError):
    """A fetch that the table has no answer for."""


@dataclass(frozen=True, eq=False)
class Call:
    """One request as an origin would see it."""

    method: str
    url: str
    headers: Headers
    content: bytes
    timeout: float | None
    """Seconds that the code allows for it; None: the gateway's `[outbound] timeout`."""

    def __str__(self) -> str:
        return f"{self.method} {self.url}"

    @property
    def text(self) -> str:
        """The body as text."""
        return self.content.decode()

    def json(self) -> Any:
        """The body read as JSON."""
        return jsonlib.loads(self.content)


@dataclass(frozen=True, eq=False)
class Plan:
    """What was waited for at once: a gather, or a single fetch."""

    calls: tuple[Call, ...]
    """The fetches that ran side by side, without those of inner gathers."""
    gathers: tuple[Plan, ...]
    """The gathers in it."""
    sleeps: tuple[float, ...]
    join: Join
    timeout: float | None

    def __str__(self) -> str:
        parts = [str(call) for call in self.calls]
        parts += [f"({gather})" for gather in self.gathers]
        parts += [f"sleep {seconds}" for seconds in self.sleeps]
        timeout = "" if self.timeout is None else f", timeout {self.timeout}"
        return f"{' + '.join(parts)} [join {self.join!r}{timeout}]"


class Answer:
    """A response. At most one of `json`, `text` and `content`."""

    def __init__(
        self,
        status: int = 200,
        *,
        headers: Mapping[str, str] | list[tuple[str, str]] | None = None,
        json: Any = None,
        text: str | None = None,
        content: bytes | None = None,
        seconds: float = 0.0,
    ) -> None:
        bodies = [body for body in (json, text, content) if body is not None]
        if len(bodies) > 1:
            raise TypeError("an answer has one of json, text and content")
        self.status = status
        self.headers = list(headers.items() if isinstance(headers, Mapping) else headers or ())
        self.content = content or b""
        self.seconds = seconds
        if json is not None:
            self.content = jsonlib.dumps(json).encode()
            self._default_type("application/json")
        if text is not None:
            self.content = text.encode()
            self._default_type("text/plain; charset=utf-8")

    def __repr__(self) -> str:
        return f"<Answer {self.status}>"

    def _default_type(self, content_type: str) -> None:
        if "content-type" not in (name.lower() for name, _ in self.headers):
            self.headers.append(("content-type", content_type))


class Failed:
    """A fetch that fails, with one of layby's errors: `Failed(layby.Timeout)`.

    `phase` is how far it came; without one, what is usual for the error.
    """

    def __init__(
        self,
        error: type[FetchError],
        message: str = "as the test has it",
        *,
        phase: _exceptions.Phase | None = None,
        seconds: float = 0.0,
    ) -> None:
        if error not in _KINDS:
            names = ", ".join(kind.__name__ for kind in _KINDS)
            raise TypeError(f"a fetch fails with {names}, not {error!r}")
        self.kind, usual = _KINDS[error]
        self.message = message
        self.phase = phase or usual
        self.seconds = seconds

    def __repr__(self) -> str:
        return f"<Failed {self.kind} in {self.phase}>"


Result = Answer | Failed
Respond = Result | type[FetchError] | Callable[[Call], "Result | type[FetchError]"]
Where = str | re.Pattern[str]


@dataclass
class _Row:
    method: str
    where: Where
    answers: list[Respond]
    used: int = 0

    def __str__(self) -> str:
        where = self.where if isinstance(self.where, str) else self.where.pattern
        return f"{self.method} {where}"

    def matches(self, call: Call) -> bool:
        return self.method in ("*", call.method) and _same(self.where, call.url)

    def answer(self, call: Call) -> Result:
        answer = self.answers[min(self.used, len(self.answers) - 1)]
        self.used += 1
        if not isinstance(answer, Answer | Failed | type):
            answer = answer(call)
        return Failed(answer) if isinstance(answer, type) else answer


class Fetches:
    """The table, and what was fetched. Use it as a context manager."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        """Every request, in the order in which they would have been sent."""
        self.plans: list[Plan] = []
        """What was waited for, one after the other."""
        self.unexpected: list[Call] = []
        """Requests without an answer; if there are any, the end of the context fails."""
        self._rows: list[_Row] = []
        # Code under test may have several threads, each with fetches of its own.
        self._lock = threading.RLock()
        self._before: Callable[[Gather], list[Outcome]] | None = None

    def __enter__(self) -> Self:
        self._before, _plan.stand_in = _plan.stand_in, self._run
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _plan.stand_in = self._before
        if self.unexpected and error is None:
            # The code under test may have caught the first failure.
            raise self._no_answer(self.unexpected)

    def __repr__(self) -> str:
        return f"<Fetches {len(self._rows)} answers, {len(self.calls)} calls>"

    def on(self, method: str, url: Where, *answers: Respond, **answer: Any) -> None:
        """Answer requests with `method` ("*": any) to `url`.

        `url` is compared as a whole; without a query it stands for every query. It may also
        be a compiled pattern, which is searched for. The last row that matches answers.

        The answer is an `Answer`, a `Failed`, one of layby's errors, or a function of the
        `Call`; or it is given by the arguments of `Answer`. Of several, each is for one
        request, and the last one for all that follow.
        """
        if bool(answers) and bool(answer):
            raise TypeError("either answers, or the arguments of one")
        given = list(answers) or [Answer(**answer)]
        for each in given:
            if isinstance(each, type):
                Failed(each)  # Raises for what is none of layby's errors.
        with self._lock:
            self._rows.insert(0, _Row(method.upper(), url, given))

    def get(self, url: Where, *answers: Respond, **answer: Any) -> None:
        """Answer a GET: see `on`."""
        self.on("GET", url, *answers, **answer)

    def post(self, url: Where, *answers: Respond, **answer: Any) -> None:
        """Answer a POST: see `on`."""
        self.on("POST", url, *answers, **answer)

    def put(self, url: Where, *answers: Respond, **answer: Any) -> None:
        """Answer a PUT: see `on`."""
        self.on("PUT", url, *answers, **answer)

    def patch(self, url: Where, *answers: Respond, **answer: Any) -> None:
        """Answer a PATCH: see `on`."""
        self.on("PATCH", url, *answers, **answer)

    def delete(self, url: Where, *answers: Respond, **answer: Any) -> None:
        """Answer a DELETE: see `on`."""
        self.on("DELETE", url, *answers, **answer)

    def head(self, url: Where, *answers: Respond, **answer: Any) -> None:
        """Answer a HEAD: see `on`."""
        self.on("HEAD", url, *answers, **answer)

    def calls_to(self, url: Where, method: str = "*") -> list[Call]:
        """The requests to `url`, compared as in `on`."""
        row = _Row(method.upper(), url, [])
        return [call for call in self.calls if row.matches(call)]

    def assert_side_by_side(
        self, *urls: Where, join: Join | None = None, timeout: float | None = None
    ) -> None:
        """Fail unless one gather had fetches of exactly these URLs, in any order.

        With `join` and `timeout` it must also have been that of the gather.
        """
        for plan in _all(self.plans):
            left = [call.url for call in plan.calls]
            for url in urls:
                found = next((other for other in left if _same(url, other)), None)
                if found is None:
                    break
                left.remove(found)
            else:
                fits = join in (None, plan.join) and timeout in (None, plan.timeout)
                if not left and fits:
                    return
        wanted = " + ".join(url if isinstance(url, str) else url.pattern for url in urls)
        raise AssertionError(
            _listing(f"no plan of {wanted}, join {join!r}, timeout {timeout!r}", self.plans)
        )

    def assert_all_used(self) -> None:
        """Fail if an answer was never asked for. Of several in a row, each must have been."""
        unused = [row for row in self._rows if row.used < len(row.answers)]
        if unused:
            raise AssertionError(_listing("answers that nobody asked for", unused))

    def _run(self, root: Gather) -> list[Outcome]:
        """Answer a plan. Called where a plan would be run outside layby."""
        with self._lock:
            simulation = _Simulation(self._answer)
            node, plan = simulation.plant(root)
            self.plans.append(plan)
            simulation.run(node)
        assert isinstance(node.outcome, list)
        return node.outcome

    def _answer(self, call: Call) -> Result:
        self.calls.append(call)
        row = next((row for row in self._rows if row.matches(call)), None)
        if row is None:
            self.unexpected.append(call)
            raise self._no_answer([call])
        return row.answer(call)

    def _no_answer(self, calls: list[Call]) -> UnexpectedFetch:
        names = ", ".join(str(call) for call in calls)
        rows = list(reversed(self._rows))
        return UnexpectedFetch(_listing(f"no answer for {names}; there are answers for", rows))


class _Simulation:
    """One plan: everything that happens in it, in the order of simulated time."""

    def __init__(self, answer: Callable[[Call], Result]) -> None:
        self._answer = answer
        self._events: list[tuple[float, Callable[[], None]]] = []

    def plant(self, gather: Gather) -> tuple[_outside.Node, Plan]:
        return self._plant_gather(gather, None)

    def run(self, root: _outside.Node) -> None:
        # Sorting keeps the order of what happens at the same time: that of the plan.
        for _, happen in sorted(self._events, key=lambda event: event[0]):
            if root.ended:
                return
            happen()

    def _plant_gather(
        self, gather: Gather, parent: _outside.Node | None
    ) -> tuple[_outside.Node, Plan]:
        node = _outside.Node(gather, parent)
        calls, gathers, sleeps = [], [], []
        for thing in gather.things:
            child = _outside.Node(thing, node)
            if thing.ended or thing in gather._shared:
                child = _outside.Node.of_another_place(thing, node)
                node.ended_children.append(child)
            elif isinstance(thing, Gather):
                child, inner = self._plant_gather(thing, node)
                gathers.append(inner)
            elif isinstance(thing, Sleep):
                self._at(thing.seconds, child, thing.seconds)
                sleeps.append(thing.seconds)
            else:
                assert isinstance(thing, Fetch)
                calls.append(self._plant_fetch(thing, child))
            node.children.append(child)
        if gather.timeout is not None:
            over = Failure("timeout", "join", f"the gather took longer than {gather.timeout} s")
            self._events.append((gather.timeout, lambda: None if node.ended else node.expire(over)))
        if not gather.things:
            self._events.append((0.0, node.close))
        plan = Plan(tuple(calls), tuple(gathers), tuple(sleeps), gather.join, gather.timeout)
        return node, plan

    def _plant_fetch(self, fetch: Fetch, node: _outside.Node) -> Call:
        """Have the fetch end when its answers, redirects included, have taken their time."""
        first = call = _call(fetch.request, fetch)
        result = self._answer(call)
        spent, request, redirects = result.seconds, fetch.request, 0
        while fetch.follow_redirects and redirects <= _MAX_REDIRECTS:
            location = _location(result)
            if location is None or not isinstance(result, Answer):
                break
            redirects += 1
            request = _direct.redirected(result.status, urljoin(request.url, location), request)
            call = _call(request, fetch)
            result = self._answer(call)
            spent += result.seconds
        limit = fetch.timeout or _outside.DEFAULT_TIMEOUT
        outcome = _outcome(result, call, spent)
        if redirects > _MAX_REDIRECTS:
            outcome = Failure("failed", "redirect", f"more than {_MAX_REDIRECTS} redirects")
        elif spent > limit:
            outcome = Failure("timeout", "head", f"no whole response in {limit} s")
        self._at(min(spent, limit), node, outcome)
        return first

    def _at(self, seconds: float, node: _outside.Node, outcome: Outcome) -> None:
        self._events.append((seconds, lambda: node.end(outcome)))


def _call(request: Request, fetch: Fetch) -> Call:
    method, url, headers, body = request
    return Call(method, url, Headers(headers), body, fetch.timeout)


def _location(result: Result) -> str | None:
    """Where a result redirects to."""
    if isinstance(result, Answer) and result.status in (301, 302, 303, 307, 308):
        return Headers(result.headers).get("location")
    return None


def _outcome(result: Result, call: Call, spent: float) -> Response | Failure:
    if isinstance(result, Failed):
        return Failure(result.kind, result.phase, result.message, _urls.masked(call.url))
    return Response(
        result.status,
        reason_phrase=_reason(result.status),
        headers=[(name.lower(), value) for name, value in result.headers],
        content=b"" if call.method == "HEAD" else result.content,
        url=call.url,
        seconds=spent,
    )


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _same(where: Where, url: str) -> bool:
    if not isinstance(where, str):
        return where.search(url) is not None
    wanted, asked = urlsplit(_urls.prepare(where, None)[0]), urlsplit(url)
    if (wanted.scheme, wanted.netloc, wanted.path) != (asked.scheme, asked.netloc, asked.path):
        return False
    return not wanted.query or _pairs(wanted.query) == _pairs(asked.query)


def _pairs(query: str) -> list[tuple[str, str]]:
    return sorted(parse_qsl(query, keep_blank_values=True))


def _all(plans: Iterable[Plan]) -> Iterator[Plan]:
    for plan in plans:
        yield plan
        yield from _all(plan.gathers)


def _listing(title: str, things: Iterable[object]) -> str:
    return "\n  ".join([f"{title}:", *(str(thing) for thing in things)])
