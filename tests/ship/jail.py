"""A machine that has nothing but what is put there: a folder as its root, read-only, and a user."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from support.program import Program

# Who runs it: nobody whom this machine knows.
USER = 65532


def jailed(
    root: Path,
    command: Sequence[str],
    *,
    log: Path,
    volumes: Mapping[str, Path],
    directory: str = "/",
    environment: Mapping[str, str] | None = None,
) -> Program:
    """The command, with `root` as its root and the volumes to write to. It shares our network."""
    if os.geteuid() != 0:
        pytest.fail("a machine with nothing on it can only be made by root")
    steps = [
        # Nothing of it is seen outside, or stays.
        "mount --make-rprivate /",
        f"mount --bind {root} {root}",
        f"mount -o remount,ro,bind {root}",
        *(f"mount --bind {path} {root}{inside}" for inside, path in volumes.items()),
        # Each step becomes the next, so that our signals reach the command itself.
        f"exec unshare --root={root} --wd={directory} --setgid={USER} --setuid={USER}"
        f" -- {shlex.join(command)}",
    ]
    return Program(
        command[0],
        ["unshare", "--mount", "sh", "-c", " && ".join(steps)],
        # Of ours, nothing: not even a PATH to find things with.
        environment={"PATH": os.environ["PATH"], **(environment or {})},
        directory=Path("/"),
        log=log,
    )
