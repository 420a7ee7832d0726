"""The verdict: what clients saw against what the application, its database and the services say.

Whatever the fault, a request has one outcome, its work is done once or not at all, and what a
client was told is true. A fault excuses statuses, and the work of worker processes that it killed.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from crowd import Attempt, Kind
from support.services import Services
from support.shop import Shop, Traces

# Of a checkout: paid, somebody has to look at it, not paid.
CHECKED_OUT = {200: "paid", 202: "review", 402: "failed"}


@dataclass
class Excuses:
    """What a fault may do to requests that it meets."""

    statuses: frozenset[int] = frozenset()
    # Answers, or connections, may end before they should, visibly.
    cuts: bool = False
    # A service may fail, and with it what was bought there.
    services: bool = False
    # A connection that idled may be closed in the moment when it is used again.
    closes: bool = False


@dataclass
class Verdict:
    requests: int = 0
    answers: Counter[int] = field(default_factory=Counter)
    left: int = 0
    cut: int = 0
    violations: list[str] = field(default_factory=list)

    def against(self, attempt: Attempt | None, what: str) -> None:
        told = f"{what}: {attempt}" if attempt else what
        self.violations.append(told[:600])


@dataclass
class Books:
    """What was done, by reference."""

    ledger: dict[str, Traces]
    # Every event that a view has written down; those of the ledger are among them.
    notes: dict[str, list[str]]
    charges: dict[str, int]

    @classmethod
    def of(cls, shop: Shop, stub: Services, prefix: str) -> Books:
        charges = {name: n for name, n in stub.charges().items() if name.startswith(prefix)}
        return cls(shop.ledger(prefix), shop.notes(prefix), charges)


def judge(attempts: Iterable[Attempt], books: Books, excuses: Excuses, killed: set[int]) -> Verdict:
    verdict = Verdict()
    known = set()
    for attempt in attempts:
        known.add(attempt.reference)
        verdict.requests += 1
        verdict.left += attempt.left
        verdict.cut += attempt.gone is not None
        if attempt.ends != 1:
            verdict.against(attempt, f"{attempt.ends} outcomes")
            continue
        if attempt.answer:
            verdict.answers[attempt.answer.status] += 1
        complain = complaint(attempt, books, excuses, killed)
        if complain:
            verdict.against(attempt, complain)
    for reference in (set(books.ledger) | set(books.notes) | set(books.charges)) - known:
        verdict.against(None, f"work that nobody asked for: {reference}")
    return verdict


def complaint(attempt: Attempt, books: Books, excuses: Excuses, killed: set[int]) -> str:
    """What is wrong with the outcome of a request; empty if nothing is."""
    notes = books.notes.get(attempt.reference, [])
    by_killed = bool(books.ledger.get(attempt.reference, Traces()).pids & killed)
    if attempt.gone is not None:
        closed = excuses.closes and attempt.unanswered and not notes
        if not (excuses.cuts or by_killed or closed):
            return "the connection was cut"
    status = attempt.answer.status if attempt.answer else None
    if status is not None and status not in expected(attempt.kind, excuses):
        return "the fault excuses no such status"
    if status == 503 and notes:
        return f"turned away, but {notes}"
    right: Callable[[Attempt, Books, Excuses, bool], str] = {
        Kind.CHECKOUT: checkout,
        Kind.QUOTE: quote,
        Kind.PAGE: page,
        Kind.UPLOAD: upload,
        Kind.DOWNLOAD: download,
    }[attempt.kind]
    return right(attempt, books, excuses, by_killed)


def expected(kind: Kind, excuses: Excuses) -> set[int]:
    usual = {200}
    if excuses.services:
        usual |= {Kind.CHECKOUT: {202, 402}, Kind.QUOTE: {500}}.get(kind, set())
    return usual | excuses.statuses


def checkout(attempt: Attempt, books: Books, excuses: Excuses, killed: bool) -> str:
    traces = books.ledger.get(attempt.reference, Traces())
    charged = books.charges.get(attempt.reference, 0)
    if traces.events not in ([], ["started"], ["started", "finished"]):
        return f"done more than once: {traces.events}"
    if len(traces.orders) != bool(traces.events) or len(traces.pids) > 1:
        return f"not one order of one process: {traces}"
    if charged > 1 or (charged and not traces.events):
        return f"charged {charged} times after {traces.events}"
    if traces.events == ["started"] and not killed:
        return f"begun and not finished, though its worker lived: {traces}"
    if traces.finished and not charged and not excuses.services:
        return "finished without a charge"
    answer = attempt.answer
    if answer and answer.status in CHECKED_OUT:
        seen = answer.json()
        if not traces.finished:
            return f"told that it is done, but {traces.events}"
        if seen["reference"] != attempt.reference:
            return f"the answer of {seen['reference']}"
        if traces.orders != [CHECKED_OUT[answer.status]]:
            return f"told {answer.status}, but the order is {traces.orders}"
        if answer.status == 200 and charged != 1:
            return "paid, but not charged"
    return ""


def quote(attempt: Attempt, books: Books, excuses: Excuses, killed: bool) -> str:
    notes = books.notes.get(attempt.reference, [])
    if len(notes) != len(set(notes)):
        return f"run more than once: {notes}"
    if notes and notes[0] != "begun":
        return f"it did not begin: {notes}"
    if attempt.answer and attempt.answer.status == 200:
        told = {"begun", "finally", "fetched"}
        if attempt.answer.text == "done" and set(notes) != told:
            return f"told that it is done, but {notes}"
    elif notes and "finally" not in notes and not killed:
        return f"never unwound: {notes}"
    return ""


def page(attempt: Attempt, books: Books, excuses: Excuses, killed: bool) -> str:
    answer = attempt.answer
    if answer and answer.status == 200 and "</html>" not in answer.text:
        return "half a page"
    return ""


def upload(attempt: Attempt, books: Books, excuses: Excuses, killed: bool) -> str:
    notes = books.notes.get(attempt.reference, [])
    if len(notes) > 1:
        return "stored more than once"
    answer = attempt.answer
    if answer and answer.status == 200:
        if not notes:
            return "told that it is stored, but it is not"
        if json.loads(answer.body) != {"size": attempt.size, "sha256": attempt.sha256}:
            return "another body was stored"
    return ""


def download(attempt: Attempt, books: Books, excuses: Excuses, killed: bool) -> str:
    answer = attempt.answer
    if (
        answer
        and answer.status == 200
        and hashlib.sha256(answer.body).hexdigest() != attempt.sha256
    ):
        return f"{len(answer.body)} bytes of another body"
    return ""
