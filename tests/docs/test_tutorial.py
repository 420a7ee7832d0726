"""The tutorial, followed to the letter: its files written, its commands run, its output compared.

What is different here: the ports are free ones, and what is installed is what was built.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from documents import BINARY, REPOSITORY, environment

TUTORIAL = REPOSITORY / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Installed already: the walk through a clean machine tries these.
INSTALLING = ["python3 -m venv venv", ". venv/bin/activate", "pip install django layby"]
# They run until they are told to end.
SERVERS = {"python slow.py": 9000, "layby run": 8000}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Machine:
    """A folder, its programs, and what runs in the other terminals."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {str(port): str(free_port()) for port in (8000, 9000, 9180)}
        self.servers: dict[str, subprocess.Popen[bytes]] = {}
        programs = folder / ".programs"
        programs.mkdir()
        (programs / "layby").symlink_to(BINARY)
        # Only ours: others on this machine may run one, too.
        (programs / "pkill").write_text(f'#!/bin/sh\nkill -HUP "$(cat {folder}/.layby.pid)"\n')
        (programs / "pkill").chmod(0o755)
        path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = {**environment(), "PATH": path, "VIRTUAL_ENV": sys.prefix}

    def local(self, text: str) -> str:
        return re.sub(r"\b(8000|9000|9180)\b", lambda found: self.ports[found[0]], text)

    def write(self, text: str) -> None:
        heading, _, body = self.local(text).partition("\n")
        place = re.fullmatch(r"# (at the end of )?([\w./]+)", heading)
        assert place, heading
        with (self.folder / place[2]).open("a" if place[1] else "w") as file:
            file.write(body)

    def run(self, command: str) -> str:
        line = command.strip()
        if line in SERVERS:
            self.start(line, int(self.ports[str(SERVERS[line])]))
            return ""
        before = self.generation()
        done = subprocess.run(
            ["bash", "-e", "-c", self.local(command)],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}{done.stdout}{done.stderr}"
        if "pkill" in command:
            until(lambda: self.generation() > before)
        return done.stdout

    def start(self, line: str, port: int) -> None:
        log = self.folder / f".{line.split()[0]}.log"
        with log.open("wb") as output:
            words = line.split()
            words[0] = {"python": sys.executable, "layby": str(BINARY)}[words[0]]
            self.servers[line] = subprocess.Popen(
                words, cwd=self.folder, env=self.environment, stdout=output, stderr=output
            )
        (self.folder / f".{line.split()[0]}.pid").write_text(str(self.servers[line].pid))
        until(lambda: answers(port))

    def generation(self) -> int:
        """How often the workers have been replaced."""
        log = self.folder / ".layby.log"
        return log.read_text().count("worker replaced") if log.exists() else 0

    def end(self) -> None:
        for server in self.servers.values():
            server.terminate()
            server.wait(30)


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def answers(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10).close()
    except urllib.error.HTTPError as error:
        error.close()
    except OSError:
        return False
    return True


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    made.end()


def test_every_step_of_the_tutorial(machine: Machine) -> None:
    printed, seconds = "", []
    installed = False
    for language, text in BLOCK.findall(TUTORIAL.read_text()):
        if language in ("python", "toml"):
            machine.write(text)
        elif language == "text":
            pattern = ".*?".join(re.escape(part) for part in text.split("…"))
            # How long it takes depends on the machine as well: see below.
            pattern = re.sub(r"in\\ \d\\.", r"in\\ \\d+\\.", pattern)
            assert re.fullmatch(pattern, printed), printed
            seconds += [float(found) for found in re.findall(r"answers in ([\d.]+) s", printed)]
        elif not installed:
            assert text.splitlines() == INSTALLING
            installed = True
        else:
            printed = machine.run(text)
    holding, parking, in_place = seconds
    # Two slots, eight requests, a second each; what is printed is rounded to a tenth.
    assert holding >= 4
    assert 1 <= parking < 4
    assert in_place >= 4
    assert set(machine.servers) == set(SERVERS)
