"""The crowd: clients that ask without a pause, and remember what became of every request.

A reference goes with each request to the application, by which its work can be looked up.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from urllib.parse import quote

from lab.pieces import pieces

from support.checkout import JSON, purchase
from support.client import Answer, Connection, Gone

# A client whose connection is refused tries again after so long.
PAUSE = 0.05  # seconds
BINARY = [("content-type", "application/octet-stream")]


class Kind(Enum):
    CHECKOUT = "POST that parks"
    QUOTE = "GET that parks"
    PAGE = "GET that does not"
    UPLOAD = "POST of a large body"
    DOWNLOAD = "GET of a large answer"


# How often each is asked for.
MIX = {Kind.CHECKOUT: 8, Kind.QUOTE: 5, Kind.PAGE: 4, Kind.UPLOAD: 2, Kind.DOWNLOAD: 2}


@dataclass
class Attempt:
    """One request and its outcome: an answer, a connection that ended, or a client that left."""

    reference: str
    kind: Kind
    size: int = 0
    # Seconds until the client leaves; None: it stays. It is rude if it leaves with a reset.
    patience: float | None = None
    rude: bool = False
    answer: Answer | None = None
    gone: str | None = None
    left: bool = False
    # For `gone`: the connection had been used before, and nothing came of this request.
    unanswered: bool = False
    sha256: str = ""

    @property
    def ends(self) -> int:
        return (self.answer is not None) + (self.gone is not None) + self.left


class Crowd:
    """So many clients, from `start` until `finish`, which waits for their last answers."""

    def __init__(
        self,
        prefix: str,
        address: tuple[str, int],
        origin: str,
        dice: random.Random,
        *,
        clients: int,
        leavers: float = 0.0,
        pause: float = 0.0,
        mix: Mapping[Kind, int] = MIX,
    ) -> None:
        self.prefix = prefix
        self.address = address
        self.origin = origin
        self.dice = dice
        self.clients = clients
        self.leavers = leavers
        # Seconds between two requests of a client.
        self.pause = pause
        self.mix = mix
        self.attempts: list[Attempt] = []
        self.refused = 0
        self.over = False
        self.tasks: list[asyncio.Task[None]] = []
        self.numbers = self._numbers()

    def _numbers(self) -> Iterator[int]:
        number = 0
        while True:
            yield number
            number += 1

    def start(self) -> None:
        self.tasks = [asyncio.create_task(self.client()) for _ in range(self.clients)]

    async def finish(self) -> None:
        self.over = True
        await asyncio.gather(*self.tasks)

    async def served(self, count: int) -> None:
        """Waits for so many more answers of 200."""
        wanted = self.good() + count
        while self.good() < wanted:
            await asyncio.sleep(0.05)

    def good(self) -> int:
        return sum(it.answer is not None and it.answer.status == 200 for it in self.attempts)

    async def client(self) -> None:
        connection: Connection | None = None
        while not self.over:
            if connection is None or connection.closed or connection.transport.is_closing():
                try:
                    connection = await Connection.open(self.address)
                except OSError:
                    # Nothing was sent, so nothing can be lost.
                    self.refused += 1
                    await asyncio.sleep(PAUSE)
                    continue
                used = False
            attempt = self.next()
            await self.make(attempt, connection, used=used)
            assert not connection.surplus, (attempt, bytes(connection.surplus[:500]))
            used = True
            await asyncio.sleep(self.pause)
            if attempt.answer and attempt.answer.header("connection") == "close":
                connection.close()
        if connection is not None:
            connection.close()

    def next(self) -> Attempt:
        (kind,) = self.dice.choices(list(self.mix), list(self.mix.values()))
        leaves = self.dice.random() < self.leavers
        attempt = Attempt(
            reference=f"{self.prefix}{next(self.numbers)}",
            kind=kind,
            size=self.dice.choice([0, 3_000, 90_000, 700_000, 2_000_000]),
            patience=self.dice.uniform(0, self.dice.choice([0.05, 0.3, 1])) if leaves else None,
            rude=self.dice.random() < 0.5,
        )
        self.attempts.append(attempt)
        return attempt

    async def make(self, attempt: Attempt, connection: Connection, *, used: bool) -> None:
        reference = attempt.reference
        match attempt.kind:
            case Kind.CHECKOUT:
                connection.send("POST", "/api/checkout", JSON, purchase(reference))
            case Kind.QUOTE:
                url = quote(f"{self.origin}/", safe="")
                connection.send("GET", f"/lab/slow?reference={reference}&url={url}")
            case Kind.PAGE:
                connection.send("GET", "/products/teapot/")
            case Kind.UPLOAD:
                body = random.Random(reference).randbytes(attempt.size)
                attempt.sha256 = hashlib.sha256(body).hexdigest()
                connection.send("POST", f"/lab/drill/store?reference={reference}", BINARY, body)
            case Kind.DOWNLOAD:
                seed = self.dice.getrandbits(30)
                digest = hashlib.sha256()
                for piece in pieces(seed, attempt.size):
                    digest.update(piece)
                attempt.sha256 = digest.hexdigest()
                connection.send("GET", f"/lab/drill/send?seed={seed}&size={attempt.size}")
        try:
            async with asyncio.timeout(attempt.patience):
                attempt.answer = await connection.answer()
        except TimeoutError:
            attempt.left = True
            connection.reset() if attempt.rude else connection.close()
            connection.surplus.clear()
        except Gone as gone:
            attempt.gone = str(gone)
            attempt.unanswered = used and not connection.surplus
            connection.surplus.clear()


class Pages:
    """One client that asks for a page over and over, to see what others do to its waits."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.seconds: list[float] = []
        self.failed: list[str] = []
        self.over = False

    async def run(self) -> None:
        connection: Connection | None = None
        while not self.over:
            began = time.monotonic()
            try:
                if connection is None or connection.closed:
                    connection = await Connection.open(self.address)
                answer = await connection.ask("GET", "/healthz")
                if answer.status != 200:
                    self.failed.append(str(answer.status))
            except (OSError, Gone) as error:
                self.failed.append(repr(error))
            self.seconds.append(time.monotonic() - began)
            await asyncio.sleep(0.02)
        if connection is not None:
            connection.close()
