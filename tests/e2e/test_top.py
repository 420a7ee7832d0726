"""`layby top` on a real terminal, beside a gateway at work."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from pathlib import Path
from urllib.parse import quote

import pytest

from conftest import TO_THE_STUB, Starter
from support.client import Connection
from support.gateway import Gateway, free_ports
from support.places import BINARY, REPOSITORY, environment
from support.services import Services
from support.story import story
from support.terminal import Terminal, terminal

PICTURE = REPOSITORY / "docs" / "images" / "top.svg"


def top(gateway: Gateway, *flags: str) -> list[str | Path]:
    return [BINARY, "top", f"--admin=127.0.0.1:{gateway.admin_port}", *flags]


async def see(screen: Terminal, *words: str) -> str:
    return await asyncio.to_thread(screen.wait_for, *words)


@story(90)
async def test_it_shows_what_the_gateway_does(stub: Services, start: Starter) -> None:
    stub.set(latency=700)
    gateway = start(TO_THE_STUB, app="traced", flags=("--slots=6", "--processes=2"))
    url = quote(f"{stub.url}/echo?card=4242", safe="")
    working = True

    async def client(path: str) -> None:
        connection = await Connection.open(gateway.address)
        while working:
            assert (await connection.ask("GET", f"{path}?url={url}")).status == 200

    # Four of six slots are held, and eight requests are parked.
    clients = [asyncio.create_task(client("/held")) for _ in range(4)]
    clients += [asyncio.create_task(client("/traced")) for _ in range(8)]
    with terminal(top(gateway), environment=environment(), columns=130, lines=36) as screen:
        text = await see(screen, "ready", "GET /held", "of 6 busy")
        for words in (f"at 127.0.0.1:{gateway.admin_port}", "coroutine", "requests ", "fetches "):
            assert words in text
        assert "card" not in screen.text

        # By time: what runs comes before what idles.
        screen.press("s")
        await see(screen, "sort by (time)")
        screen.press("s")
        await see(screen, "sort by (path)")
        screen.press("p")
        await see(screen, "held, p goes on")
        screen.press("p")
        await asyncio.to_thread(screen.wait_without, "held, p goes on")

        # A small window still says the most important, a large one everything.
        screen.resize(50, 6)
        await see(screen, "layby", "slots")
        screen.resize(130, 36)
        await see(screen, "ready", "q quit", "GET /held", "of 6 busy")
        if "UPDATE_DOCS" in os.environ:
            # With some history in the plots.
            await asyncio.sleep(20)
            PICTURE.parent.mkdir(exist_ok=True)
            PICTURE.write_text(screen.svg())
        once = await asyncio.to_thread(
            subprocess.run, top(gateway, "--once"), capture_output=True, text=True, check=False
        )
        screen.press("q")
        assert await asyncio.to_thread(screen.wait) == 0
    working = False
    await asyncio.gather(*clients)

    assert once.returncode == 0, once.stderr
    assert "GET /held" in once.stdout
    assert "\x1b" not in once.stdout
    assert "SLOT  PROCESS  STATE" in once.stdout


@story(60)
async def test_a_gateway_that_is_silent_is_said_to_be_and_asked_on(start: Starter) -> None:
    gateway = start(TO_THE_STUB, app="traced", flags=("--slots=1",))
    with terminal(top(gateway), environment=environment()) as screen:
        await see(screen, "ready")
        gateway.signal(signal.SIGSTOP)
        try:
            await see(screen, "no answer for", "ready")
            await see(screen, "no connection for")
        finally:
            gateway.signal(signal.SIGCONT)
        await asyncio.to_thread(screen.wait_without, "no connection")
        screen.press("\x03")
        assert await asyncio.to_thread(screen.wait) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_the_terminal_as_it_was(number: signal.Signals) -> None:
    (port,) = free_ports(1)
    command = [BINARY, "top", f"--admin=127.0.0.1:{port}"]
    with terminal(command, environment={**environment(), "NO_COLOR": "1"}) as screen:
        screen.wait_for("no connection for", "refused")
        assert not screen.is_left()
        screen.process.send_signal(number)
        assert screen.wait() == 0
        # Neither set nor reset of a colour.
        assert b"\x1b[3" not in screen.raw.replace(b"\x1b[39m", b"").replace(b"\x1b[39;", b"")


def test_what_is_no_terminal_is_told_of_once(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    (tmp_path / "layby.toml").write_text(f'admin = "127.0.0.1:{port}"\n')

    def said(*flags: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [BINARY, "top", *flags],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env=environment(),
        )

    live = said()
    assert (live.returncode, live.stdout) == (1, "")
    assert "--once" in live.stderr
    once = said("--once")
    assert once.returncode == 1
    assert f"127.0.0.1:{port}" in once.stderr
    assert len(once.stderr.splitlines()) == 1
