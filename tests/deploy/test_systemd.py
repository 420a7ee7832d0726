"""The units of deploy/systemd, judged by systemd's own tools, and started with its sockets."""

from __future__ import annotations

import configparser
import re
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from deployed import DEPLOY, check, configuration, drain, seconds
from support.gateway import free_ports
from support.places import APPS, BINARY, environment
from support.program import Program, until

UNITS = DEPLOY / "systemd"


def unit(name: str) -> configparser.ConfigParser:
    read = configparser.ConfigParser(interpolation=None, strict=False, delimiters=("=",))
    # systemd tells keys apart by case.
    read.optionxform = str  # type: ignore[assignment,method-assign]
    read.read(UNITS / name)
    return read


SERVICE = unit("layby.service")["Service"]
SOCKET = unit("layby.socket")["Socket"]


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units as on a machine that has the application: what they start is there."""
    program = tmp_path / "layby"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for path in UNITS.glob("layby.*"):
        if path.suffix in (".service", ".socket"):
            text = path.read_text().replace("/srv/shop/venv/bin/layby", str(program))
            (tmp_path / path.name).write_text(text)
    return tmp_path


def verified(folder: Path) -> tuple[int, str]:
    units = [folder / "layby.service", folder / "layby.socket"]
    command = ["systemd-analyze", "verify", "--man=no", *units]
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    # Only what is said of ours: units that other packages have installed are their business.
    return done.returncode, "\n".join(x for x in done.stdout.splitlines() if "layby" in x)


def test_systemd_understands_every_line(installed: Path) -> None:
    assert verified(installed) == (0, "")


def test_a_key_that_systemd_does_not_know_would_be_noticed(installed: Path) -> None:
    path = installed / "layby.service"
    path.write_text(path.read_text().replace("KillMode=", "KilMode="))
    assert "KilMode" in verified(installed)[1]


def test_systemd_finds_little_to_object_to(installed: Path) -> None:
    service = installed / "layby.service"
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", service]
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    assert re.search(r"Overall exposure level for layby\.service: (1|0)\.\d OK", done.stdout)


def test_a_stop_waits_for_the_drain_and_reaches_the_gateway_alone() -> None:
    config = configuration(UNITS / "layby.toml")
    assert seconds(SERVICE["TimeoutStopSec"]) >= drain(config) + 10
    assert SERVICE["KillMode"] == "mixed"


def test_the_service_takes_the_socket_that_systemd_passes() -> None:
    variable, _, value = SERVICE["Environment"].partition("=")
    assert value == f"systemd:{SOCKET['FileDescriptorName']}"
    status, said = check("--config", UNITS / "layby.toml", **{variable: value})
    assert status == 0, said
    assert f'listen = ["{value}"]' in said


def test_it_starts_on_a_socket_that_systemd_has_opened(tmp_path: Path) -> None:
    """What ExecStart says, by systemd's own program for trying socket activation."""
    listen, admin = free_ports(2)
    command = shlex.split(SERVICE["ExecStart"])
    assert command[0].endswith("/layby")
    config = tmp_path / "layby.toml"
    text = (UNITS / "layby.toml").read_text()
    config.write_text(
        text.replace("127.0.0.1:9180", f"127.0.0.1:{admin}").replace("shop.wsgi", "plain")
    )
    words = {"shop.wsgi:application": "plain:application", "/etc/layby/layby.toml": str(config)}
    variable, _, value = SERVICE["Environment"].partition("=")
    gateway = Program(
        "the gateway",
        [
            "systemd-socket-activate",
            f"--listen=127.0.0.1:{listen}",
            f"--fdname={SOCKET['FileDescriptorName']}",
            f"--setenv={variable}={value}",
            # It passes on little else of the environment.
            *(f"--setenv={name}" for name in environment() if name.startswith("PYTHON")),
            BINARY,
            *(words.get(word, word) for word in command[1:]),
            f"--python={sys.executable}",
        ],
        environment=environment(),
        directory=APPS,
        log=tmp_path / "log",
    )
    try:
        gateway.wait_for("Listening on")
        # The first client is why it starts, and waits in the socket's queue until it is there.
        with urllib.request.urlopen(f"http://127.0.0.1:{listen}/", timeout=60) as answer:
            assert answer.read() == b"hello"
        until("it is not ready", lambda: gateway.lines_with(" ready "), 20)
    finally:
        gateway.end()
    assert gateway.process.returncode == 0, gateway.tail()
