"""What is in deploy/, read as its readers read it."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from support.places import BINARY, REPOSITORY, environment

DEPLOY = REPOSITORY / "deploy"


def documents(text: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(text) if document is not None]


def configuration(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text())


def seconds(duration: str) -> float:
    """Of a duration as layby and systemd write them."""
    match = re.fullmatch(r"(\d+)(ms|s|m|h|)", duration)
    assert match is not None, duration
    return int(match[1]) * {"ms": 0.001, "s": 1, "": 1, "m": 60, "h": 3600}[match[2]]


def drain(config: Mapping[str, Any]) -> float:
    """Seconds that a drain takes at most, of a configuration that is not complete."""
    return seconds(config.get("drain_delay", "0s")) + seconds(config.get("drain_timeout", "30s"))


def check(*arguments: str | Path, **variables: str) -> tuple[int, str]:
    """Status of `layby check`, and what it says: the configuration in force, or the mistakes."""
    command = [BINARY, "check", *arguments]
    done = subprocess.run(
        command,
        env=environment(**variables),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return done.returncode, done.stdout


def instructions(dockerfile: Path) -> Iterator[tuple[str, str]]:
    """Each instruction of a Dockerfile, continued lines in one, and what it is told."""
    text = re.sub(r"^\s*#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE)
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if line.strip():
            name, _, rest = line.partition(" ")
            yield name, rest.strip()
