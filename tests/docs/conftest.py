"""Origins for the examples, and a Django that is configured just enough for their views."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import django
import pytest
from django.conf import settings
from django.core.management import call_command


def pytest_configure() -> None:
    sys.path.insert(0, str(Path(__file__).parent / "apps"))
    settings.configure(
        ALLOWED_HOSTS=["testserver"],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        INSTALLED_APPS=["layby.django", "shop"],
        ROOT_URLCONF="shop.urls",
    )
    django.setup()
    call_command("migrate", run_syncdb=True, verbosity=0)


class Origin(BaseHTTPRequestHandler):
    """Knows everything that the examples ask for."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        body = json.dumps({"price": "4.90", "left": 3, "url": "/reports/7"}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Silence."""


@pytest.fixture(scope="session")
def origin() -> Iterator[str]:
    """Stands for every `https://….example` of the documents."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Origin) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
