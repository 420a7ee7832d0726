"""gunicorn in front of the shop, its master and workers, in the releases that are supported."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from support.places import APPS
from support.program import Program

OLDEST = "23.0.0"
# What is installed beside the tests.
NEWEST = "newest"


def home(release: str) -> list[str]:
    """What goes to the front of PYTHONPATH to get this release. Fetched once per environment."""
    if release == NEWEST:
        return []
    folder = Path(sys.prefix) / f"gunicorn-{release}"
    if not (folder / "gunicorn").exists():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        # What it needs itself is there, for the newest one needs the same.
        command = [*pip, "--no-deps", "--target", folder, f"gunicorn=={release}"]
        if subprocess.run(command, check=False).returncode:
            pytest.skip(f"gunicorn {release} cannot be installed")
    return [str(folder)]


class Gunicorn(Program):
    """`python -m gunicorn -k layby.gunicorn.Worker`, configured by Python text."""

    def __init__(
        self,
        app: str,
        *,
        release: str,
        folder: Path,
        environment: Mapping[str, str],
        configuration: str,
        directory: Path = APPS,
    ) -> None:
        settings = folder / "gunicorn.conf.py"
        settings.write_text(configuration)
        path = [*home(release), environment.get("PYTHONPATH", "")]
        super().__init__(
            "gunicorn",
            [
                *(sys.executable, "-m", "gunicorn", "-k", "layby.gunicorn.Worker"),
                *("-c", settings, app),
            ],
            environment={**environment, "PYTHONPATH": ":".join(filter(None, path))},
            directory=directory,
            log=folder / "gunicorn.log",
        )

    def booted(self) -> list[int]:
        """The processes of all its workers so far, in order."""
        return [int(pid) for pid in re.findall(r"Booting worker with pid: (\d+)", self.log)]

    def exited(self) -> list[int]:
        return [int(pid) for pid in re.findall(r"Worker exiting \(pid: (\d+)\)", self.log)]
