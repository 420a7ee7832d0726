"""The image, run as a runtime of containers would: a read-only root, its user, its command."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import made
from jail import USER, jailed
from support.gateway import free_ports
from support.places import APPS, PACKAGE, environment
from support.program import Program, until


@dataclass
class Image:
    root: Path
    config: dict[str, Any]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """What `docker load` would make of the archive."""
    folder = tmp_path_factory.mktemp("image")
    root = folder / "root"
    root.mkdir()
    with tarfile.open(made("layby-*-image.tar")) as archive:
        archive.extractall(folder, filter="data")
    (manifest,) = json.loads((folder / "manifest.json").read_text())
    for name in manifest["Layers"]:
        with tarfile.open(folder / name) as layer:
            # With the owners that it says.
            layer.extractall(root, filter="fully_trusted", numeric_owner=True)
    config = json.loads((folder / manifest["Config"]).read_text())["config"]
    return Image(root, config)


def test_it_is_small_and_has_nothing_in_it_but_what_it_runs(image: Image) -> None:
    files = {
        str(path.relative_to(image.root)): path.stat().st_size
        for path in image.root.rglob("*")
        if path.is_file()
    }
    assert set(files) == {
        "usr/bin/layby",
        "etc/ssl/certs/ca-certificates.crt",
        "etc/layby/layby.toml",
    }
    assert sum(files.values()) < 20_000_000


def test_its_user_can_write_only_where_volumes_belong(image: Image) -> None:
    assert image.config["User"] == f"{USER}:{USER}"
    owned = {
        str(path.relative_to(image.root))
        for path in image.root.rglob("*")
        if path.stat().st_uid == USER
    }
    # Buildah gives the folders above them away, too; Docker does not.
    assert owned - {"run", "var"} == {"run/layby", "var/tmp"}


def test_it_says_when_it_is_healthy_and_how_it_is_stopped(image: Image) -> None:
    assert image.config["Healthcheck"]["Test"] == ["CMD", "/usr/bin/layby", "health"]
    assert image.config["StopSignal"] == "SIGTERM"
    assert set(image.config["ExposedPorts"]) == {"8000/tcp", "9181/tcp"}


@dataclass
class Container:
    program: Program
    listen: int
    probes: int
    admin: int


@pytest.fixture
def container(image: Image, tmp_path: Path) -> Iterator[Container]:
    """With its own command, beside workers that it meets at the socket of a shared volume."""
    link, spool = tmp_path / "link", tmp_path / "spool"
    for volume in (link, spool):
        volume.mkdir()
        os.chown(volume, USER, USER)
    listen, probes, admin = free_ports(3)
    with ExitStack() as running:
        gateway = jailed(
            image.root,
            [*image.config["Entrypoint"], *image.config["Cmd"]],
            log=tmp_path / "gateway.log",
            volumes={"/run/layby": link, "/var/tmp": spool},
            directory=image.config["WorkingDir"],
            environment={
                "LAYBY_LISTEN": f"127.0.0.1:{listen}",
                "LAYBY_PROBES": f"127.0.0.1:{probes}",
                "LAYBY_ADMIN": f"127.0.0.1:{admin}",
                "LAYBY_OUTBOUND_ALLOW": "127.0.0.1",
            },
        )
        running.callback(gateway.end)
        workers = Program(
            "workers",
            [sys.executable, "-m", "layby", "plain", f"--link=unix:{link}/link.sock"],
            environment=environment(PYTHONPATH=f"{PACKAGE}:{APPS}"),
            directory=APPS,
            log=tmp_path / "workers.log",
        )
        running.callback(workers.end)
        command = [*image.config["Healthcheck"]["Test"][1:], f"--admin=127.0.0.1:{admin}"]
        command[0] = f"{image.root}{command[0]}"
        until(
            f"it is not healthy, see {gateway.log_path}",
            lambda: subprocess.run(command, capture_output=True).returncode == 0,
            30,
        )
        yield Container(gateway, listen, probes, admin)


def get(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
        return str(answer.read().decode())


def test_it_serves_an_application_in_another_container(container: Container, origin: int) -> None:
    assert get(container.listen, "/") == "hello"
    assert (
        get(container.listen, f"/fetch?url=http://127.0.0.1:{origin}/") == "hello from the origin"
    )
    assert re.search(r"^layby_slots\{state=\"idle\"\} 8$", get(container.probes, "/metrics"), re.M)
    assert json.loads(container.program.log.splitlines()[0]), "the log is JSON, for its collector"


def test_a_large_body_goes_to_the_volume_of_the_spool(container: Container) -> None:
    request = urllib.request.Request(f"http://127.0.0.1:{container.listen}/", data=b"x" * 8_000_000)
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.read() == b"hello"


def test_it_drains_when_it_is_stopped(container: Container) -> None:
    container.program.process.terminate()
    assert container.program.wait(20) == 0, container.program.tail()
