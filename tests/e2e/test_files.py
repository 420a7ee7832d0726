"""Answers that are files: the gateway sends them, and no slot is held by whoever reads slowly."""

from __future__ import annotations

import gzip
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

from conftest import Starter
from support.client import Connection
from support.gateway import resident
from support.shop import Shop
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


HANDED_OFF = {
    "nginx": '[[static]]\npath = "/protected"\nroot = "{media}"\ninternal = true\n',
    "xsendfile": 'sendfile_root = "{media}"\n',
}


@pytest.mark.parametrize("backend", HANDED_OFF)
@story(60)
async def test_django_sendfile2_hands_files_off(
    start: Starter, tmp_path: Path, content: bytes, backend: str
) -> None:
    media = tmp_path / "media"
    (media / "a b").mkdir(parents=True)
    (tmp_path / "content").rename(media / "a b" / "ä 100%.pdf")
    gateway = start(
        HANDED_OFF[backend].format(media=media),
        flags=ONE_SLOT,
        LAB_SENDFILE=backend,
        LAB_MEDIA=str(media),
    )
    connection = await Connection.open(gateway.address)
    # The header of the other backend holds Latin-1 at most.
    name = "a b/ä 100%.pdf" if backend == "nginx" else "a b/plain 100%.pdf"
    if backend == "xsendfile":
        (media / "a b" / "ä 100%.pdf").rename(media / name)
    target = f"/lab/files/named?name={quote(name)}"
    answer = await connection.ask("GET", f"{target}&save=1")
    assert (answer.status, answer.header("content-length")) == (200, str(len(content)))
    assert answer.header("content-type") == "application/pdf"
    assert (answer.header("content-disposition") or "").startswith("attachment; filename=")
    assert (answer.header("set-cookie") or "").startswith("seen=1")
    assert answer.header("x-frame-options") == "DENY"  # it went through the middleware
    assert answer.header("x-accel-redirect") is None
    assert answer.header("x-sendfile") is None
    assert answer.body == content

    etag = answer.header("etag")
    assert etag is not None
    answer = await connection.ask("GET", target, [("range", "bytes=1000-1999")])
    assert (answer.status, answer.body) == (206, content[1000:2000])
    assert answer.header("content-range") == f"bytes 1000-1999/{len(content)}"
    answer = await connection.ask("GET", target, [("if-none-match", etag)])
    assert (answer.status, answer.body) == (304, b"")
    answer = await connection.ask("HEAD", target)
    assert (answer.status, answer.header("content-length")) == (200, str(len(content)))
    assert (await connection.ask("GET", "/lab/files/named?name=none")).status == 404
    assert (await connection.ask("GET", f"/protected/{quote(name)}")).status == 404
    gateway.settles(1)
    assert "shorter than its Content-Length" not in gateway.log


@story(60)
async def test_static_files_of_django_come_without_a_slot(
    start: Starter, shop: Shop, tmp_path: Path
) -> None:
    root = tmp_path / "static"
    collected = {**shop.environment, "LAB_STATIC": str(root)}
    command = [sys.executable, "-m", "django", "collectstatic", "--noinput", "-v0"]
    subprocess.run(command, env=collected, check=True)
    configuration = f"""
        [[static]]
        path = "/static"
        root = "{root}"
        immutable = "hashed"
        [compression]
        algorithms = ["gzip"]
    """
    gateway = start(configuration, flags=ONE_SLOT, LAB_STATIC=str(root))
    connection = await Connection.open(gateway.address)
    page = await connection.ask("GET", "/admin/login/")
    names = re.findall(r'(?:href|src)="(/static/[^"]+)"', page.body.decode())
    assert any(name.endswith(".css") for name in names), names
    busy = gateway.metric("layby_slot_busy_seconds_count")
    for name in names:
        answer = await connection.ask("GET", name, [("accept-encoding", "gzip")])
        assert answer.status == 200, name
        assert answer.header("cache-control") == "public, max-age=31536000, immutable"
        expected = (root / name.removeprefix("/static/")).read_bytes()
        coding = "gzip" if len(expected) >= 1024 else None
        assert answer.header("content-encoding") == coding, name
        assert (gzip.decompress(answer.body) if coding else answer.body) == expected
    manifest = await connection.ask("GET", "/static/staticfiles.json")
    assert (manifest.status, manifest.header("cache-control")) == (200, None)
    assert (await connection.ask("GET", "/static/none.css")).status == 404
    assert gateway.metric("layby_slot_busy_seconds_count") == busy


def descriptors(pid: int) -> list[str]:
    folder = Path(f"/proc/{pid}/fd")
    return [os.readlink(each) for each in folder.iterdir() if each.is_symlink()]
