"""The stub as a process of its own, for the tests of whatever calls it."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).resolve().parent / "stub.py"


class RunningStub:
    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), "--port", "0"], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().split()[-1]
        self.port = int(self.url.rpartition(":")[2])

    def close(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=10)

    def set(self, **settings: object) -> None:
        self.ask("POST", "/control/settings", settings)

    def reset(self) -> None:
        self.ask("POST", "/control/reset")

    def charges(self) -> dict[str, int]:
        return dict(self.ask("GET", "/control/charges"))

    def counts(self) -> dict[str, Any]:
        return dict(self.ask("GET", "/control"))

    def ask(self, method: str, path: str, body: object = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            response = connection.getresponse()
            answer = json.loads(response.read())
        finally:
            connection.close()
        if response.status != 200:
            raise AssertionError(f"{method} {path}: {response.status} {answer}")
        return answer
