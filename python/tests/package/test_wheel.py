"""The whole of layby as one wheel: `pip install layby && layby run mysite.wsgi:application`."""

from __future__ import annotations

import http.client
import re
import signal
import subprocess
import sys
import time
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .test_package import PROJECT, SOURCES, published, run

REPOSITORY = PROJECT.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a debug build of the gateway, which the other tests have made already."""
    folder = tmp_path_factory.mktemp("wheel")
    maturin = [sys.executable, "-m", "maturin", "build", "--profile", "dev", "--locked"]
    # Cargo is asked where the repository is, as its own settings may say where to build.
    subprocess.run([*maturin, "--out", folder], cwd=REPOSITORY, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As somebody makes it who has read the README, with Django beside it."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    run(sys.executable, "-m", "venv", folder)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    run(*pip, "--no-index", wheel)
    run(*pip, "django")
    return folder


@pytest.fixture
def site(environment: Path, tmp_path: Path) -> Path:
    """What `startproject` makes, and nothing else."""
    run(environment / "bin" / "django-admin", "startproject", "mysite", tmp_path)
    return tmp_path


@contextmanager
def running(environment: Path, site: Path) -> Iterator[tuple[int, int]]:
    """`layby run`, not by way of an activated environment; its two ports."""
    log = site / "log"
    with log.open("wb") as output:
        gateway = subprocess.Popen(
            [
                environment / "bin" / "layby",
                "run",
                "mysite.wsgi:application",
                "--slots=2",
                "--listen=127.0.0.1:0",
                "--admin=127.0.0.1:0",
            ],
            cwd=site,
            env={"PATH": "/usr/bin:/bin"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 60
        ready = r" ready .*listen=127\.0\.0\.1:(\d+).*admin=127\.0\.0\.1:(\d+)"
        while not (ports := re.search(ready, log.read_text())):
            assert gateway.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield int(ports[1]), int(ports[2])
        gateway.send_signal(signal.SIGTERM)
        assert gateway.wait(20) == 0, log.read_text()
    finally:
        gateway.kill()
        gateway.wait()


def get(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def test_it_holds_the_gateway_and_the_whole_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name for name in names if name.startswith("layby/")} == published()
    assert [name for name in names if name.endswith(".data/scripts/layby")]
    # Not for any machine, and for every Python.
    assert re.fullmatch(r"layby-[\d.]+-py3-none-\w*linux\w+\.whl", wheel.name), wheel.name


def test_a_new_project_is_served_by_what_pip_has_installed(environment: Path, site: Path) -> None:
    with running(environment, site) as (port, admin):
        status, page = get(port, "/")
        assert (status, "The install worked successfully" in page) == (200, True)
        assert get(admin, "/readyz")[0] == 200
        assert 'layby_slots{state="idle"} 2' in get(admin, "/metrics")[1]


def test_both_projects_say_the_same_of_what_they_share() -> None:
    """The package of the workers alone, and the wheel with everything."""
    alone = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    whole = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = alone.pop("optional-dependencies")
    # Not for those who install it.
    del extras["test"], extras["sdks"]
    assert whole.pop("optional-dependencies") == extras
    for shared in ("name", "version", "requires-python", "license", "dependencies", "entry-points"):
        assert whole[shared] == alone[shared], shared
    supported = [each for each in alone["classifiers"] if "Python" in each or "Django" in each]
    assert set(supported) <= set(whole["classifiers"])
    assert SOURCES == REPOSITORY / "python" / "src"
