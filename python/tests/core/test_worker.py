"""The worker process as its gateway and its operator see it: `python -m layby`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from fakegateway import Link

APPS = Path(__file__).parent / "apps"


class Process:
    """A worker process and what it prints."""

    def __init__(
        self, link: Link, arguments: tuple[str, ...], directory: Path, environ: dict[str, str]
    ) -> None:
        clean = {n: v for n, v in os.environ.items() if not n.startswith("LAYBY_")}
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "layby", *arguments, "--link", f"unix:{link.path}"],
            cwd=directory,
            env={**clean, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self) -> tuple[int, str]:
        """Its exit status and what it wrote to stderr."""
        _, errors = self.popen.communicate(timeout=20)
        return self.popen.returncode, errors

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)


Run = Callable[..., Process]


@pytest.fixture
def run(link: Link) -> Iterator[Run]:
    started: list[Process] = []

    def run(*arguments: str, directory: Path = APPS, **environ: str) -> Process:
        started.append(Process(link, arguments, directory, environ))
        return started[-1]

    yield run
    for process in started:
        process.popen.kill()
        process.popen.communicate()


def test_a_worker_joins_serves_and_drains(link: Link, run: Run) -> None:
    worker = run("shop", "--threads", "2", LAYBY_TOKEN="t")
    control, hello = link.welcome()
    assert hello.pop("version").startswith("layby-python/")
    assert hello == {
        "pid": worker.popen.pid,
        "threads": 2,
        "mode": "wsgi",
        "app": "shop",
        "token": "t",
        "pings": True,
        "dumps": True,
        "stacks": True,
    }
    slots = [link.grant(control, number) for number in (3, 4)]
    for slot in slots:
        slot.request(1)
        assert slot.answer()[1] == b"hello"
    control.send("DRAIN")
    for slot in slots:
        slot.send("RETIRE")
        slot.expect("RETIRED")
        assert slot.closed()
    control.close()
    status, errors = worker.end()
    assert status == 0
    assert "mode wsgi for shop: not Django's own WSGI application" in errors
    assert "gone" not in errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_for_a_drain(link: Link, run: Run, number: int) -> None:
    worker = run("shop:nested.app")
    control, _ = link.welcome()
    slot = link.grant(control, 0)
    worker.signal(number)
    control.expect("BYE")
    # It serves on until the gateway lets it go.
    slot.request(1)
    assert slot.answer()[1] == b"hello"
    control.send("DRAIN")
    slot.send("RETIRE")
    slot.expect("RETIRED")
    control.close()
    assert worker.end()[0] == 0


def test_ctrl_c_is_left_to_a_supervising_gateway(link: Link, run: Run) -> None:
    worker = run("shop", LAYBY_TOKEN="t")
    control, _ = link.welcome()
    slot = link.grant(control, 0)
    worker.signal(signal.SIGINT)
    slot.request(1)
    assert slot.answer()[1] == b"hello"
    assert control.quiet()


def test_a_second_signal_ends_it_at_once(link: Link, run: Run) -> None:
    worker = run("shop")
    control, _ = link.welcome()
    worker.signal(signal.SIGTERM)
    control.expect("BYE")
    worker.signal(signal.SIGTERM)
    assert worker.end()[0] == 128 + signal.SIGTERM


def test_a_signal_during_a_drain_asks_for_nothing(link: Link, run: Run) -> None:
    worker = run("shop")
    control, _ = link.welcome()
    control.send("DRAIN")
    # What comes after it on the same connection shows that the drain has been read.
    slot = link.grant(control, 0)
    slot.request(1)
    slot.answer()
    worker.signal(signal.SIGTERM)
    assert control.quiet()
    slot.send("RETIRE")
    slot.expect("RETIRED")
    control.close()
    assert worker.end()[0] == 0


class Hello(BaseHTTPRequestHandler):
    """A page that is not the gateway's."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"from an origin")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize("mode", ["wsgi", "greenlet"])
def test_a_forked_child_is_no_worker(link: Link, run: Run, mode: str) -> None:
    if mode == "greenlet":
        pytest.importorskip("greenlet")
    worker = run("shop", "--mode", mode, LAYBY_TOKEN="t")
    control, _ = link.welcome()
    slot, other = link.grant(control, 0), link.grant(control, 1)
    with HTTPServer(("127.0.0.1", 0), Hello) as origin:
        threading.Thread(target=origin.serve_forever, daemon=True).start()
        # Its fetches are its own affair: the slot is its parent's.
        url = f"http://127.0.0.1:{origin.server_port}/"
        slot.request(1, "/child-asks", QUERY_STRING=url)
        assert slot.answer()[1] == b"from an origin"
        origin.shutdown()
    # What ends it says nothing of the worker.
    slot.request(2, "/pool")
    assert slot.answer()[1] == b"3"
    slot.request(3, "/end-a-child")
    assert slot.answer()[1] == b"%d" % -signal.SIGTERM
    assert control.quiet(0.05)
    # Nor does its life keep a slot that its parent has given back, or its parent.
    slot.request(4, "/child-stays")
    slot.answer()
    control.send("DRAIN")
    for each in (slot, other):
        each.send("RETIRE")
        each.expect("RETIRED")
        assert each.closed()
    control.close()
    status, errors = worker.end()
    assert status == 0, errors


def test_a_slot_that_cannot_be_opened_ends_the_process(link: Link, run: Run) -> None:
    worker = run("shop")
    control, _ = link.welcome()
    slot = link.grant(control, 0)
    slot.request(1, "/take-descriptors")
    slot.answer()
    control.send("GRANT", aux=1)
    assert control.closed()
    status, errors = worker.end()
    assert status == 1
    assert "slot 1 could not be opened, so this process ends: [Errno 24]" in errors
    assert "gone" not in errors


def test_a_slot_that_is_refused_ends_the_process(link: Link, run: Run) -> None:
    worker = run("shop")
    control, _ = link.welcome()
    link.grant(control, 0)
    link.grant(control, 1).send("REFUSED", head=b"slot 1 was not granted to it")
    status, errors = worker.end()
    assert status == 1
    assert "slot 1: refused by the gateway: slot 1 was not granted to it" in errors
    assert "slot 1 could not be opened, so this process ends" in errors


def test_it_ends_when_the_gateway_is_gone_even_if_a_slot_is_stuck(link: Link, run: Run) -> None:
    worker = run("shop")
    control, _ = link.welcome()
    stuck, idle = link.grant(control, 0), link.grant(control, 1)
    stuck.request(1, "/stuck")
    idle.request(2)
    idle.answer()
    control.close()
    status, errors = worker.end()
    assert status == 1
    assert "the gateway is gone" in errors
    assert "ended while layby-slot-0 still ran" in errors


def test_a_parked_request_does_not_keep_it_from_ending(link: Link, run: Run) -> None:
    worker = run("shop:parking", "--mode", "coroutine")
    control, hello = link.welcome()
    assert hello["mode"] == "coroutine"
    one, two = link.grant(control, 0), link.grant(control, 1)
    one.request(1)
    one.expect("PARK")
    two.results("RESUME", 1, 1, {"slept": 1.0})
    assert two.answer()[1] == b"slept 1.0"
    one.request(2)
    one.expect("PARK")
    control.close()
    assert worker.end()[0] == 1


def test_an_application_that_cannot_be_imported_shows_why(link: Link, run: Run) -> None:
    for app, why in [
        ("broken", "RuntimeError: the settings are wrong"),
        ("leaves", "SystemExit: 0"),
        ("no_such_module:app", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("shop:nothing", "AttributeError: module 'shop' has no attribute 'nothing'"),
        ("shop:not_callable", "int cannot be called"),
    ]:
        status, errors = run(app).end()
        assert status == 3
        assert why in errors
        assert (app == "shop:not_callable") or "Traceback" in errors


def test_a_ping_is_answered_however_busy_the_slots_are(link: Link, run: Run) -> None:
    run("shop")
    control, _ = link.welcome()
    slot = link.grant(control, 0)
    slot.request(1, "/stuck")
    control.send("PING")
    control.expect("PONG")
    assert slot.quiet(0.05)


def test_a_signal_shows_what_every_thread_does_even_if_the_interpreter_is_held(
    link: Link, run: Run
) -> None:
    worker = run("shop", LAYBY_TOKEN="t")
    control, hello = link.welcome()
    assert hello["dumps"] is True
    slot = link.grant(control, 0)
    slot.request(1, "/held")
    # Until the slot's thread has come so far.
    control.send("PING")
    while not control.quiet(0.3):
        control.expect("PONG")
        control.send("PING")
    worker.signal(signal.SIGUSR2)
    lines: list[str] = []
    assert worker.popen.stderr is not None
    for line in worker.popen.stderr:
        lines.append(line)
        if "in held" in line:
            break
    assert any("most recent call first" in line for line in lines), lines


@pytest.mark.parametrize("environ", [{}, {"LAYBY_TOKEN": "t", "SHOP_USES_USR2": "1"}])
def test_a_signal_that_is_not_ours_is_left_alone(
    link: Link, run: Run, environ: dict[str, str]
) -> None:
    run("shop", **environ)
    _, hello = link.welcome()
    assert hello["dumps"] is False


def test_a_refused_worker_says_why_and_exits(link: Link, run: Run) -> None:
    worker = run("shop")
    control = link.accept()
    control.expect("HELLO")
    control.send("REFUSED", head=b"speaks version 1 of the link protocol, this gateway version 2")
    status, errors = worker.end()
    assert status == 4
    assert "refused by the gateway: speaks version 1" in errors
    assert "Traceback" not in errors


def test_a_gateway_that_talks_nonsense_is_left(link: Link, run: Run) -> None:
    worker = run("shop")
    control, _ = link.welcome()
    control.send("READY")
    status, errors = worker.end()
    assert status == 1
    assert "the gateway sent what it must not" in errors
    assert "Traceback" not in errors


def test_thread_locals_that_do_not_exist_are_an_error_at_start(link: Link, run: Run) -> None:
    worker = run("shop:parking", "--mode", "coroutine")
    link.welcome(thread_locals=["shop.no_such_local"])
    status, errors = worker.end()
    assert status == 1
    assert "thread_locals: there is no shop.no_such_local" in errors


@pytest.mark.parametrize(
    ("arguments", "status", "why"),
    [
        (("shop", "--mode", "coroutine"), 1, "mode coroutine needs Django's own WSGI application"),
        (("shop", "--mode", "magic"), 2, "invalid choice"),
        (("shop", "--threads", "0"), 2, "--threads must be at least 1"),
        (("shop", "--threads", "1", "--link", "tcp:1"), 2, "--link must be unix:PATH"),
    ],
)
def test_a_start_that_cannot_succeed(link: Link, arguments: Any, status: int, why: str) -> None:
    command = [sys.executable, "-m", "layby", "--link", f"unix:{link.path}", *arguments]
    done = subprocess.run(
        command, cwd=APPS, capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == status
    assert why in done.stderr
    assert "Traceback" not in done.stderr


def test_output_of_the_application_is_its_own(link: Link, run: Run) -> None:
    worker = run("shop")
    control, _ = link.welcome()
    slot = link.grant(control, 0)
    slot.request(1, "/prints")
    slot.answer()
    control.send("DRAIN")
    slot.send("RETIRE")
    slot.expect("RETIRED")
    control.close()
    output, _ = worker.popen.communicate(timeout=20)
    assert output == "from the application\n"


_FLASK_BESIDE_DJANGO = """
{before}
from flask import Flask

application = Flask("shop")


@application.get("/")
def hello():
    return "hello"
"""


@pytest.mark.parametrize(
    ("before", "module"),
    [
        ("import django.conf", ""),
        ("import django.conf", "gone.settings"),
        ("from django.conf import settings\nsettings.configure(TEMPLATES=[])", ""),
        ("import sentry_sdk\nsentry_sdk.init()", ""),
    ],
    ids=["imported", "without its settings", "configured", "by sentry"],
)
def test_an_application_beside_which_django_is_imported_starts(
    link: Link, run: Run, tmp_path: Path, before: str, module: str
) -> None:
    (tmp_path / "shop.py").write_text(_FLASK_BESIDE_DJANGO.format(before=before))
    worker = run("shop", directory=tmp_path, DJANGO_SETTINGS_MODULE=module)
    control, _ = link.welcome()
    slot = link.grant(control, 0)
    slot.request(1)
    assert slot.answer()[1] == b"hello"
    control.close()
    errors = worker.end()[1]
    assert "Traceback" not in errors
    # It is not about the application's views, which are Flask's.
    assert "INSTALLED_APPS" not in errors
    assert ("cannot be imported, so layby leaves it alone" in errors) == bool(module)
