"""The stub of the third parties, as a process: see examples/services/stub.py."""

from __future__ import annotations

import http.client
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.places import STUB, environment
from support.program import Program


class Services(Program):
    def __init__(self, folder: Path, host: str) -> None:
        super().__init__(
            "the stub of the services",
            [sys.executable, STUB, "--host", host, "--port", "0"],
            environment=environment(),
            directory=folder,
            log=folder / "services.log",
        )
        self.host = host
        line = self.wait_for("services on ")
        port = re.search(r":(\d+)$", line)
        assert port is not None, line
        self.port = int(port[1])

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def ask(self, method: str, path: str, value: object = None) -> Any:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
        try:
            connection.request(method, path, json.dumps(value) if value is not None else None)
            response = connection.getresponse()
            body = response.read()
            assert response.status == 200, (path, response.status, body)
            return json.loads(body)
        finally:
            connection.close()

    def set(self, **settings: object) -> None:
        self.ask("POST", "/control/settings", settings)

    def counts(self) -> dict[str, Any]:
        return dict(self.ask("GET", "/control"))

    def charges(self) -> dict[str, int]:
        return dict(self.ask("GET", "/control/charges"))


@contextmanager
def services(folder: Path, host: str = "127.0.0.1") -> Iterator[Services]:
    running = Services(folder, host)
    try:
        yield running
    finally:
        running.end()
