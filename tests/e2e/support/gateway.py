"""`layby run` and `layby serve`, their log, and what their admin listener says."""

from __future__ import annotations

import http.client
import json
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from support.places import APPS, BINARY
from support.program import Program, until

START = 60.0


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Ports that nobody has at this moment."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((host, 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


class Gateway(Program):
    """A gateway with supervised workers, or, with a `link`, one that workers come to, or, with an
    `upstream`, one that proxies to it.
    `configuration` is TOML and goes first in the file, so it begins with top-level keys, if it
    has any."""

    def __init__(
        self,
        app: str = "",
        *,
        link: Path | None = None,
        upstream: str | None = None,
        folder: Path,
        environment: Mapping[str, str],
        configuration: str = "",
        flags: tuple[str, ...] = (),
        directory: Path = APPS,
    ) -> None:
        self.port, self.admin_port = free_ports(2)
        self.address = ("127.0.0.1", self.port)
        self.configuration = folder / "layby.toml"
        self.configuration.write_text(configuration)
        work = ["run", app, f"--python={sys.executable}"]
        if link is not None:
            work = ["serve", f"--link=unix:{link}"]
        if upstream is not None:
            work = ["serve", f"--upstream={upstream}"]
        super().__init__(
            "the gateway",
            [
                BINARY,
                *work,
                f"--config={self.configuration}",
                f"--listen=127.0.0.1:{self.port}",
                f"--admin=127.0.0.1:{self.admin_port}",
                *flags,
            ],
            environment=environment,
            directory=directory,
            log=folder / "gateway.log",
        )

    def wait_ready(self) -> None:
        self.wait_for(" ready ", START)
        until("the gateway is not ready", lambda: self.admin("/readyz")[0] == 200, START)

    def admin(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=30)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def status(self) -> dict[str, Any]:
        code, body = self.admin("/api/status")
        assert code == 200, body
        return dict(json.loads(body))

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the series with this name and these labels, perhaps beside others."""
        code, body = self.admin("/metrics")
        assert code == 200, body
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        total = 0.0
        for line in body.splitlines():
            series, _, value = line.rpartition(" ")
            if series.partition("{")[0] == name and all(pair in series for pair in wanted):
                total += float(value)
        return total

    def parked(self) -> int:
        return int(self.metric("layby_parked_requests"))

    def worker_pids(self) -> list[int]:
        return [process["pid"] for process in self.status()["processes"]]

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def settles(self, slots: int = 8, seconds: float = 30.0) -> None:
        """Waits until every slot is idle and nothing is queued or parked."""
        wanted = {"count": slots, "idle": slots, "busy": 0, "lost": 0, "queued": 0, "parked": 0}
        seen: dict[str, int] = {}

        def settled() -> bool:
            status = self.status()
            seen.update({key: status["slots"][key] for key in ("count", "idle", "busy", "lost")})
            seen.update(queued=status["queue"]["length"], parked=status["parked"]["requests"])
            return seen == wanted

        until(f"the slots are not as wanted, {seen} (see {self.log_path})", settled, seconds)

    def gives_back(self, descriptors: int, seconds: float) -> None:
        """Waits until the gateway has no more descriptors open than before."""
        until(
            f"more than {descriptors} descriptors are open",
            lambda: self.descriptors() <= descriptors,
            seconds,
            every=0.1,
        )


def resident(pid: int) -> int:
    """Bytes of memory that a process has to itself."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no Pss")
