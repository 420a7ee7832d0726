"""Django's files and file responses, as what is inside them.

A response counts only as long as it would be iterated as Django does it: a middleware
that compresses replaces `streaming_content`, and then there is no file in it any more.
"""

from __future__ import annotations

import functools
from typing import Any

from django.core.files.utils import FileProxyMixin
from django.http import FileResponse, StreamingHttpResponse

from layby._files import see_through

_READ = vars(FileProxyMixin)["read"]


@functools.cache
def install() -> None:
    """Let answers be recognised as files through Django's wrappers."""
    see_through(StreamingHttpResponse, _content)
    see_through(FileProxyMixin, _proxied)


def _content(response: Any) -> Any:
    kind = type(response)
    if (
        kind.streaming_content is not StreamingHttpResponse.streaming_content
        or kind.__iter__ is not StreamingHttpResponse.__iter__
    ):
        return None
    file = response.file_to_stream if isinstance(response, FileResponse) else None
    return response._iterator if file is None else file


def _proxied(file: Any) -> Any:
    """What a File, FieldFile or the like reads from, if it reads in no way of its own."""
    return file.file if type(file).read is _READ else None
