"""The servers that are compared, each as its own documentation says to run it.

All serve the same project; each gets views written in its own way (`app/views_*.py`). A
server runs in a process group of its own on a port of its own, and is ready when it has
answered once.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from layby_bench import machine
from layby_bench.processes import Failed, Process, free_port

APP = Path(__file__).resolve().parent.parent / "app"
GATEWAY = APP.parent.parent / "target" / "release" / "layby"
BIN = Path(sys.executable).parent
READY_WITHIN = 60.0
SLOTS = 8
IDLE = 'layby_slots{state="idle"}'


@dataclass(frozen=True)
class Kind:
    """How to start a server. `{port}`, `{admin}`, `{directory}` and `{config}`, a file with the
    configuration, are filled in wherever they stand."""

    name: str
    command: Sequence[str]
    views: str = "views_plain"
    environment: Mapping[str, str] = field(default_factory=dict)
    probe: str = "/hello"
    config: str = ""
    scheme: str = "http"
    # None: on any.
    cores: frozenset[int] | None = None


class Server:
    """A running server of some kind."""

    def __init__(self, kind: Kind, directory: Path, environment: Mapping[str, str]) -> None:
        self.kind = kind
        self.port = free_port()
        self.admin = free_port()
        name = directory / f"{re.sub('[^a-z0-9]+', '-', kind.name)}-{self.port}"
        config = name.with_suffix(".conf")
        values = {
            "{port}": str(self.port),
            "{admin}": str(self.admin),
            "{directory}": str(directory),
            "{config}": str(config),
        }
        if kind.config:
            config.write_text(_filled(kind.config, values))
        self.process = Process(
            [_filled(word, values) for word in kind.command],
            name.with_suffix(".log"),
            environment={"BENCH_VIEWS": kind.views, **environment, **kind.environment},
            directory=APP,
            cores=kind.cores,
        )
        try:
            self._wait()
        except BaseException:
            self.process.end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.end()

    def _wait(self) -> None:
        give_up = time.monotonic() + READY_WITHIN
        while True:
            try:
                self.get(self.kind.probe)
                return
            except (urllib.error.URLError, ConnectionError) as error:
                if time.monotonic() > give_up or self.process.popen.poll() is not None:
                    words = self.process.last_words()
                    raise Failed(f"{self.kind.name} is not ready: {error}\n{words}") from None
                time.sleep(0.1)

    def get(self, target: str, *, port: int | None = None) -> str:
        scheme = self.kind.scheme if port is None else "http"
        url = f"{scheme}://127.0.0.1:{port or self.port}{target}"
        # Nobody has signed the certificate of a server that is started here.
        trust = ssl._create_unverified_context()
        with urllib.request.urlopen(url, timeout=READY_WITHIN, context=trust) as response:
            text: str = response.read().decode()
            return text

    def get_in_turn(self, target: str, times: int) -> None:
        """Requests of one client, each after the answer to the one before."""
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=READY_WITHIN)
        with contextlib.closing(client):
            for _ in range(times):
                client.request("GET", target)
                response = client.getresponse()
                response.read()
                if response.status != 200:
                    raise Failed(f"{self.kind.name} answered {target} with {response.status}")

    @property
    def gateway(self) -> list[int]:
        """The process between clients and workers, if the server has one."""
        return [self.process.pid] if self.kind.name.startswith("layby") else []

    @property
    def workers(self) -> list[int]:
        """The processes that run the application, and a master, if the server has one."""
        below = machine.descendants(self.process.pid)
        return below if self.gateway else [self.process.pid, *below]

    def metrics(self) -> dict[str, float]:
        """layby's own figures: series as in the text format, with their values."""
        lines = self.get("/metrics", port=self.admin).splitlines()
        series = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in series}

    def metrics_when_quiet(self) -> dict[str, float]:
        """layby's figures once it has nothing more to do."""
        give_up = time.monotonic() + READY_WITHIN
        while time.monotonic() < give_up:
            metrics = self.metrics()
            if not metrics["layby_parked_requests"] and metrics[IDLE] == SLOTS:
                return metrics
            time.sleep(0.05)
        raise Failed(f"{self.kind.name} does not come to rest")


def _filled(word: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        word = word.replace(name, value)
    return word


def layby(
    name: str = "layby",
    app: str = "wsgi:application",
    *,
    views: str = "views_layby",
    processes: int | None = None,
    mode: str | None = None,
) -> Kind:
    command = [str(GATEWAY), "run", app, "--slots", str(SLOTS)]
    command += ["--listen", "127.0.0.1:{port}", "--admin", "127.0.0.1:{admin}"]
    command += ["--python", sys.executable]
    if processes is not None:
        command += ["--processes", str(processes)]
    if mode is not None:
        command += ["--mode", mode]
    environment = {
        "LAYBY_OUTBOUND_ALLOW": "127.0.0.1",
        # More clients than a queue should hold, who wait longer than people would: what is
        # measured is the throughput under a standing queue, not the shedding.
        "LAYBY_SLOTS_QUEUE": "20000",
        "LAYBY_SLOTS_QUEUE_TIMEOUT": "5m",
        "LAYBY_SLOTS_PARKED": "20000",
        "LAYBY_SLOTS_REQUEST_TIMEOUT": "10m",
        "LAYBY_OUTBOUND_TIMEOUT": "5m",
    }
    return Kind(name, command, views, environment)


def layby_processes() -> int:
    """How many worker processes layby starts by default."""
    return min(len(os.sched_getaffinity(0)), max(1, SLOTS // 4))


def gthread(
    threads: int,
    *,
    workers: int = 1,
    app: str = "wsgi:application",
    views: str = "views_sync",
) -> Kind:
    command = [f"{BIN}/gunicorn", app, "--worker-class", "gthread", "--bind", "127.0.0.1:{port}"]
    command += ["--workers", str(workers), "--threads", str(threads), "--log-level", "warning"]
    # Requests that stand in its queue for half a minute are what is measured, not a fault.
    command += ["--timeout", "300"]
    return Kind(f"gunicorn gthread {workers} x {threads}", command, views)


def granian(
    threads: int,
    *,
    workers: int = 1,
    app: str = "wsgi:application",
    views: str = "views_plain",
) -> Kind:
    command = [f"{BIN}/granian", "--interface", "wsgi", "--host", "127.0.0.1"]
    command += [
        "--port",
        "{port}",
        "--workers",
        str(workers),
        "--blocking-threads",
        str(threads),
        "--no-ws",
    ]
    command += ["--http", "1", "--log-level", "warning", app]
    return Kind(f"granian {workers} x {threads}", command, views)


def uvicorn(workers: int) -> Kind:
    command = [f"{BIN}/uvicorn", "asgi:application", "--host", "127.0.0.1", "--port", "{port}"]
    command += ["--workers", str(workers), "--no-access-log", "--log-level", "warning"]
    return Kind(f"uvicorn {workers} processes", [*command, "--lifespan", "off"], "views_asgi")
