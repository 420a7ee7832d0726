"""Real requests through the gateway, each answer checked.

Many logged-in buyers in two languages check out at the same time, with services that take their
time, while others look at product pages. What comes back must belong to who asked for it; what
went into the database and to the payment service must have gone there once.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import re
import statistics
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

USERS = 40
PRODUCTS = [("teapot", "Teapot", "24.90"), ("cup", "Cup", "6.50"), ("kettle", "Kettle", "39.00")]
THANKS = {"en": "Thank you, {}! It is paid.", "de": "Danke, {}! Es ist bezahlt."}
# Of product pages: more would measure this program, which shares the machine.
READERS = 2
READ_EVERY = 0.01
IDLE_PAGES = 100


class Broken(Exception):
    """Not even a wrong answer: the run cannot go on."""


@dataclass(frozen=True)
class Target:
    shop: str
    admin: str
    services: str
    gateway: int  # its process id
    slots: int
    database: str  # path of the SQLite file, or URL of PostgreSQL


@dataclass
class Report:
    target: Target
    checkouts: int
    latency: float
    prefix: str
    requests: int = 0
    wall: float = 0.0
    idle_pages: list[float] = field(default_factory=list)
    busy_pages: list[float] = field(default_factory=list)
    connections: int | None = None
    waits_in_place: float = 0.0
    moved: int = 0  # checkouts that ended on another thread than they began on
    most_asked: int = 0  # requests that the services had in hand at once
    buyers: dict[str, str] = field(default_factory=dict)  # reference: user
    charges: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def expect(self, seen: object, wanted: object, what: str) -> None:
        if seen != wanted:
            self.wrong.append(f"{what}: {seen!r} instead of {wanted!r}")


class Browser:
    """One client with its connection, its cookies and its language."""

    def __init__(self, base: str, language: str = "en") -> None:
        parts = urlsplit(base)
        self.connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
        self.language = language
        self.cookies: dict[str, str] = {}
        self.sent = 0

    def ask(
        self, method: str, path: str, body: str | None = None, kind: str = ""
    ) -> tuple[int, str, http.client.HTTPMessage]:
        headers = {"Accept-Language": self.language}
        if self.cookies:
            pairs = (f"{name}={value}" for name, value in self.cookies.items())
            headers["Cookie"] = "; ".join(pairs)
        if kind:
            headers["Content-Type"] = kind
        self.sent += 1
        try:
            self.connection.request(method, path, body, headers)
            response = self.connection.getresponse()
            text = response.read().decode()
        except (OSError, http.client.HTTPException) as error:
            self.connection.close()
            raise Broken(f"{method} {path}: {error!r}") from error
        for line in response.headers.get_all("Set-Cookie", []):
            self.cookies |= {name: morsel.value for name, morsel in SimpleCookie(line).items()}
        return response.status, text, response.headers

    def get(self, path: str) -> tuple[int, str]:
        status, text, _ = self.ask("GET", path)
        return status, text

    def post(self, path: str, **fields: str) -> tuple[int, str]:
        """Send a form, with its CSRF token; follow the redirect, as browsers do."""
        sent = urlencode({**fields, "csrfmiddlewaretoken": self.cookies.get("csrftoken", "")})
        status, text, headers = self.ask("POST", path, sent, "application/x-www-form-urlencoded")
        return self.get(headers["Location"]) if status == 302 else (status, text)

    def post_json(self, path: str, value: object) -> tuple[int, str]:
        status, text, _ = self.ask("POST", path, json.dumps(value), "application/json")
        return status, text

    def log_in(self, user: str) -> None:
        self.get("/login/")
        status, _ = self.post("/login/", username=user, password="demo")
        if status != 200 or "sessionid" not in self.cookies:
            raise Broken(f"{user} could not log in: status {status}")


def drive(
    target: Target, *, checkouts: int, latency: float, pause: Callable[[float], None]
) -> Report:
    """Everything but the ledger, which `audit` reads. `pause` may raise, to stop the run."""
    report = Report(target, checkouts, latency, prefix=f"once-{uuid.uuid4().hex[:8]}-")
    Browser(target.services).post_json("/control/reset", {})

    buyers = [
        Browser(target.shop, language=("en", "de")[number % 2]) for number in range(checkouts)
    ]
    together(
        [partial(buyer.log_in, user_of(number)) for number, buyer in enumerate(buyers)],
        pause,
        at_once=8,
    )
    report.idle_pages = read_pages(report, until=lambda read: read >= IDLE_PAGES)
    walk(report)

    over = threading.Event()
    watch = threading.Thread(target=watch_connections, args=(report, over), daemon=True)
    watch.start()
    readers = [
        threading.Thread(target=read_while, args=(report, over), daemon=True)
        for _ in range(READERS)
    ]
    for reader in readers:
        reader.start()
    began = time.monotonic()
    try:
        together(
            [partial(buy, report, number, buyer) for number, buyer in enumerate(buyers)], pause
        )
    finally:
        report.wall = time.monotonic() - began
        over.set()
    for thread in (watch, *readers):
        thread.join(timeout=60)

    if report.connections is not None and report.connections > target.slots:
        report.wrong.append(f"{report.connections} database connections on {target.slots} slots")
    check_gateway(report, pause)
    services = Browser(target.services)
    report.charges = json.loads(services.get("/control/charges")[1])
    report.most_asked = json.loads(services.get("/control")[1])["most_held"]
    report.requests += sum(buyer.sent for buyer in buyers)
    return report


def together(
    jobs: list[Callable[[], None]], pause: Callable[[float], None], at_once: int | None = None
) -> None:
    """Run the jobs in threads; an exception of one is raised here, when all have ended."""
    failures: list[BaseException] = []
    turns = threading.Semaphore(at_once or len(jobs))

    def run(job: Callable[[], None]) -> None:
        with turns:
            try:
                job()
            except Exception as error:  # noqa: BLE001 (raised again by the caller)
                failures.append(error)

    threads = [threading.Thread(target=run, args=(job,), daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        pause(0.01)
    if failures:
        raise failures[0]


def user_of(number: int) -> str:
    return f"user{number % USERS + 1:02}"


def buy_at(moment: float, report: Report, number: int, browser: Browser) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))
    buy(report, number, browser)


def buy(report: Report, number: int, browser: Browser) -> None:
    """One checkout by the API, and whether its answer is its own."""
    reference = f"{report.prefix}{number}"
    user, language, token = user_of(number), browser.language, uuid.uuid4().hex
    report.buyers[reference] = user
    status, text = browser.post_json(
        "/api/checkout",
        {
            "reference": reference,
            "token": token,
            "name": user.title(),
            "zip": "80331",
            "lines": [{"product": "teapot", "quantity": 1}, {"product": "cup", "quantity": 2}],
            "latency": report.latency * 1000,
        },
    )
    if status != 200:
        report.wrong.append(f"{reference}: status {status}, {text[:200]!r}")
        return
    answer: dict[str, Any] = json.loads(text)
    for key, wanted in {
        "reference": reference,
        "token": token,
        "user": user,
        "language": language,
        "status": "paid",
        "total": "37.90",
        "messages": [THANKS[language].format(user.title())],
    }.items():
        report.expect(answer.get(key), wanted, f"{reference}: {key}")
    secret = unmask(answer.get("csrf", ""))
    report.expect(secret, browser.cookies.get("csrftoken"), f"{reference}: csrf")
    report.moved += answer.get("began_on") != answer.get("on")


def unmask(token: str) -> str:
    """The secret in one of Django's CSRF tokens: a random mask, then the secret shifted by it."""
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
    half = len(token) // 2
    pairs = zip(token[:half], token[half:], strict=False)
    return "".join(
        letters[(letters.find(sum_) - letters.find(mask)) % len(letters)] for mask, sum_ in pairs
    )


def walk(report: Report) -> None:
    """One purchase as a person does it: pages, forms, cart in the session, redirect, message."""
    browser = Browser(report.target.shop, language="de")
    browser.log_in("user01")
    browser.get("/products/kettle/")
    status, text = browser.post("/products/kettle/add/", quantity="1")
    report.expect((status, "Kettle liegt im Warenkorb." in text), (200, True), "walk: cart")
    _, text = browser.get("/checkout/")
    found = re.search(r'name="reference" value="(\w+)"', text)
    report.expect(found is not None, True, "walk: checkout form")
    reference = f"{report.prefix}walk"
    report.buyers[reference] = "user01"
    status, text = browser.post(
        "/checkout/",
        reference=reference,
        name="Ada",
        street="Main 1",
        zip="80331",
        city="Munich",
        card="good",
    )
    report.expect(status, 200, "walk: order page")
    for wanted in (reference, THANKS["de"].format("Ada"), "39,00 €", "user01 abmelden"):
        report.expect(wanted in text, True, f"walk: {wanted!r} on the order page")
    report.requests += browser.sent


def read_while(report: Report, over: threading.Event) -> None:
    try:
        report.busy_pages += read_pages(report, until=lambda read: over.is_set())
    except Broken as error:
        report.wrong.append(f"a product page: {error}")


def read_pages(report: Report, until: Callable[[int], bool]) -> list[float]:
    """Look at product pages in turn until told that it is enough; the seconds each took."""
    browser = Browser(report.target.shop)
    took: list[float] = []
    while not until(len(took)):
        slug, name, price = PRODUCTS[len(took) % len(PRODUCTS)]
        began = time.monotonic()
        status, text = browser.get(f"/products/{slug}/")
        took.append(time.monotonic() - began)
        if status != 200 or f"<h1>{name}</h1>" not in text or f"{price} €" not in text:
            report.wrong.append(f"product page {slug}: status {status}, {text[:200]!r}")
        time.sleep(READ_EVERY)
    report.requests += browser.sent
    return took


def watch_connections(report: Report, over: threading.Event) -> None:
    """Sample how many database connections the workers have open; keep the most."""
    count = connection_counter(report.target)
    while count is not None and not over.wait(0.05):
        report.connections = max(report.connections or 0, count())


def connection_counter(target: Target) -> Callable[[], int] | None:
    if target.database.startswith(("postgres://", "postgresql://")):
        import psycopg

        watching = psycopg.connect(target.database, autocommit=True)
        question = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )

        def activity() -> int:
            row = watching.execute(question).fetchone()
            return int(row[0]) if row else 0

        return activity
    if Path("/proc/self/fd").exists():
        return lambda: open_files(target.database, descendants(target.gateway))
    return None  # Neither: the report says so.


def descendants(root: int) -> set[int]:
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path("/proc", entry, "stat").read_text()
            except OSError:
                continue  # It has ended meanwhile.
            # The name, in parentheses, may hold anything, more parentheses included.
            parents[int(entry)] = int(stat.rpartition(")")[2].split()[1])
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def open_files(path: str, processes: set[int]) -> int:
    """How often the processes have this file open: SQLite opens it once per connection."""
    count = 0
    for process in processes:
        try:
            for entry in os.scandir(f"/proc/{process}/fd"):
                count += os.readlink(entry.path) == path
        except OSError:
            continue  # The process or the descriptor has gone meanwhile.
    return count


def check_gateway(report: Report, pause: Callable[[float], None]) -> None:
    """Afterwards every slot is idle and nobody parked."""
    wanted = {'layby_slots{state="idle"}': float(report.target.slots), "layby_parked_requests": 0.0}
    patience = time.monotonic() + 2
    while True:
        metrics = read_metrics(Browser(report.target.admin).get("/metrics")[1])
        seen = {name: metrics.get(name) for name in wanted}
        if seen == wanted or time.monotonic() > patience:
            break
        pause(0.05)
    report.expect(seen, wanted, "the gateway afterwards")
    report.waits_in_place = sum(
        value for name, value in metrics.items() if name.startswith("layby_waits_in_place_total")
    )


def read_metrics(text: str) -> dict[str, float]:
    lines = (line.rpartition(" ") for line in text.splitlines() if line and line[0] != "#")
    return {name: float(value) for name, _, value in lines}


def audit(report: Report, ledger: dict[str, Any]) -> None:
    """Compare the shop's ledger and the payment service's with what was bought."""
    report.expect(set(ledger), set(report.buyers), "references in the database")
    charged = {name for name in report.charges if name.startswith(report.prefix)}
    report.expect(charged, set(report.buyers), "references charged")
    for reference, user in report.buyers.items():
        entry = ledger.get(reference, {"orders": []})
        times = (entry.get("started"), entry.get("finished"), len(entry["orders"]))
        report.expect(times, (1, 1, 1), f"{reference}: started, finished, orders")
        for order in entry["orders"]:
            seen = (order["user"], order["status"])
            report.expect(seen, (user, "paid"), f"{reference}: order in the database")
        report.expect(report.charges.get(reference), 1, f"{reference}: charges")


def summary(report: Report) -> str:
    slots, checkouts, latency = report.target.slots, report.checkouts, report.latency
    rounds = math.ceil(checkouts / slots)
    connections = "not counted here" if report.connections is None else str(report.connections)
    lines = [
        f"{report.requests} requests; of them {checkouts} checkouts side by side, each asking"
        f" three services that take {latency:g} s",
        f"  wall time of the checkouts   {report.wall:.2f} s on {slots} slots;"
        f" {report.moved} went on in another thread",
        f"  most asked of the services   {report.most_asked} requests at once",
        f"  most database connections    {connections}",
        f"  product pages, idle gateway  {quantiles(report.idle_pages)}",
        f"  product pages, meanwhile     {quantiles(report.busy_pages)}",
        f"  without parking              {slots} threads need at least {rounds * latency:.1f} s;"
        f" to match, {checkouts} threads and {checkouts} connections",
    ]
    if report.waits_in_place:
        lines.append(
            f"  waited in place              {report.waits_in_place:.0f} times, see the log"
        )
    return "\n".join(lines)


def quantiles(seconds: list[float]) -> str:
    if len(seconds) < 2:
        return "none read"
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return (
        f"{len(seconds)} read, median {cuts[49] * 1000:.1f} ms,"
        f" 99th percentile {cuts[98] * 1000:.1f} ms"
    )
