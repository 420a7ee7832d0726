"""Uploads that the application asks for, or does not, with Django's whole middleware."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections.abc import Iterable

import pytest

from conftest import Starter
from support.client import Address, Browser, Connection
from support.gateway import resident
from support.shop import PASSWORD, Shop
from support.story import eventually, story

LAZY = """
[[route]]
path = "/lab/uploads"
body = "lazy"
max_body = "5GiB"

[[route]]
path = "/lab/uploads/photo"
methods = ["POST"]
body = "lazy"
max_body = "64MiB"
"""
ONE_SLOT = ("--slots=1", "--processes=1")
PHOTO = random.Random(1).randbytes(20 << 20)
# What a client can put into the sockets' buffers without anybody reading it.
BUFFERS = 24 << 20


def form(**fields: str) -> tuple[tuple[str, str], bytes, bytes]:
    """The content type of a form with the photo, and what goes before and after the photo."""
    start = b""
    for name, value in fields.items():
        start += f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
    start += b'--x\r\nContent-Disposition: form-data; name="photo"; filename="cat.jpg"\r\n\r\n'
    return ("content-type", "multipart/form-data; boundary=x"), start, b"\r\n--x--\r\n"


def whole_form(**fields: str) -> tuple[tuple[str, str], bytes]:
    kind, start, end = form(**fields)
    return kind, start + PHOTO + end


class Uploader:
    """A client that sends a body piece by piece, and counts what it got rid of."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.sent = 0

    @classmethod
    async def begin(
        cls, address: Address, path: str, headers: Iterable[tuple[str, str]]
    ) -> Uploader:
        uploader = cls(*await asyncio.open_connection(*address, limit=1 << 20))
        uploader.writer.transport.set_write_buffer_limits(0)
        lines = [f"POST {path} HTTP/1.1", "host: 127.0.0.1", *(f"{n}: {v}" for n, v in headers)]
        uploader.writer.write("\r\n".join([*lines, "", ""]).encode())
        await uploader.writer.drain()
        return uploader

    async def __aenter__(self) -> Uploader:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            pass  # The other side was quicker.

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()
        self.sent += len(data)

    async def flood(self, length: int, *, chunked: bool = False) -> None:
        """Send for as long as anybody takes it."""
        piece = bytes(64 << 10)
        if chunked:
            piece = b"%x\r\n%s\r\n" % (len(piece), piece)
        try:
            while self.sent < length:
                await self.send(piece)
        except ConnectionError:
            pass

    async def answer(self) -> tuple[int, bytes]:
        """Status and what can be read of head and body."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        length = next(
            (
                int(line.split(b":")[1])
                for line in head.lower().split(b"\r\n")
                if line.startswith(b"content-length:")
            ),
            0,
        )
        return status, await self.reader.readexactly(length) if status != 100 else b""

    def reset(self) -> None:
        self.writer.transport.abort()


async def logged_in(address: Address) -> tuple[list[tuple[str, str]], str]:
    """The headers of a logged-in user, CSRF cookie included, and the CSRF token."""
    browser = Browser(address)
    await browser.log_in("user01", PASSWORD)
    cookies = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
    browser.close()
    return [("cookie", cookies)], browser.cookies["csrftoken"]


@story(120)
async def test_an_upload_waits_without_a_slot(shop: Shop, start: Starter) -> None:
    gateway = start(LAZY, flags=("--slots=2", "--processes=1"))
    cookies, token = await logged_in(gateway.address)
    kind, begin, end = form(title="A cat")
    length = str(len(begin) + len(PHOTO) + len(end))
    headers = [*cookies, kind, ("content-length", length), ("x-csrftoken", token)]
    before = resident(gateway.pid)

    async def upload(number: int, go_on: asyncio.Event) -> None:
        path = f"/lab/uploads/photo?reference=up-{number}"
        async with await Uploader.begin(gateway.address, path, headers) as uploader:
            await uploader.send(begin + PHOTO[: 5 << 20])
            await go_on.wait()
            await uploader.send(PHOTO[5 << 20 :] + end)
            status, body = await uploader.answer()
        assert status == 200, body
        assert json.loads(body) == {
            "name": "cat.jpg",
            "size": len(PHOTO),
            "sha256": hashlib.sha256(PHOTO).hexdigest(),
            "title": "A cat",
            "user": "user01",
            "users": 1,
        }

    go_on = asyncio.Event()
    async with asyncio.TaskGroup() as uploads:
        for number in range(4):
            uploads.create_task(upload(number, go_on))
        # All are in their views, which have asked for the file; and both slots are free.
        await eventually("the uploads are not parked", lambda: gateway.parked() == 4, 30)
        assert shop.notes("up-") == {f"up-{n}": ["wanted"] for n in range(4)}
        connection = await Connection.open(gateway.address)
        assert (await connection.ask("GET", "/products/teapot/")).status == 200
        assert resident(gateway.pid) - before < 16 << 20, "it holds the uploads in memory"
        go_on.set()
    assert shop.notes("up-") == {f"up-{n}": ["wanted", "here"] for n in range(4)}
    gateway.settles(2)


@story(120)
async def test_five_gigabytes_that_are_refused_are_never_read(start: Starter) -> None:
    gateway = start(LAZY, flags=ONE_SLOT)
    _, token = await logged_in(gateway.address)
    kind, _, _ = form()
    # Not logged in: the view says so before the form is there, as the token is in a header.
    anonymous = [kind, ("cookie", f"csrftoken={token}"), ("x-csrftoken", token)]
    for path, length, refusal in (
        ("/lab/uploads/refused", 5 << 30, (403, b"not you")),
        ("/lab/uploads/photo?reference=anonymous", 60 << 20, (401, b"log in first")),
    ):
        headers = [*anonymous, ("content-length", str(length))]
        async with await Uploader.begin(gateway.address, path, headers) as uploader:
            flood = asyncio.create_task(uploader.flood(length))
            assert await uploader.answer() == refusal
            await flood
            assert uploader.sent < BUFFERS
    gateway.settles(1)


@story(60)
async def test_who_asks_before_sending_is_told_only_if_it_is_wanted(start: Starter) -> None:
    gateway = start(LAZY, flags=ONE_SLOT)
    body = b"x" * 100_000
    headers = [
        ("content-length", str(len(body))),
        ("content-type", "application/octet-stream"),
        ("expect", "100-continue"),
    ]
    async with await Uploader.begin(gateway.address, "/lab/uploads/refused", headers) as refused:
        assert await refused.answer() == (403, b"not you")
    async with await Uploader.begin(gateway.address, "/lab/uploads/raw", headers) as wanted:
        assert (await wanted.answer())[0] == 100
        await wanted.send(body)
        assert await wanted.answer() == (200, hashlib.sha256(body).hexdigest().encode())
    gateway.settles(1)


@story(60)
async def test_the_csrf_token_must_come_in_a_header(start: Starter) -> None:
    gateway = start(LAZY, flags=ONE_SLOT)
    cookies, token = await logged_in(gateway.address)
    connection = await Connection.open(gateway.address)
    path = "/lab/uploads/photo?reference=csrf"
    kind, body = whole_form(title="A cat", csrfmiddlewaretoken=token)

    answer = await connection.ask("POST", path, [*cookies, kind], body)
    assert answer.status == 403
    assert "CSRF" in answer.text

    connection = await Connection.open(gateway.address)
    answer = await connection.ask("POST", path, [*cookies, kind, ("x-csrftoken", token)], body)
    assert (answer.status, answer.json()["title"]) == (200, "A cat")

    # In a synchronous view the form is waited for in place, and its token counts.
    answer = await connection.ask("POST", "/lab/uploads/synchronous", [*cookies, kind], body)
    assert (answer.status, answer.text) == (200, f"A cat cat.jpg {len(PHOTO)}")
    assert gateway.metric("layby_waits_in_place_total", reason="mode") == 1
    answer = await connection.ask("POST", "/lab/uploads/too-early", [], b"abc")
    assert answer.status == 409
    assert "layby.body_ready" in answer.text
    gateway.settles(1)


@pytest.mark.parametrize("ending", ["leaves", "too large"])
@story(60)
async def test_an_upload_that_does_not_come_cancels_its_view(
    shop: Shop, start: Starter, ending: str
) -> None:
    gateway = start(LAZY, flags=ONE_SLOT)
    cookies, token = await logged_in(gateway.address)
    kind, begin, _ = form(title="A cat")
    headers = [*cookies, kind, ("x-csrftoken", token), ("transfer-encoding", "chunked")]
    path = "/lab/uploads/photo?reference=no"
    async with await Uploader.begin(gateway.address, path, headers) as uploader:
        await uploader.send(b"%x\r\n%s\r\n" % (len(begin), begin))
        await eventually("it is not parked", lambda: gateway.parked() == 1, 20)
        if ending == "leaves":
            uploader.reset()
        else:
            flood = asyncio.create_task(uploader.flood(90 << 20, chunked=True))
            assert (await uploader.answer())[0] == 413
            await flood
            assert uploader.sent < (64 << 20) + BUFFERS
    await eventually(
        "the view was not cancelled",
        lambda: shop.notes("no") == {"no": ["wanted", "Cancelled"]},
        20,
    )
    gateway.settles(1)


@pytest.mark.parametrize("mode", ["wsgi", "greenlet"])
@story(60)
async def test_flask_reads_when_it_likes(start: Starter, mode: str) -> None:
    routes = '[[route]]\npath = "/"\nbody = "lazy"\n'
    gateway = start(routes, app="uploads", flags=(*ONE_SLOT, f"--mode={mode}"))
    kind, body = whole_form()
    large = [kind, ("content-length", str(90 << 20))]
    async with await Uploader.begin(gateway.address, "/photo", large) as uploader:
        flood = asyncio.create_task(uploader.flood(90 << 20))
        assert (await uploader.answer())[0] == 401
        await flood
        assert uploader.sent < BUFFERS

    connection = await Connection.open(gateway.address)
    allowed = [kind, ("authorization", "yes")]
    answer = await connection.ask("POST", "/photo", allowed, body)
    assert answer.json() == {"name": "cat.jpg", "sha256": hashlib.sha256(PHOTO).hexdigest()}
    answer = await connection.ask("POST", "/raw", [], b"abc")
    assert answer.text == hashlib.sha256(b"abc").hexdigest()
    parks = gateway.metric("layby_park_seconds_count")
    waits = gateway.metric("layby_waits_in_place_total", reason="mode")
    assert (parks, waits) == ((2, 0) if mode == "greenlet" else (0, 2))

    unannounced = [("transfer-encoding", "chunked")]
    async with await Uploader.begin(gateway.address, "/raw", unannounced) as chunked:
        await chunked.send(b"3\r\nabc\r\n0\r\n\r\n")
        assert await chunked.answer() == (200, hashlib.sha256(b"abc").hexdigest().encode())
    gateway.settles(1)
