"""What `make test-ship` has made, in dist/."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from support.places import REPOSITORY


@pytest.fixture(scope="session")
def version() -> str:
    manifest = tomllib.loads((REPOSITORY / "Cargo.toml").read_text())
    return str(manifest["package"]["version"])


def made(pattern: str) -> Path:
    found = sorted((REPOSITORY / "dist").glob(pattern))
    assert len(found) == 1, f"{pattern} in dist/: {found}; make clean, and make it"
    return found[0]


class Hello(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = b"hello from the origin"
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silence."""


@pytest.fixture
def origin() -> Iterator[int]:
    """The port of a server that says hello."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hello) as server:
        server.daemon_threads = True
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()
