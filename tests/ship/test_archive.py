"""The archive's program, on a machine that has nothing else: no C library, no shell, no /proc."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import tarfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import made
from jail import jailed
from support.gateway import free_ports
from support.program import until


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The machine, with what the archive holds."""
    archive = made(f"layby-*-{platform.machine()}-linux.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "root", filter="data")
    (unpacked,) = (tmp_path / "root").iterdir()
    return unpacked


def test_its_checksum_is_right() -> None:
    archive = made(f"layby-*-{platform.machine()}-linux.tar.gz")
    check = ["sha256sum", "--check", f"{archive.name}.sha256"]
    subprocess.run(check, cwd=archive.parent, check=True)


def test_the_program_needs_no_other_file(root: Path) -> None:
    headers = subprocess.run(
        ["readelf", "--wide", "--program-headers", "--dynamic", root / "layby"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert "INTERP" not in headers
    assert "NEEDED" not in headers


@contextmanager
def running(root: Path, origin: int, tmp_path: Path, hosts: str | None = None) -> Iterator[int]:
    """The port of a gateway on that machine, before a server that it has to look up."""
    listen, admin = free_ports(2)
    (root / "etc").mkdir()
    (root / "etc" / "hosts").write_text("127.0.0.1 origin.test\n")
    if hosts is not None:
        (root / "etc" / "nsswitch.conf").write_text(f"hosts: {hosts}\n")
    spool = tmp_path / "spool"
    spool.mkdir()
    spool.chmod(0o777)
    (root / "var" / "tmp").mkdir(parents=True)
    gateway = jailed(
        root,
        [
            "/layby",
            "serve",
            f"--upstream=http://origin.test:{origin}",
            f"--listen=127.0.0.1:{listen}",
            f"--admin=127.0.0.1:{admin}",
        ],
        log=tmp_path / "log",
        volumes={"/var/tmp": spool},
    )
    try:
        gateway.wait_for(" ready ")
        health = [root / "layby", "health", f"--admin=127.0.0.1:{admin}"]
        until("it is not ready", lambda: subprocess.run(health).returncode == 0, 10)
        yield listen
    finally:
        gateway.end()
    assert gateway.process.returncode == 0, gateway.tail()


def hello(port: int) -> bool:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
        return bool(answer.read() == b"hello from the origin")


def test_it_serves_with_nothing_around_it(root: Path, origin: int, tmp_path: Path) -> None:
    with running(root, origin, tmp_path) as port:
        assert hello(port)


MODULE = "__attribute__((constructor)) static void loaded(void) { __builtin_trap(); }"


def test_it_loads_no_module_of_the_machine_to_look_names_up(
    root: Path, origin: int, tmp_path: Path
) -> None:
    """One that would end it is first in nsswitch.conf, with all that it needs beside it."""
    source = tmp_path / "module.c"
    source.write_text(MODULE)
    linked = subprocess.run(["ldd", "/bin/true"], check=True, capture_output=True, text=True).stdout
    for library in re.findall(r"(/\S*(?:libc\.so|ld-linux)\S*)", linked):
        there = root / library.lstrip("/")
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, there)
        module = there.parent / "libnss_deadly.so.2"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", module, source], check=True)
    with running(root, origin, tmp_path, hosts="deadly files") as port:
        assert hello(port)
