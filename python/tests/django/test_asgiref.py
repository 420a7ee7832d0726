"""The self-test must say no to an asgiref that would lose request state."""

from __future__ import annotations

from contextvars import copy_context
from typing import Any

import asgiref.local
import pytest

import layby.django
from layby.django import _asgiref


def test_it_passes_with_the_installed_asgiref() -> None:
    layby.django.self_test()


def test_it_fails_when_locals_do_not_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an asgiref would that ties `Local`s to threads in a way unknown to layby."""
    monkeypatch.setattr(_asgiref, "_probe", _ThreadBound())
    with pytest.raises(layby.django.AsgirefUnsupported, match="does not carry request state"):
        layby.django.self_test()


def test_it_fails_when_a_local_leaks_into_another_job(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shared:
        value: str | None = None

    monkeypatch.setattr(_asgiref, "_probe", Shared())
    with pytest.raises(layby.django.AsgirefUnsupported):
        layby.django.self_test()


@pytest.mark.skipif(not hasattr(asgiref.local, "_rehome"), reason="asgiref before 3.12")
def test_it_needs_the_rehoming_of_tagged_storages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_asgiref, "install_travelling_locals", lambda: None)
    monkeypatch.setattr(_asgiref, "rehomers", [])
    with pytest.raises(layby.django.AsgirefUnsupported):
        layby.django.self_test()


def test_copies_of_a_context_do_not_share_what_locals_hold() -> None:
    _asgiref.install_unshared_locals()
    local = asgiref.local.Local()

    def branch() -> str:
        before: str = local.value
        local.value = "theirs"
        local.other = "theirs"
        return before

    def request() -> tuple[str, str, bool]:
        local.value = "ours"
        if hasattr(asgiref.local, "_CVar"):
            before = copy_context().run(branch)
            return before, local.value, hasattr(local, "other")
        return "ours", local.value, False  # older ones keep values by thread: see branches

    assert copy_context().run(request) == ("ours", "ours", False)


class _ThreadBound:
    def __init__(self) -> None:
        import threading

        object.__setattr__(self, "_local", threading.local())

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._local, name, value)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._local, name)
