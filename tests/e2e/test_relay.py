"""What an origin streams is passed on without a slot, and its end is told to the application."""

from __future__ import annotations

import asyncio
from urllib.parse import quote

import pytest

from conftest import TO_THE_STUB, Starter
from support.client import Address, Browser, Connection
from support.shop import PASSWORD, Shop
from support.story import eventually, story

ONE_SLOT = ("--slots=1", "--processes=1")


class TokenOrigin:
    """Streams what it is told to; `/429` answers with that, `/cut` ends too early."""

    def __init__(self) -> None:
        self.writers: list[asyncio.StreamWriter] = []
        self.asked: list[str] = []
        self.url = ""

    async def __aenter__(self) -> TokenOrigin:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=256)
        self.url = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        for writer in self.writers:
            writer.close()
        for writer in self.writers:
            try:
                await writer.wait_closed()
            except ConnectionError:
                pass  # The gateway was quicker.

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        path = head.split(b" ")[1].decode()
        self.asked.append(path)
        self.writers.append(writer)
        status = "429 Too Many Requests" if path == "/429" else "200 OK"
        writer.write(
            f"HTTP/1.1 {status}\r\nContent-Type: text/event-stream\r\nX-Origin: yes\r\n"
            "X-Frame-Options: ALLOWALL\r\nConnection: close\r\n"
            f"Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        if path == "/429":
            writer.write(b"4\r\nslow\r\n0\r\n\r\n")
        elif path == "/cut":
            writer.write(b"4\r\nhalf\r\n")
            await writer.drain()
            writer.close()

    async def until_asked(self, count: int) -> None:
        while len(self.writers) < count:
            await asyncio.sleep(0.01)

    def say(self, text: str) -> None:
        """The next token, to everybody."""
        for writer in self.writers:
            writer.write(f"{len(text):x}\r\n{text}\r\n".encode())

    def stop(self) -> None:
        for writer in self.writers:
            writer.write(b"0\r\n\r\n")


class Reader:
    """A client that sees a chunked answer as it comes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.status = 0
        self.headers: dict[str, str] = {}

    @classmethod
    async def ask(cls, address: Address, path: str, *headers: str) -> Reader:
        reader = cls(*await asyncio.open_connection(*address))
        lines = [f"GET {path} HTTP/1.1", "host: 127.0.0.1", *headers, "", ""]
        reader.writer.write("\r\n".join(lines).encode())
        return reader

    async def head(self) -> None:
        first, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
        self.status = int(first.split()[1])
        self.headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }

    async def token(self) -> str:
        """The next chunk; empty at the end. IncompleteReadError where the answer is cut."""
        size = int(await self.reader.readuntil(b"\r\n"), 16)
        return (await self.reader.readexactly(size + 2))[:-2].decode()

    async def __aenter__(self) -> Reader:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            pass  # The gateway was quicker.


def stream(origin: TokenOrigin, reference: str, path: str = "/tokens", view: str = "plain") -> str:
    url = quote(origin.url + path, safe="")
    return f"/lab/streams/{view}?reference={reference}&url={url}"


@pytest.mark.parametrize("mode", ["coroutine", "wsgi", "greenlet"])
@pytest.mark.parametrize("view", ["plain", "parked"])
@story(60)
async def test_tokens_come_as_they_are_sent_and_hold_no_slot(
    shop: Shop, start: Starter, mode: str, view: str
) -> None:
    gateway = start(TO_THE_STUB, flags=(*ONE_SLOT, f"--mode={mode}"))
    browser = Browser(gateway.address, language="de")
    await browser.log_in("user01", PASSWORD)
    cookies = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())

    async with TokenOrigin() as origin, asyncio.TaskGroup() as tasks:

        async def read(number: int) -> None:
            path = stream(origin, f"tokens-{number}", view=view)
            headers = (f"cookie: {cookies}", "accept-language: de", "accept-encoding: gzip")
            async with await Reader.ask(gateway.address, path, *headers) as reader:
                await reader.head()
                assert reader.status == 200
                assert reader.headers["content-type"] == "text/event-stream"
                assert reader.headers["x-origin"] == "yes"
                # What the view and the middleware said goes before what the origin said.
                assert reader.headers["lab-view"] == "seen"
                assert reader.headers["x-frame-options"] == "DENY"
                assert "content-encoding" not in reader.headers
                for text in ("one ", "two ", "three and more"):
                    told[number].set()
                    assert await reader.token() == text
                assert await reader.token() == ""

        told = [asyncio.Event() for _ in range(6)]
        for number in range(6):
            tasks.create_task(read(number))
        for text in ("one ", "two ", "three and more"):
            for each in told:
                await each.wait()
                each.clear()
            # Nobody has had it before it is sent, and the one slot is free.
            assert (await browser.get("/products/teapot/")).status == 200
            origin.say(text)
        origin.stop()

    expected = {
        f"tokens-{number}": ["200 one two three an True complete user01 de"] for number in range(6)
    }
    await eventually("not every end was told", lambda: shop.notes("tokens-") == expected, 20)
    gateway.settles(1)


@story(60)
async def test_whoever_leaves_is_told_of_once(shop: Shop, start: Starter) -> None:
    gateway = start(TO_THE_STUB, flags=ONE_SLOT)
    async with TokenOrigin() as origin:
        async with await Reader.ask(gateway.address, stream(origin, "left")) as reader:
            await reader.head()
            await origin.until_asked(1)
            origin.say("one ")
            assert await reader.token() == "one "
        expected = {"left": ["200 one  False client_gone nobody en"]}
        await eventually("its end was not told", lambda: shop.notes("left") == expected, 20)
        gateway.settles(1)
        # The origin is not asked on.
        assert origin.asked == ["/tokens"]
    assert shop.notes("left") == expected


@story(60)
async def test_how_the_origin_fails_is_seen(shop: Shop, start: Starter) -> None:
    gateway = start(TO_THE_STUB, flags=ONE_SLOT)
    async with TokenOrigin() as origin:
        async with await Reader.ask(gateway.address, stream(origin, "e-429", "/429")) as reader:
            await reader.head()
            assert (reader.status, await reader.token()) == (429, "slow")
        async with await Reader.ask(gateway.address, stream(origin, "e-cut", "/cut")) as reader:
            await reader.head()
            assert await reader.token() == "half"
            with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
                await reader.token()
    connection = await Connection.open(gateway.address)
    answer = await connection.ask("GET", stream(origin, "e-nobody"))
    assert answer.status == 502
    refused = quote("http://127.0.0.2:1/", safe="")
    answer = await connection.ask("GET", f"/lab/streams/plain?reference=e-policy&url={refused}")
    assert answer.status == 502
    expected = {
        "e-429": ["429 slow False complete nobody en"],
        "e-cut": ["200 half False origin_failed nobody en"],
        "e-nobody": ["None  False origin_failed nobody en"],
        "e-policy": ["None  False origin_failed nobody en"],
    }
    await eventually("not every end was told", lambda: shop.notes("e-") == expected, 20)
    gateway.settles(1)


@story(60)
async def test_what_is_done_at_the_end_may_fetch(shop: Shop, start: Starter) -> None:
    gateway = start(TO_THE_STUB, flags=ONE_SLOT)
    async with TokenOrigin() as origin:
        then = quote(f"{origin.url}/429", safe="")
        path = f"{stream(origin, 'then', '/429')}&then={then}"
        connection = await Connection.open(gateway.address)
        assert (await connection.ask("GET", path)).status == 429
        expected = {"then": ["429 slow False complete nobody en", "slow"]}
        await eventually("its end was not told", lambda: shop.notes("then") == expected, 20)
        assert origin.asked == ["/429", "/429"]
        # A HEAD needs no fetch.
        answer = await connection.ask("HEAD", stream(origin, "head"))
        assert (answer.status, answer.header("lab-view")) == (200, "seen")
        assert len(origin.asked) == 2
    gateway.settles(1)


@pytest.mark.parametrize("mode", ["wsgi", "greenlet"])
@story(60)
async def test_flask_streams_too(start: Starter, mode: str) -> None:
    gateway = start(TO_THE_STUB, app="streams", flags=(*ONE_SLOT, f"--mode={mode}"))
    async with TokenOrigin() as origin:
        path = f"/stream?url={quote(origin.url, safe='')}"
        async with await Reader.ask(gateway.address, path, "user: ada") as reader:
            await reader.head()
            assert reader.headers["set-cookie"] == "seen=1; Path=/"
            await origin.until_asked(1)
            connection = await Connection.open(gateway.address)
            assert (await connection.ask("GET", "/ended")).json() == []
            origin.say("one ")
            assert await reader.token() == "one "
            origin.stop()
            assert await reader.token() == ""
        gateway.settles(1)
        answer = await connection.ask("GET", "/ended")
        assert answer.json() == [[200, "one ", "complete", "ada"]]
