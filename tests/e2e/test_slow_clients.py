"""slowhttptest in its four modes: it gets nowhere, and whoever else comes does not notice it."""

from __future__ import annotations

import asyncio
import statistics

from conftest import Starter
from support.client import Connection
from support.story import eventually, story

# Short, so that the attackers are let go while the test looks on.
BOUNDS = """
head_timeout = "2s"
idle_timeout = "3s"
stall_timeout = "2s"
min_rate = "64KiB"
max_connections = 2000
"""

ATTACKERS = 300
SECONDS = 6
MODES = {
    "headers": ["-H", "-i", "1"],
    "body": ["-B", "-i", "1", "-s", "8192", "-x", "10"],
    "range": ["-R", "-a", "1", "-b", "3000"],
    "read": ["-X", "-w", "512", "-y", "1024", "-n", "1", "-z", "32", "-k", "3"],
}


async def attack(url: str, mode: list[str]) -> None:
    common = ["-c", str(ATTACKERS), "-r", str(ATTACKERS), "-l", str(SECONDS), "-p", "3", "-u", url]
    process = await asyncio.create_subprocess_exec(
        "slowhttptest",
        *mode,
        *common,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    text = output.decode(errors="replace")
    # Its own probe: a request beside the attack, every second.
    assert "service available:" in text, text[-2000:]
    assert process.returncode == 0, text[-2000:]


async def normal(address: tuple[str, int], until: asyncio.Task[None]) -> list[float]:
    """Requests on connections of their own, and on one that is kept; how long each took."""
    kept = await Connection.open(address)
    seconds = []
    while not until.done():
        new = await Connection.open(address)
        for connection in (kept, new):
            answer = await connection.ask("GET", "/")
            assert (answer.status, answer.body) == (200, b"hello")
            seconds.append(answer.seconds)
        new.close()
        await asyncio.sleep(0.02)
    return seconds


@story(120)
async def test_slow_clients_of_every_kind_hold_nobody_up(start: Starter) -> None:
    gateway = start(BOUNDS, app="plain", flags=("--slots=4", "--processes=1"))
    host, port = gateway.address
    quiet = await normal((host, port), asyncio.create_task(asyncio.sleep(1.5)))
    for name, mode in MODES.items():
        under_attack = asyncio.create_task(attack(f"http://{host}:{port}/large", mode))
        seconds = await normal((host, port), under_attack)
        await under_attack
        assert len(seconds) > 20, name
        # Medians, and generous: the attacker and the gateway share the machine.
        assert statistics.median(seconds) < statistics.median(quiet) + 0.05, name

        def none_left() -> bool:
            idle = gateway.status()["slots"]["idle"]
            return gateway.metric("layby_spool_bytes") == 0 and bool(idle == 4)

        await eventually(f"the end of the slow clients of {name}", none_left, 20)
    await eventually(
        "the end of all connections",
        lambda: (
            sum(
                gateway.metric("layby_connections", state=state)
                for state in ("idle", "reading", "waiting", "writing")
            )
            == 0
        ),
        20,
    )
