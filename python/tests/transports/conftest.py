"""Slots that the test is the gateway of, an origin on loopback, and libraries left as they were."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CORE = HERE.parent / "core"
sys.path[:0] = [str(HERE), str(CORE)]

_spec = importlib.util.spec_from_file_location("core_conftest", CORE / "conftest.py")
assert _spec is not None
assert _spec.loader is not None
_core = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_core)

from gateway import Gateway  # noqa: E402
from origin import Origin  # noqa: E402

import layby  # noqa: E402

ends, start = _core.ends, _core.start


@pytest.fixture
def gateway(start: object) -> Gateway:
    return Gateway(start)


@pytest.fixture
def origin() -> Iterator[Origin]:
    origin = Origin()
    yield origin
    origin.close()


@pytest.fixture
def patched() -> Iterator[None]:
    """`layby.patch()` for the length of a test."""
    layby.patch()
    yield
    layby.unpatch()


@pytest.fixture(autouse=True)
def nothing_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was logged once is logged once again, in each test."""
    monkeypatch.setattr("layby._slot._noted", set())


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the machine says of proxies and certificates is not for our loopback."""
    for name in list(os.environ):
        if name.lower().endswith(("_proxy", "_ca_bundle")):
            monkeypatch.delenv(name)
