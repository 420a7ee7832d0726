"""`layby advise` beside a gateway at work."""

from __future__ import annotations

import asyncio
import re
import subprocess

from conftest import Starter
from support.checkout import Buying
from support.gateway import free_ports
from support.places import BINARY
from support.services import Services
from support.story import story


def advise(admin: int, seconds: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BINARY, "advise", f"--admin=127.0.0.1:{admin}", f"--time={seconds}s"],
        capture_output=True,
        text=True,
        check=False,
    )


@story(60)
async def test_it_says_what_the_gateway_counts(stub: Services, start: Starter) -> None:
    stub.set(latency=200)
    gateway = start()
    before = gateway.metric("layby_requests_total")
    buying = Buying(gateway, "advise-", 8)
    said = await asyncio.to_thread(advise, gateway.admin_port, 5)
    await buying.end()
    most = gateway.metric("layby_requests_total") - before

    assert said.returncode == 0, said.stderr
    print(said.stdout)
    seen = re.search(r"In (\d+) s: ([\d.]+) requests a second", said.stdout)
    assert seen is not None, said.stdout
    assert 0 < int(seen[1]) * float(seen[2]) <= 1.2 * most
    needed = re.search(r"needs (\d+) slots", said.stdout)
    assert needed is not None, said.stdout
    # Eight clients, most of whose time is spent on waiting for services.
    assert 1 <= int(needed[1]) <= 16


def test_nobody_to_ask_is_one_clear_line() -> None:
    (port,) = free_ports(1)
    said = advise(port, 1)
    assert said.returncode == 1
    assert "--admin says where" in said.stderr
    assert len(said.stderr.splitlines()) == 1
