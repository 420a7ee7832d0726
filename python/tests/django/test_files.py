"""Which of Django's responses the gateway may read as a file, and which it must not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from wsgiref.util import FileWrapper

import pytest
from django.core.files import File
from django.core.files.base import ContentFile
from django.core.files.storage import FileSystemStorage
from django.core.files.uploadedfile import TemporaryUploadedFile
from django.http import FileResponse, HttpResponse, StreamingHttpResponse
from django.middleware.gzip import GZipMiddleware
from django.test import RequestFactory

from layby import _files

CONTENT = b"".join(b"line %d\n" % number for number in range(2000))


@pytest.fixture(autouse=True)
def _installed() -> None:
    from layby.django._files import install

    install()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "letter.txt"
    path.write_bytes(CONTENT)
    return path


def handed_over(body: Any) -> bytes | None:
    """The bytes that the gateway would send; None when the slot reads them."""
    part = _files.part_of(body)
    return None if part is None else os.pread(part.descriptor, part.length, part.offset)


def test_a_file_response_is_handed_over(path: Path) -> None:
    response = FileResponse(path.open("rb"))
    assert handed_over(response) == CONTENT
    assert response["Content-Length"] == str(len(CONTENT))
    response.close()


def test_so_are_files_of_a_storage_and_uploads(path: Path) -> None:
    stored = FileSystemStorage(path.parent).open("letter.txt")
    upload = TemporaryUploadedFile("letter.txt", "text/plain", len(CONTENT), None)
    upload.write(CONTENT)
    upload.seek(5)
    for file, expected in ((stored, CONTENT), (upload, CONTENT[5:]), (File(stored), CONTENT)):
        assert handed_over(FileResponse(file)) == expected
    stored.close()
    upload.close()


def test_a_streaming_response_over_a_file_is_handed_over(path: Path) -> None:
    for content in (path.open("rb"), FileWrapper(path.open("rb"))):
        response = StreamingHttpResponse(content)
        assert handed_over(response) == CONTENT
        response.close()


def test_what_a_middleware_put_around_the_content_is_not_bypassed(path: Path) -> None:
    request = RequestFactory().get("/", headers={"Accept-Encoding": "gzip"})
    for kind in (FileResponse, StreamingHttpResponse):
        response = kind(path.open("rb"))
        compress: Any = GZipMiddleware(lambda request, answer=response: answer)
        assert compress(request)["Content-Encoding"] == "gzip"
        assert handed_over(response) is None
        response.close()


def test_what_reads_in_its_own_way_is_read(path: Path) -> None:
    class Upper(File):  # type: ignore[type-arg]
        def read(self, size: int = -1) -> bytes:
            return bytes(self.file.read(size)).upper()

    class Own(FileResponse):
        def __iter__(self) -> Any:
            return iter([b"own"])

    for response in (
        FileResponse(Upper(path.open("rb"))),
        FileResponse(ContentFile(CONTENT)),
        Own(path.open("rb")),
        StreamingHttpResponse(File(path.open("rb"))),
        StreamingHttpResponse([CONTENT]),
        HttpResponse(CONTENT),
    ):
        assert handed_over(response) is None
        response.close()


def test_a_view_answers_with_its_file_in_coroutine_mode(app: Any) -> None:
    from contextvars import Context

    from stepper import environ

    response = None
    try:
        Context().run(app(environ("/file/")).send, None)
    except StopIteration as stop:
        response = stop.value
    assert handed_over(response.filelike) == b"".join(response)
    response.close()
