"""The same project without a gateway: runserver, the shell, tests, other servers; and with one."""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

import pytest

from support.gateway import Gateway, free_ports
from support.places import APPS, PACKAGE, environment
from support.program import Program, until
from support.services import Services

SMALL = APPS / "small"
PYTHON = {"PYTHONPATH": str(PACKAGE)}

UPLOAD = (
    b'--x\r\nContent-Disposition: form-data; name="photo"; filename="p.png"\r\n\r\n123\r\n--x--\r\n'
)


def ask(
    port: int, method: str, path: str, body: bytes = b"", content_type: str = ""
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, {"content-type": content_type} if body else {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


@pytest.fixture
def running(stub: Services) -> Iterator[ExitStack]:
    with ExitStack() as programs:
        yield programs


def serve(running: ExitStack, folder: Path, command: list[str], directory: Path = SMALL) -> int:
    """Starts a server; its port."""
    (port,) = free_ports(1)
    program = Program(
        command[0],
        [sys.executable, "-m", *(word.format(port=port) for word in command)],
        environment=environment(**PYTHON, DJANGO_SETTINGS_MODULE="small.settings"),
        directory=directory,
        log=folder / "server.log",
    )
    running.callback(program.end)

    def up() -> bool:
        if program.process.poll() is not None:
            pytest.fail(program.tail())
        with contextlib.suppress(ConnectionRefusedError):
            return ask(port, "GET", "/") != (0, b"")
        return False

    until("the server does not answer", up, 30)
    return port


SERVERS = {
    "runserver": ["django", "runserver", "--noreload", "127.0.0.1:{port}"],
    "gunicorn": ["gunicorn", "--threads=4", "--bind=127.0.0.1:{port}", "small.wsgi"],
}


def assert_every_recipe_works(port: int, stub: Services) -> None:
    url = quote(f"{stub.url}/", safe="")
    status, body = ask(port, "GET", f"/recipes?url={url}")
    assert status == 200, body
    assert json.loads(body) == {"seen": [{"ok": True}] * 3 + [4, ["a", "b"]]}
    for path in ("in_place", "relayed"):
        status, body = ask(port, "GET", f"/{path}?url={url}")
        assert (status, json.loads(body)) == (200, {"ok": True})
    kind = "multipart/form-data; boundary=x"
    assert ask(port, "POST", "/upload", UPLOAD, kind) == (200, b"p.png 3")


@pytest.mark.parametrize("server", SERVERS)
def test_every_recipe_works_without_a_gateway(
    running: ExitStack, stub: Services, tmp_path: Path, server: str
) -> None:
    assert_every_recipe_works(serve(running, tmp_path, SERVERS[server]), stub)


@pytest.mark.parametrize("mode", ["coroutine", "greenlet", "wsgi"])
def test_and_with_one(running: ExitStack, stub: Services, tmp_path: Path, mode: str) -> None:
    gateway = Gateway(
        "small.wsgi",
        folder=tmp_path,
        environment=environment(**PYTHON, DJANGO_SETTINGS_MODULE="small.settings"),
        configuration=f'[outbound]\nallow = ["{stub.host}"]\n',
        flags=(f"--mode={mode}", "--slots=2", "--processes=1"),
        directory=SMALL,
    )
    running.callback(gateway.end)
    gateway.wait_ready()
    assert_every_recipe_works(gateway.port, stub)
    gateway.settles(2)


def python(*command: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=SMALL,
        env=environment(**PYTHON, **variables),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_shell(stub: Services) -> None:
    fetch = f"layby.get('{stub.url}/').result()"
    said = python("manage.py", "shell", "-c", f"import layby; print({fetch}.status_code)")
    assert "200" in said


def test_pytest(stub: Services) -> None:
    said = python(
        *("-W", "error", "-m", "pytest", "-p", "no:cacheprovider", "tests_of_small.py"),
        STUB=f"{stub.url}/",
    )
    assert "4 passed" in said


def test_the_check_is_silent(stub: Services) -> None:
    assert "no issues" in python("manage.py", "check")


def test_flask_s_own_server(running: ExitStack, stub: Services, tmp_path: Path) -> None:
    command = ["flask", "--app", "flasked:application", "run", "--port={port}"]
    port = serve(running, tmp_path, command, APPS)
    urls = [f"{stub.url}/shipping/quote?grams={grams}" for grams in (100, 200)]
    body = json.dumps({"urls": urls}).encode()
    status, answer = ask(port, "POST", "/both", body, "application/json")
    assert status == 200
    assert [quoted["price"] for quoted in json.loads(answer)] == ["4.00", "4.10"]
