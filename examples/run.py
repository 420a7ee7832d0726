"""Run the example: services, shop and gateway, until Ctrl-C; with --once, prove that it works.

Everything started here ends with this program: on Ctrl-C, on SIGTERM, when the terminal closes,
half-way through starting up, and (on Linux) even when this program is killed. The children have
sessions of their own, so that the Ctrl-C of a terminal reaches only us and they can be ended in
order: the gateway first, which drains, then the services it may still be asking.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO
from urllib.parse import unquote, urlsplit

import once

EXAMPLES = Path(__file__).resolve().parent
REPOSITORY = EXAMPLES.parent
SHOP = EXAMPLES / "shop"

# As in shop/layby.toml and services/stub.py.
LISTEN, ADMIN, SERVICES = 8000, 9180, 9300

READY_WITHIN = 60.0
# Longer than the gateway's own drain_timeout, so that a kill means that something is wrong.
GRACE = 15.0


class Stopped(Exception):
    """Somebody asked us to stop."""


class Failed(Exception):
    """The example cannot go on; the message says why, for people."""


def say(line: str = "") -> None:
    try:
        print(line, flush=True)
    except OSError:
        # The terminal is gone. What is left to do matters more than what is left to say.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for the rest of our life)


class Signals:
    """Requests to stop, counted. A handler only counts: nothing is interrupted in the middle."""

    def __init__(self) -> None:
        self.count = 0
        signal.signal(signal.SIGINT, self._count)
        signal.signal(signal.SIGTERM, self._count)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup means to outlive it
            signal.signal(signal.SIGHUP, self._count)

    def _count(self, number: int, frame: object) -> None:
        self.count += 1

    def pause(self, seconds: float) -> None:
        """Sleep, unless asked to stop."""
        end = time.monotonic() + seconds
        while True:
            if self.count:
                raise Stopped
            left = end - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, 0.1))


def end_with_parent() -> Callable[[], None] | None:
    """What a child does first, so that it gets a SIGTERM when we are killed. Linux only."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is None:
        return None
    set_parent_death_signal = 1

    def ask() -> None:
        prctl(set_parent_death_signal, signal.SIGTERM)

    return ask


class Children:
    """The processes we started. Leaving the `with` block ends them, last one first."""

    def __init__(self, signals: Signals) -> None:
        self.signals = signals
        self.running: list[tuple[str, subprocess.Popen[bytes]]] = []

    def __enter__(self) -> Children:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        asked = self.signals.count
        while self.running:
            self.end(*self.running.pop(), asked)

    def start(
        self,
        name: str,
        command: Sequence[str | Path],
        environment: Mapping[str, str],
        output: IO[bytes] | None = None,
        errors: IO[bytes] | None = None,
    ) -> subprocess.Popen[bytes]:
        if self.signals.count:
            raise Stopped
        process = subprocess.Popen(
            command,
            cwd=SHOP,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            start_new_session=True,
            preexec_fn=end_with_parent(),
        )
        self.running.append((name, process))
        return process

    def end(self, name: str, process: subprocess.Popen[bytes], asked: int) -> None:
        """SIGTERM and some patience, SIGKILL for whatever is left of its group."""
        if process.poll() is None:
            process.terminate()
        patience = time.monotonic() + GRACE
        # Asked once more, we stop at once.
        while process.poll() is None and self.signals.count <= max(asked, 1):
            if time.monotonic() > patience:
                say(f"{name} did not end within {GRACE:.0f} s, killing it")
                break
            time.sleep(0.02)
        # Usually nobody of its group is left.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def finish(self, process: subprocess.Popen[bytes]) -> int:
        """Wait for a child that ends by itself."""
        while process.poll() is None:
            self.signals.pause(0.05)
        self.running = [child for child in self.running if child[1] is not process]
        return process.returncode

    def check(self) -> None:
        for name, process in self.running:
            if process.poll() is not None:
                raise Failed(f"{name} ended by itself with status {process.returncode}")


def free_port(preferred: int, what: str) -> int:
    """The preferred port if nobody has it, else any free one."""
    for port in (preferred, 0):
        with socket.socket() as candidate:
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                candidate.bind(("127.0.0.1", port))
            except OSError:
                continue
            found = int(candidate.getsockname()[1])
        if found != preferred:
            say(f"port {preferred} is taken, so {what} is on {found}")
        return found
    raise Failed("no free port on 127.0.0.1")


def wait_until(what: str, ready: Callable[[], bool], children: Children) -> None:
    patience = time.monotonic() + READY_WITHIN
    while not ready():
        children.check()
        if time.monotonic() > patience:
            raise Failed(f"{what} was not ready within {READY_WITHIN:.0f} s")
        children.signals.pause(0.05)


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def is_ready(admin: str) -> bool:
    try:
        with urllib.request.urlopen(f"{admin}/readyz", timeout=2) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


@dataclass
class Example:
    """The example, running."""

    gateway: subprocess.Popen[bytes]
    shop: str
    admin: str
    services: str
    environment: dict[str, str]


def start(options: argparse.Namespace, children: Children, log: IO[bytes] | None) -> Example:
    data = options.data.resolve()
    layby = options.layby.resolve()
    if not os.access(layby, os.X_OK):
        raise Failed(f"there is no {options.layby}; build it with: cargo build --release")

    listen = free_port(LISTEN, "the shop")
    admin = free_port(ADMIN, "the gateway's admin listener")
    services = free_port(SERVICES, "the stub of the services")
    environment = {
        **os.environ,
        "SHOP_DATA": str(data),
        "SHOP_SERVICES": f"http://127.0.0.1:{services}",
        "PYTHONUNBUFFERED": "1",
    }

    say(f"preparing the shop in {data}")
    data.mkdir(parents=True, exist_ok=True)
    manage(children, environment, "seed")
    manage(children, environment, "collectstatic", "--noinput")

    children.start(
        "the stub of the services",
        [sys.executable, EXAMPLES / "services" / "stub.py", "--port", str(services)],
        environment,
        log,
        log,
    )
    wait_until("the stub of the services", lambda: accepts(services), children)

    gateway = children.start(
        "the gateway",
        [
            layby,
            "run",
            "shop.wsgi:application",
            "--config=layby.toml",
            f"--slots={options.slots}",
            f"--listen=127.0.0.1:{listen}",
            f"--admin=127.0.0.1:{admin}",
            f"--python={sys.executable}",
        ],
        environment,
        log,
        log,
    )
    example = Example(
        gateway,
        f"http://127.0.0.1:{listen}",
        f"http://127.0.0.1:{admin}",
        f"http://127.0.0.1:{services}",
        environment,
    )
    wait_until("the gateway", lambda: is_ready(example.admin), children)
    return example


def manage(children: Children, environment: Mapping[str, str], *command: str) -> str:
    """Run one of the shop's management commands; what it printed."""
    with tempfile.TemporaryFile() as output:
        process = children.start(
            f"manage.py {command[0]}",
            [sys.executable, SHOP / "manage.py", *command],
            environment,
            output,
        )
        status = children.finish(process)
        output.seek(0)
        printed = output.read().decode()
    if status != 0:
        raise Failed(f"manage.py {command[0]} ended with status {status}, see above")
    return printed


def database(environment: Mapping[str, str], data: Path) -> str:
    """The URL of a PostgreSQL database, or the path of an SQLite file."""
    url = environment.get("DATABASE_URL", "")
    if url.startswith("sqlite:"):
        return unquote(urlsplit(url).path[1:])
    return url or str(data.resolve() / "shop.sqlite3")


def invitation(example: Example) -> str:
    purchase = (
        '{"reference": "mine-1", "lines": [{"product": "teapot", "quantity": 1}], "latency": 2000}'
    )
    return f"""
The shop is open:   {example.shop}/         (log in as demo / demo)
its admin:          {example.shop}/admin/
the gateway:        {example.admin}/

    curl {example.shop}/products/teapot/
    curl -H 'content-type: application/json' -d '{purchase}' {example.shop}/api/checkout
    curl {example.admin}/metrics

Ctrl-C ends all of it.
"""


def serve(options: argparse.Namespace, children: Children) -> int:
    say(invitation(start(options, children, None)))
    while True:
        children.signals.pause(0.2)
        children.check()


def prove(options: argparse.Namespace, children: Children) -> int:
    options.data.mkdir(parents=True, exist_ok=True)
    path = options.data.resolve() / "once.log"
    with path.open("wb") as log:
        try:
            example = start(options, children, log)
            report = once.drive(
                once.Target(
                    shop=example.shop,
                    admin=example.admin,
                    services=example.services,
                    gateway=example.gateway.pid,
                    slots=options.slots,
                    database=database(example.environment, options.data),
                ),
                checkouts=options.checkouts,
                latency=options.latency,
                pause=children.signals.pause,
            )
            ledger = manage(children, example.environment, "ledger", "--prefix", report.prefix)
            once.audit(report, json.loads(ledger))
        except (Failed, once.Broken) as error:
            log.flush()
            say(path.read_text(errors="replace")[-4000:])
            raise Failed(f"{error} (log: {path})") from error
    say(once.summary(report))
    if report.wrong:
        say(f"NOT all right, {len(report.wrong)} mistakes (log: {path}):")
        for mistake in report.wrong[:20]:
            say(f"  - {mistake}")
        return 1
    say("every answer was right")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run the example shop behind layby.")
    parser.add_argument("--layby", type=Path, default=REPOSITORY / "target/release/layby")
    parser.add_argument("--data", type=Path, default=REPOSITORY / ".run", help="kept between runs")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--once", action="store_true", help="drive requests, report, end")
    parser.add_argument("--checkouts", type=int, default=64, help="with --once: how many at a time")
    parser.add_argument(
        "--latency", type=float, default=1.0, help="with --once: seconds each service takes"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    signals = Signals()
    try:
        with Children(signals) as children:
            return prove(options, children) if options.once else serve(options, children)
    except Stopped:
        say("stopped")
        return 130 if options.once else 0
    except Failed as error:
        say(f"the example failed: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
