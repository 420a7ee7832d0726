"""`docs/admin.md` against a gateway with a request that waits."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from documents import BINARY, REPOSITORY, environment, prose

ADMIN = REPOSITORY / "docs" / "admin.md"

APPLICATION = """
import layby

def application(environ, start_response):
    layby.sleep(0.3 if environ["PATH_INFO"] == "/short" else 30).result()
    start_response("200 OK", [("Content-Length", "0")])
    return []
"""


# Nobody is there, and nobody is asked.
ELSEWHERE = """
[[route]]
path = "/elsewhere"
upstream = "http://127.0.0.1:9"
"""


class Gateway:
    """Running, on ports that the kernel chose."""

    def __init__(self, folder: Path) -> None:
        (folder / "waits.py").write_text(APPLICATION)
        # Read because it lies where the gateway is started.
        (folder / "layby.toml").write_text(ELSEWHERE)
        command = [BINARY, "run", "waits:application", "--slots=2", "--python", sys.executable]
        self.socket = f"{folder}/listen"
        command += [f"--listen=unix:{self.socket}", "--admin=127.0.0.1:0", "--log-format=json"]
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=folder, env=environment(), stderr=log)
        self.admin = self._admin()

    def _admin(self) -> str:
        end = time.monotonic() + 60
        while time.monotonic() < end and self.process.poll() is None:
            for line in self.log.read_text().splitlines():
                if line.startswith("{") and "admin" in (event := json.loads(line)):
                    return f"http://{event['admin']}"
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())

    def get(self, path: str, host: str | None = None) -> tuple[int, str]:
        request = urllib.request.Request(self.admin + path)
        if host is not None:
            request.add_header("Host", host)
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def ask(self, path: str) -> None:
        """A request of the application."""
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(self.socket)
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            client.recv(1000)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    # Not tmp_path: the path of a Unix socket must be short.
    with tempfile.TemporaryDirectory(prefix="layby-") as folder:
        running = Gateway(Path(folder))
        yield running
        running.end()


def fields(value: Any, name: str = "") -> Iterator[str]:
    """The names of all that is no container, in the way that the document writes them."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from fields(inner, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        for inner in value:
            yield from fields(inner, f"{name}[]")
    else:
        yield name


def documented() -> set[str]:
    table = prose(ADMIN).partition("## `/api/status`")[2]
    lefts = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    return {name for left in lefts for name in re.findall(r"`([^`]+)`", left)}


def test_the_status_has_the_documented_fields_and_no_others(gateway: Gateway) -> None:
    gateway.ask("/short")
    threading.Thread(target=gateway.ask, args=["/long?token=secret"], daemon=True).start()
    end = time.monotonic() + 20
    while True:
        _, text = gateway.get("/api/status")
        status = json.loads(text)
        if '"path":"/long"' in text and status["history"]["busy"] and status["slow_requests"]:
            break
        assert time.monotonic() < end, text
        time.sleep(0.05)
    # One slot works and the other does not, so that its job is null. Nothing of this parks.
    parts = ("what", "origin", "requests", "longest_seconds")
    absent = {"not_ready_because", *(f"parked.waits_for[].{part}" for part in parts)}
    assert set(fields(status)) | absent == documented()
    assert "secret" not in text


def test_the_listener_answers_as_documented(gateway: Gateway) -> None:
    assert gateway.get("/livez") == (200, "alive\n")
    assert gateway.get("/readyz") == (200, "ready\n")
    assert gateway.get("/metrics")[0] == 200
    index = gateway.get("/")[1]
    for path in re.findall(r"^\| `(/[a-z/]*)` \|", prose(ADMIN), re.MULTILINE):
        assert path == "/" or path in index
    assert gateway.get("/livez", host="shop.example")[0] == 421
    assert gateway.get("/livez", host="localhost:1")[0] == 200
