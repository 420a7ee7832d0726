"""Which line is the application's: not a library's, wherever the application is installed."""

from __future__ import annotations

import os
import sys
from types import FrameType
from typing import Any

import pytest

from layby import _source

PACKAGES = os.path.join(sys.prefix, "lib", "site-packages")


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What is found on a stack of these files, the innermost first; each frame is on line 3."""

    def line(*files: str) -> str:
        frame: Any = None
        for file in reversed(files):
            code = type("Code", (), {"co_filename": file})
            frame = type("Frame", (), {"f_code": code, "f_lineno": 3, "f_back": frame})
        found: FrameType = frame
        monkeypatch.setattr(sys, "_getframe", lambda depth: found)
        return _source.application_line()

    return line


def test_it_is_the_innermost_outside_of_libraries(line: Any) -> None:
    sdk, layby = f"{PACKAGES}/openai/_client.py", _source.__file__
    assert line(layby, sdk, os.__file__, "/srv/shop/views.py", "/srv/shop/wsgi.py") == (
        "/srv/shop/views.py:3"
    )


def test_an_installed_application_is_found_above_what_calls_us(line: Any) -> None:
    sdk, shop = f"{PACKAGES}/requests/api.py", f"{PACKAGES}/shop/views.py"
    assert line(_source.__file__, sdk, shop, f"{PACKAGES}/django/core/handlers/base.py") == (
        f"shop{os.sep}views.py:3"
    )


def test_it_is_shown_from_the_folder_that_it_is_imported_from(
    line: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend("/opt/site")
    assert line("/opt/site/shop/models.py") == "shop/models.py:3"


def test_nobody_is_known_where_only_layby_runs(line: Any) -> None:
    assert line(_source.__file__, f"{PACKAGES}/django/shortcuts.py") == "unknown:0"
