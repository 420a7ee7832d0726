"""Uploads, files and streams all at once, with clients that leave: everything is given back."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from pathlib import Path

from conftest import TO_THE_STUB, Starter
from support.shop import Shop
from support.story import eventually, story
from test_relay import Reader, TokenOrigin, stream
from test_uploads import LAZY, Uploader

CLIENTS = 240
AT_A_TIME = 40


class Mixed:
    """A crowd of clients, each of which does one thing, and some of which leave."""

    def __init__(self, address: tuple[str, int], origin: TokenOrigin, file: Path) -> None:
        self.address, self.origin, self.file = address, origin, file
        self.content = file.read_bytes()
        self.random = random.Random(7)
        self.streams: set[str] = set()
        self.gate = asyncio.Semaphore(AT_A_TIME)

    async def client(self, number: int) -> None:
        leaves = self.random.random() < 0.3
        what = self.random.choice((self.upload, self.read_file, self.read_stream))
        async with self.gate:
            await what(number, leaves)

    async def upload(self, number: int, leaves: bool) -> None:
        body = bytes([number % 256]) * self.random.randrange(1, 600_000)
        headers = [("content-length", str(len(body))), ("content-type", "text/plain")]
        path = "/lab/uploads/" + self.random.choice(("raw", "refused"))
        async with await Uploader.begin(self.address, path, headers) as uploader:
            await uploader.send(body[: len(body) // 2])
            if leaves:
                uploader.reset()
                return
            try:
                await uploader.send(body[len(body) // 2 :])
            except ConnectionError:
                assert path.endswith("refused")
            expected = hashlib.sha256(body).hexdigest().encode()
            answer = (200, expected) if path.endswith("raw") else (403, b"not you")
            assert await uploader.answer() == answer

    async def read_file(self, number: int, leaves: bool) -> None:
        view = self.random.choice(("plain", "parked"))
        path = f"/lab/files/{view}?path={self.file}"
        async with await Reader.ask(self.address, path) as reader:
            await reader.head()
            assert reader.status == 200
            if not leaves:
                assert await reader.reader.readexactly(len(self.content)) == self.content

    async def read_stream(self, number: int, leaves: bool) -> None:
        reference = f"mix-{number}"
        view = self.random.choice(("plain", "parked"))
        path = stream(self.origin, reference, "/429", view)
        async with await Reader.ask(self.address, path) as reader:
            self.streams.add(reference)
            await reader.head()
            assert reader.status == 429
            if not leaves:
                assert [await reader.token(), await reader.token()] == ["slow", ""]


@story(120)
async def test_whoever_leaves_nothing_is_left(shop: Shop, start: Starter, tmp_path: Path) -> None:
    gateway = start(TO_THE_STUB + LAZY, flags=("--slots=4", "--processes=2"))
    file = tmp_path / "content"
    file.write_bytes(random.Random(2).randbytes(3 << 20))
    async with TokenOrigin() as origin:
        mixed = Mixed(gateway.address, origin, file)
        await asyncio.gather(*(mixed.client(1000 + number) for number in range(12)))
        await asyncio.to_thread(gateway.settles, 4)
        workers = gateway.worker_pids()
        before = {pid: descriptors(pid) for pid in workers}

        await asyncio.gather(*(mixed.client(number) for number in range(CLIENTS)))
        await asyncio.to_thread(gateway.settles, 4)

    # Every stream has ended once, whether its client waited for that or not.
    def ends() -> bool:
        notes = shop.notes("mix-")
        return notes.keys() == mixed.streams and {len(each) for each in notes.values()} == {1}

    await eventually("not every stream has ended once", ends, 20)
    assert gateway.worker_pids() == workers
    # One more or less may be the connection to the database, or its being tested.
    for pid in workers:
        assert descriptors(pid) <= before[pid] + 4, os.listdir(f"/proc/{pid}/fd")
    for pid in (*workers, gateway.pid):
        assert not [each for each in open_files(pid) if each.startswith(str(file))]


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def open_files(pid: int) -> list[str]:
    folder = Path(f"/proc/{pid}/fd")
    return [os.readlink(each) for each in folder.iterdir() if each.is_symlink()]
