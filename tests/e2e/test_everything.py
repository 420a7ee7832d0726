"""Every recipe at once, for many users, languages and tenants: nobody ever sees another's.

Random requests, some of whose clients leave or are slow, while workers are recycled. The views
(apps/mixed) compare at every step what is around them with what their request says it is; here
the answers are checked against what was asked, then what is in each tenant's tables, and what is
left of it all in gateway and workers. `E2E_SEED` and `E2E_REQUESTS` choose another run.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import os
import random
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from conftest import Starter
from support.client import Answer, Browser, Connection, Gone
from support.gateway import Gateway
from support.postgres import Postgres, watching
from support.services import Services
from support.shop import PASSWORD, USERS, Shop
from support.story import eventually, story

SEED = int(os.environ.get("E2E_SEED", "20261122"))
# Three of ten are for greenlet mode.
REQUESTS = int(os.environ.get("E2E_REQUESTS", "10000"))
AT_ONCE = 64
SLOTS = 6
PROCESSES = 2

TENANTS = ("acme", "globex", "hooli", "initech", "umbrella")
MONDAY = {"en": "Monday", "de": "Montag", "fr": "lundi", "es": "lunes"}
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Tokyo", "Australia/Sydney")

CONFIGURATION = f"""
[slots]
count = {SLOTS}
queue_timeout = "30s"

[workers]
processes = {PROCESSES}
thread_locals = ["mixed.state.current"]

[outbound]
allow = ["127.0.0.1"]

[[route]]
path = "/mixed/photo"
body = "lazy"
"""

# How often each is asked for. What is heavy and tells no more when repeated comes less often.
RECIPES = {
    "plain": 6,
    "private": 4,
    "form": 4,
    "get": 10,
    "gather": 6,
    "sleep": 4,
    "shielded": 4,
    "raises": 3,
    "atomic": 3,
    "ledger": 8,
    "last_words": 4,
    "io": 6,
    "beside": 5,
    "parallel": 5,
    "result": 4,
    "by_requests": 4,
    "by_httpx": 4,
    "by_async_httpx": 4,
    "upload": 4,
    "photo": 5,
    "stream": 5,
    "lines": 4,
    "file": 4,
    "relay": 5,
}
UNSAFE = {"form", "ledger", "upload", "photo"}
PIECEWISE = {"stream", "lines"}
FILES = {"upload", "photo"}


@dataclass
class Person:
    """One client: a user, or nobody, on a keep-alive connection."""

    user: str
    cookies: dict[str, str]


@dataclass
class Attempt:
    """One request, what its client is up to, and what became of it."""

    recipe: str
    nonce: str
    tenant: str
    language: str
    zone: str
    latency: int  # ms, of its third parties
    size: int  # bytes of its body, or repetitions of a file's content
    patience: float | None  # seconds until the client leaves; None: it stays
    rude: bool  # it leaves with a reset
    slow: bool
    user: str = ""
    answer: Answer | None = None
    left: bool = False
    content: bytes = field(default=b"", repr=False)

    @property
    def own(self) -> dict[str, str]:
        return {
            "nonce": self.nonce,
            "tenant": self.tenant,
            "user": self.user,
            "language": self.language,
            "monday": MONDAY[self.language],
            "timezone": self.zone,
        }

    @property
    def refused(self) -> bool:
        """Whether it is sent away, as it is only for those who are logged in."""
        return self.recipe in ("private", "photo") and not self.user

    def body(self) -> tuple[list[tuple[str, str]], bytes]:
        if self.recipe not in UNSAFE:
            return [], b""
        dice = random.Random(self.nonce)
        self.content = dice.randbytes(self.size)
        if self.recipe not in FILES:
            # The origin says it back as text.
            return [("content-type", "application/octet-stream")], self.content
        # Long enough not to be in what is random.
        mark = f"--boundary-of-{self.nonce}"
        head = f"\r\n{mark}\r\nContent-Disposition: form-data; name="
        start = f'{head}"title"\r\n\r\n{self.nonce}{head}"photo"; filename="p"\r\n\r\n'
        body = b"%s%s\r\n%s--\r\n" % (start[2:].encode(), self.content, mark.encode())
        return [("content-type", f"multipart/form-data; boundary={mark[2:]}")], body


def attempts(dice: random.Random, count: int, name: str) -> Iterator[Attempt]:
    for number in range(count):
        (recipe,) = dice.choices(list(RECIPES), list(RECIPES.values()))
        leaves = dice.random() < 0.2  # Half of them are answered before they mean to.
        large = dice.random() < 0.1
        yield Attempt(
            recipe=recipe,
            nonce=f"{name}-{number}",
            tenant=dice.choice(TENANTS),
            language=dice.choice(list(MONDAY)),
            zone=dice.choice(ZONES),
            # Whoever leaves shall have something to leave.
            latency=dice.randrange(100, 1500) if leaves else dice.randrange(5, 50),
            size=dice.randrange(1, 300_000 if large and recipe in FILES else 3000),
            patience=dice.uniform(0, dice.choice([0.03, 0.3, 1, 4])) if leaves else None,
            rude=dice.random() < 0.5,
            slow=dice.random() < 0.05,
        )


async def make(attempt: Attempt, person: Person, connection: Connection) -> None:
    """Ask for it, and leave or wait."""
    attempt.user = person.user
    kind, body = attempt.body()
    headers = [
        ("host", f"{attempt.tenant}.example.com"),
        ("accept-language", attempt.language),
        ("x-nonce", attempt.nonce),
        ("x-user", attempt.user),
        ("x-timezone", attempt.zone),
        ("cookie", "; ".join(f"{name}={value}" for name, value in person.cookies.items())),
        ("x-csrftoken", person.cookies["csrftoken"]),
        *kind,
    ]
    path = f"/mixed/{attempt.recipe}?latency={attempt.latency}&times={attempt.size}"
    method = "POST" if attempt.recipe in UNSAFE else "GET"
    try:
        async with asyncio.timeout(attempt.patience):
            now = len(body) // 2 if attempt.slow or attempt.patience is not None else len(body)
            connection.send(method, path, headers, body[:now], later=len(body) - now)
            if now < len(body):
                await asyncio.sleep(0.02)
                connection.go_on(body[now:])
            if attempt.slow and not connection.closed:
                connection.transport.pause_reading()
                await asyncio.sleep(0.1)
                connection.transport.resume_reading()
            attempt.answer = await connection.answer()
    except TimeoutError:
        attempt.left = True
        connection.reset() if attempt.rude else connection.close()


async def client(gateway: Gateway, person: Person, work: list[Attempt]) -> None:
    connection = await Connection.open(gateway.address)
    for attempt in work:
        if connection.closed or connection.transport.is_closing():
            connection = await Connection.open(gateway.address)
        try:
            await make(attempt, person, connection)
        except Gone as gone:
            raise AssertionError(f"{attempt} was cut: {gone}") from gone
        if attempt.answer is not None:
            assert not connection.surplus, (attempt, bytes(connection.surplus[:500]))
        assert_own(attempt)
        if attempt.answer is not None and attempt.answer.header("connection") == "close":
            await connection.ended()
    connection.close()


def assert_own(attempt: Attempt) -> None:
    """The answer is to this request, in every part."""
    answer = attempt.answer
    if answer is None:
        return
    status = {"private": 302, "photo": 401}[attempt.recipe] if attempt.refused else 200
    if attempt.recipe == "raises":
        status = 500
    assert answer.status == status, (attempt, answer.text[:2000])
    assert answer.header("content-language") == attempt.language, attempt
    if status != 200:
        return
    begun = [attempt.tenant, "begun"]
    if attempt.recipe == "file":
        assert answer.body == attempt.nonce.encode() * attempt.size, attempt
        said = json.loads(answer.header("own") or "")
    elif attempt.recipe == "relay":
        query = answer.json()["query"]
        assert (query["nonce"], query["label"]) == (attempt.nonce, "stream"), attempt
        said = json.loads(answer.header("own") or "")
    elif attempt.recipe in PIECEWISE:
        *pieces, said = [json.loads(line) for line in answer.text.splitlines()]
        assert pieces == [attempt.own] * 3, attempt
    else:
        said = answer.json()
    assert {name: said[name] for name in attempt.own} == attempt.own, (attempt, said)
    rows = said["rows"]
    assert rows[0] == begun, (attempt, rows)
    assert {tenant for tenant, _ in rows} == {attempt.tenant}, (attempt, rows)
    if attempt.content:
        assert said["digest"] == hashlib.sha256(attempt.content).hexdigest(), attempt
    if attempt.recipe in FILES:
        assert said["title"] == attempt.nonce, attempt
    if attempt.recipe == "get":
        assert said["told"] == [attempt.nonce], attempt


def assert_whole(attempt: Attempt, events: list[str]) -> None:
    """What was begun was ended, once; what may not be cancelled was not."""
    counts = Counter(events)
    if attempt.refused:
        assert events == [], (attempt, events)
        return
    if not events:
        assert attempt.left, (attempt, "was answered and never ran")
        return
    relayed = [event for event in events if event.startswith("stream ")]
    assert counts["begun"] == counts["ended"] == 1, (attempt, events)
    assert counts["cancelled"] <= (1 if attempt.left else 0), (attempt, events)
    if attempt.recipe in ("form", "ledger", "upload", "shielded"):
        assert not counts["cancelled"], (attempt, events)
    match attempt.recipe:
        case "ledger":
            assert events == ["begun", "paying", "paid", "ended"], (attempt, events)
        case "shielded":
            assert events == ["begun", "seen through", "ended"], (attempt, events)
        case "relay":
            assert len(relayed) <= 1, (attempt, events)
            if attempt.answer is not None:
                assert relayed == ["stream complete"], (attempt, events)
        case "last_words":
            assert counts["last words"] == 1, (attempt, events)
        case "atomic":
            assert "rolled back" not in events, (attempt, events)


def make_schemas(shop: Shop) -> None:
    """A table for each tenant. That of nobody takes what would otherwise be written astray."""
    with shop.server.connect(shop.database) as connection:
        for tenant in (*TENANTS, "no_tenant"):
            connection.execute(f"CREATE SCHEMA {tenant} AUTHORIZATION shop")
            connection.execute(
                f"CREATE TABLE {tenant}.notes (id serial, tenant text DEFAULT '{tenant}',"
                " reference text, event text, pid int)"
            )
            connection.execute(f"CREATE INDEX ON {tenant}.notes (reference)")
            connection.execute(f"ALTER TABLE {tenant}.notes OWNER TO shop")


def events_of(shop: Shop) -> dict[str, list[tuple[str, str]]]:
    """Of every reference, in which tenant's table it is, and what was written there."""
    found: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for tenant in (*TENANTS, "no_tenant"):
        for reference, event in shop.query(
            f"SELECT reference, event FROM {tenant}.notes ORDER BY id"
        ):
            found[reference].append((tenant, event))
    return found


async def people(gateway: Gateway) -> list[Person]:
    """Everybody logged in who has a name; every eighth has none."""

    async def come(number: int) -> Person:
        browser = Browser(gateway.address)
        user = "" if number % 8 == 7 else f"user{number % USERS + 1:02}"
        if user:
            await browser.log_in(user, PASSWORD)
        else:
            await browser.get("/login/")
        browser.close()
        return Person(user, browser.cookies)

    return await asyncio.gather(*(come(number) for number in range(AT_ONCE)))


async def run(gateway: Gateway, persons: list[Person], work: list[Attempt]) -> None:
    async with asyncio.TaskGroup() as tasks:
        for number, person in enumerate(persons):
            tasks.create_task(client(gateway, person, work[number::AT_ONCE]))


async def recycle(gateway: Gateway, over: asyncio.Event) -> int:
    """Replace all workers, again and again; how often."""
    rounds = 0
    while not over.is_set():
        await asyncio.sleep(2)
        gateway.signal(signal.SIGHUP)
        rounds += 1
        await eventually(
            "not all workers are replaced",
            functools.partial(_replaced, gateway, rounds * PROCESSES),
            90,
        )
    return rounds


def _replaced(gateway: Gateway, wanted: int) -> bool:
    return len(gateway.lines_with("worker replaced")) == wanted


async def left(gateway: Gateway, folder: Path) -> dict[int, dict[str, Any]]:
    """What is alive in each worker process, when nothing is asked of it."""
    await asyncio.to_thread(gateway.settles, SLOTS, 60)
    found = {}
    for pid in await asyncio.to_thread(gateway.worker_pids):
        file = folder / str(pid)
        file.unlink(missing_ok=True)
        os.kill(pid, signal.SIGUSR1)
        await eventually("the worker says nothing", file.exists, 20)
        found[pid] = json.loads(file.read_text())
    return found


@pytest.mark.parametrize("mode", ["coroutine", "greenlet"])
@story(600)
async def test_random_requests_of_every_recipe_meet_nothing_but_their_own(
    shop: Shop, stub: Services, start: Starter, postgres: Postgres, tmp_path: Path, mode: str
) -> None:
    print(f"\nseed {SEED}")
    count = REQUESTS * (7 if mode == "coroutine" else 3) // 10
    dice = random.Random(f"{SEED} {mode}")
    work = list(attempts(dice, count, mode))
    # While workers are recycled; until the new ones have done everything once; the rest.
    recycled, first, rest = (
        work[: count * 6 // 10],
        work[count * 6 // 10 : count * 7 // 10],
        work[count * 7 // 10 :],
    )
    make_schemas(shop)
    gateway = start(
        CONFIGURATION,
        app="mixed.wsgi:application",
        flags=(f"--mode={mode}",),
        DJANGO_SETTINGS_MODULE="mixed.settings",
        MIXED_LEFT=str(tmp_path),
    )
    persons = await people(gateway)
    await asyncio.to_thread(gateway.settles, SLOTS)
    descriptors = gateway.descriptors()

    began = time.monotonic()
    with watching(postgres, every=0.02) as watch:
        over = asyncio.Event()
        recycling = asyncio.create_task(recycle(gateway, over))
        await run(gateway, persons, recycled)
        over.set()
        rounds = await recycling
        await run(gateway, persons, first)
        before = await left(gateway, tmp_path)
        await run(gateway, persons, rest)
        after = await left(gateway, tmp_path)
    seconds = time.monotonic() - began

    answered = [attempt for attempt in work if attempt.answer is not None]
    moved = sum(
        attempt.answer.header("lab-began-on") != attempt.answer.header("lab-ended-on")
        for attempt in answered
        if attempt.answer is not None
    )
    written = events_of(shop)
    everything = [event for events in written.values() for _, event in events]
    cancelled = everything.count("cancelled")
    print(
        f"{mode}: {count} requests in {seconds:.0f} s, {len(work) - len(answered)} clients left,"
        f" {cancelled} requests were cancelled, {moved} changed their thread,"
        f" all workers were replaced {rounds} times; most database connections {watch.most}"
    )
    assert all((attempt.answer is not None) != attempt.left for attempt in work)
    # Else this means less than it says.
    assert {attempt.recipe for attempt in answered} == set(RECIPES)
    assert len(work) - len(answered) > len(work) / 20
    assert cancelled > len(work) / 200
    assert moved > len(answered) / 5 if mode == "coroutine" else moved == 0

    # Nothing foreign, seen by the client or by the views.
    assert not gateway.lines_with("FOREIGN")
    for attempt in work:
        events = written.pop(attempt.nonce, [])
        assert {tenant for tenant, _ in events} <= {attempt.tenant}, (attempt, events)
        assert_whole(attempt, [event for _, event in events])
    assert written == {}

    # No connection more than slots, and no slot lost.
    assert watch.most <= SLOTS, watch.at_the_most
    # No worker died of it.
    restarts = "layby_worker_restarts_total"
    assert gateway.metric(restarts) == gateway.metric(restarts, reason="reload")

    # Nothing is left of it: no request, coroutine, greenlet, task, thread or descriptor.
    assert after.keys() == before.keys()
    for pid, process in after.items():
        assert not any(process["of requests"].values()), process
        assert process["threads"] == before[pid]["threads"]
        assert len(process["descriptors"]) <= len(before[pid]["descriptors"]), (before, after)
    stub.end()
    await asyncio.to_thread(gateway.gives_back, descriptors, 30)
