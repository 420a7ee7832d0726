"""Django's files and file responses, as what is inside them.

A response counts only as long as it would be iterated as Django does it: a middleware
that compresses replaces `streaming_content`, and then there is no file in it any more.
"""

from __future__ import annotations

import functools
from typing import Any

from django.core.files.utils import FileProxyMixin
from django.http import FileResponse, StreamingHttpResponse

from layby import _files

_READ = vars(FileProxyMixin)["read"]


@functools.cache
def install() -> None:
    """Let answers be recognised as files through Django's wrappers."""
    _files.unwrappers.append(_inner)


def _inner(thing: Any) -> Any:
    kind = type(thing)
    if isinstance(thing, StreamingHttpResponse):
        if kind.streaming_content is not StreamingHttpResponse.streaming_content:
            return None
        if kind.__iter__ is not StreamingHttpResponse.__iter__:
            return None
        file = thing.file_to_stream if isinstance(thing, FileResponse) else None
        return thing._iterator if file is None else file  # type: ignore[attr-defined]
    # File, FieldFile and whatever else reads nothing but what it proxies.
    if isinstance(thing, FileProxyMixin) and kind.read is _READ:
        return thing.file
    return None
