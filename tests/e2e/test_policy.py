"""Where fetches may go: nothing inside the house, whatever it is called."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from conftest import Starter
from support.client import Answer, Connection
from support.origin import ForbiddenListener
from support.services import Services, services
from support.story import eventually, story

ONE_ADDRESS = """
[outbound]
allow = ["public", "127.0.0.2"]
"""

HOUSE = [
    "127.0.0.1",
    "127.1",
    "127.0.1",
    "0x7f.1",
    "0x7f000001",
    "0177.0.0.1",
    "2130706433",
    "0",
    "0.0.0.0",
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "localhost",
    "localhost.",
    "LOCALHOST",
    "shop.localhost",
    "%6cocalhost",
    "127.0.0.1.",
    "user:password@127.0.0.1",
]

METADATA = [
    "169.254.169.254",
    "2852039166",
    "0xa9fea9fe",
    "169.254.43518",
    "[::ffff:169.254.169.254]",
    "[64:ff9b::a9fe:a9fe]",
    "[fd00:ec2::254]",
    "[fe80::1]",
    "10.0.0.1",
    "192.168.1.1",
    "100.64.0.1",
]


@pytest.fixture
def allowed(tmp_path: Path) -> Iterator[Services]:
    """The one origin that may be reached."""
    with services(tmp_path, "127.0.0.2") as running:
        yield running


async def fetch(
    connection: Connection, url: str, *, follow: bool = False, path: str = "/lab/fetch"
) -> Answer:
    answer = await connection.ask(
        "GET", f"{path}?url={quote(url, safe='')}{'&follow' if follow else ''}"
    )
    assert answer.status == 200, (url, answer.text[-500:])
    return answer


def assert_refused(answer: Answer, url: str) -> None:
    seen = answer.json()
    assert seen.get("error") == "Refused", (url, seen)
    assert seen["phase"] in ("url", "dns", "redirect"), (url, seen)
    assert "[outbound] allow" in seen["message"], (url, seen)
    assert "password" not in seen["message"], (url, seen)


@story(60)
async def test_no_spelling_of_an_inner_address_is_reached(
    start: Starter, allowed: Services
) -> None:
    gateway = start(ONE_ADDRESS)
    connection = await Connection.open(gateway.address)
    with ForbiddenListener() as forbidden:
        for host in HOUSE:
            url = f"http://{host}:{forbidden.port}/secret"
            assert_refused(await fetch(connection, url), url)
            assert_refused(await fetch(connection, url, path="/lab/fetch-in-place"), url)
        for host in METADATA:
            url = f"http://{host}/latest/meta-data/"
            answer = await fetch(connection, url)
            assert_refused(answer, url)
            assert answer.seconds < 2, url  # not a connection that went nowhere
        assert forbidden.accepted == 0
        # It would have noticed.
        (await Connection.open(("127.0.0.1", forbidden.port))).close()
        await eventually("the listener is deaf", lambda: forbidden.accepted == 1, 5)
    # The one that is listed is reached, by any spelling.
    for host in ("127.0.0.2", "0x7f.2"):
        answer = await fetch(connection, f"http://{host}:{allowed.port}/")
        assert answer.json().get("status") == 200, answer.text
    refused = len(METADATA) + 2 * len(HOUSE)
    assert gateway.metric("layby_fetches_total", outcome="refused") == refused


@story(60)
async def test_a_redirect_into_the_house_is_refused(start: Starter, allowed: Services) -> None:
    gateway = start(ONE_ADDRESS)
    connection = await Connection.open(gateway.address)
    with ForbiddenListener() as forbidden:
        for host in ("127.0.0.1", "localhost", "2130706433", "[::1]", "[::ffff:127.0.0.1]"):
            place = f"http://{host}:{forbidden.port}/secret"
            url = f"{allowed.url}/redirect?to={quote(place, safe='')}"
            assert_refused(await fetch(connection, url, follow=True), url)
        # Two hops, the first of which is allowed.
        inner = f"{allowed.url}/redirect?to={quote('http://169.254.169.254/', safe='')}"
        outer = f"{allowed.url}/redirect?to={quote(inner, safe='')}"
        assert_refused(await fetch(connection, outer, follow=True), outer)
        assert forbidden.accepted == 0
    # Unless asked to, a redirect is not followed but handed over.
    url = f"{allowed.url}/redirect?to=/echo"
    assert (await fetch(connection, url)).json() == {"status": 302, "url": url}
    followed = (await fetch(connection, url, follow=True)).json()
    assert followed == {"status": 200, "url": f"{allowed.url}/echo"}


@story(60)
async def test_unless_told_otherwise_only_public_addresses_are_reached(start: Starter) -> None:
    gateway = start("")
    connection = await Connection.open(gateway.address)
    with ForbiddenListener() as forbidden:
        for host in ("127.0.0.1", "localhost", "127.0.0.2"):
            url = f"http://{host}:{forbidden.port}/secret"
            assert_refused(await fetch(connection, url), url)
        assert forbidden.accepted == 0
