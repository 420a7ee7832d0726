"""Which line of the application it was, for logs and metrics.

That is the innermost frame that is no library's: neither the standard library's nor
below site-packages. An application that is installed there itself is found too, above
the libraries that are known to call us.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from functools import lru_cache
from types import FrameType

_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_PACKAGES = tuple(f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages"))
_KNOWN = ("django", "asgiref", "flask", "requests", "urllib3", "httpx", "httpx2", "botocore")
_LIBRARIES = (sysconfig.get_path("stdlib") + os.sep,)


def application_line() -> str:
    """ "file:line" of the code that is running now; the path as short as it can be told."""
    frame: FrameType | None = sys._getframe(1)
    installed: str | None = None
    while frame is not None:
        path, own = _shown(frame.f_code.co_filename)
        if own:
            return f"{path}:{frame.f_lineno}"
        if path is not None and installed is None:
            installed = f"{path}:{frame.f_lineno}"
        frame = frame.f_back
    return installed or "unknown:0"


@lru_cache(maxsize=4096)
def _shown(filename: str) -> tuple[str | None, bool]:
    """How a file is shown, None for one that never is; and whether it is outside libraries."""
    path = os.path.abspath(filename)
    if path.startswith(_HERE) or filename.startswith("<frozen"):
        return None, False
    packages = next((name for name in _PACKAGES if name in path), None)
    if packages is None:
        if path.startswith(_LIBRARIES):
            return None, False
        roots = [
            root for root in (os.getcwd(), *sys.path) if root and path.startswith(root + os.sep)
        ]
        return (path[len(max(roots, key=len)) + 1 :] if roots else path), True
    shown = path.rpartition(packages)[2]
    return (None if shown.startswith(tuple(f"{name}{os.sep}" for name in _KNOWN)) else shown), False
