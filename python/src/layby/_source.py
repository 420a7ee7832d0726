"""Which line of the application it was, for logs and metrics.

That is the innermost frame outside the frameworks: layby, Django and asgiref.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from functools import lru_cache
from types import FrameType

_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_FRAMEWORKS = tuple(f"{os.sep}{name}{os.sep}" for name in ("django", "asgiref"))
_LIBRARIES = (sysconfig.get_path("stdlib") + os.sep,)


def application_line() -> str:
    """ "file:line" of the code that is running now; the path as short as it can be told."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path = _shown(frame.f_code.co_filename)
        if path is not None:
            return f"{path}:{frame.f_lineno}"
        frame = frame.f_back
    return "unknown:0"


@lru_cache(maxsize=4096)
def _shown(filename: str) -> str | None:
    """How a file of the application is shown; None for one of a framework."""
    path = os.path.abspath(filename)
    if path.startswith(_HERE) or filename.startswith("<frozen"):
        return None
    in_packages = f"{os.sep}site-packages{os.sep}" in path
    if in_packages and any(name in path for name in _FRAMEWORKS):
        return None
    if not in_packages and path.startswith(_LIBRARIES):
        return None
    roots = [root for root in (os.getcwd(), *sys.path) if root and path.startswith(root + os.sep)]
    return path[len(max(roots, key=len)) + 1 :] if roots else path
