"""Answers that are files: the gateway sends them, and no slot is held by whoever reads slowly."""

from __future__ import annotations

import gzip
import os
import random
from pathlib import Path

import pytest

from conftest import Starter
from support.client import Connection
from support.gateway import resident
from support.story import story

ONE_SLOT = ("--slots=1", "--processes=1")
MODES = ("coroutine", "wsgi")


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    """What is in `tmp_path / "content"`: 24 MiB that compress somewhat."""
    block = random.Random(1).randbytes(1 << 20) + bytes(1 << 19)
    content = b"".join(number.to_bytes(4, "big") + block for number in range(16))
    (tmp_path / "content").write_bytes(content)
    return content


@pytest.mark.parametrize("mode", MODES)
@story(60)
async def test_files_come_whole(start: Starter, tmp_path: Path, content: bytes, mode: str) -> None:
    gateway = start(flags=(*ONE_SLOT, f"--mode={mode}"))
    connection = await Connection.open(gateway.address)
    path = tmp_path / "content"
    for view in ("plain", "parked"):
        answer = await connection.ask("GET", f"/lab/files/{view}?path={path}")
        assert (answer.status, answer.header("content-length")) == (200, str(len(content)))
        assert answer.header("x-frame-options") == "DENY"  # it went through the middleware
        assert answer.body == content

    answer = await connection.ask("GET", f"/lab/files/part?path={path}&start=1000&end=2000999")
    assert (answer.status, answer.header("content-length")) == (206, "2000000")
    assert answer.body == content[1000:2001000]

    answer = await connection.ask("HEAD", f"/lab/files/plain?path={path}")
    assert (answer.status, answer.header("content-length")) == (200, str(len(content)))
    assert answer.body == b""

    (tmp_path / "empty").touch()
    answer = await connection.ask("GET", f"/lab/files/plain?path={tmp_path / 'empty'}")
    assert (answer.status, answer.body) == (200, b"")

    # What a middleware made of it is sent, and not the file behind it.
    accept = [("accept-encoding", "gzip")]
    answer = await connection.ask("GET", f"/lab/files/gzip?path={path}", accept)
    assert answer.header("content-encoding") == "gzip"
    assert gzip.decompress(answer.body) == content

    assert (await connection.ask("GET", "/lab/files/plain?path=/nowhere")).status == 500
    gateway.settles(1)
    (worker,) = gateway.worker_pids()
    assert not [link for link in descriptors(worker) if link.startswith(str(tmp_path))]
    assert not [link for link in descriptors(gateway.pid) if link.endswith("/content")]


@pytest.mark.parametrize("mode", MODES)
@story(60)
async def test_who_does_not_read_holds_no_slot(
    start: Starter, tmp_path: Path, content: bytes, mode: str
) -> None:
    gateway = start(flags=(*ONE_SLOT, f"--mode={mode}"))
    quick = await Connection.open(gateway.address)
    await quick.ask("GET", "/products/teapot/")
    before = resident(gateway.pid)
    slow = [await Connection.open(gateway.address) for _ in range(8)]
    for each in slow:
        each.transport.pause_reading()
        each.send("GET", f"/lab/files/plain?path={tmp_path / 'content'}")
    for _ in range(3):
        assert (await quick.ask("GET", "/products/teapot/")).status == 200
    # Nor are the files in the gateway's memory: they would be 192 MiB.
    assert resident(gateway.pid) - before < 64 << 20
    for each in slow:
        each.transport.resume_reading()
    for each in slow:
        assert (await each.answer()).body == content
    gateway.settles(1)


def descriptors(pid: int) -> list[str]:
    folder = Path(f"/proc/{pid}/fd")
    return [os.readlink(each) for each in folder.iterdir() if each.is_symlink()]
