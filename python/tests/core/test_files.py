"""Answers that are files: handed over as a descriptor, or read when they must be."""

from __future__ import annotations

import gzip
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.util import FileWrapper as Wsgiref

import pytest
from conftest import Start
from fakegateway import FD, READY, Connection

from layby import _files

CONTENT = bytes(range(256)) * 4096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "content"
    path.write_bytes(CONTENT)
    return path


def serve(
    make: Callable[[], Any], *headers: tuple[str, str], status: str = "200 OK"
) -> Callable[..., Any]:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response(status, list(headers))
        return environ["wsgi.file_wrapper"](make())

    return app


def handed_over(slot: Connection, request: int, **environ: str) -> tuple[list[Any], bytes]:
    """The headers of an answer that came as a descriptor, and the bytes that it stands for."""
    slot.request(request, **environ)
    frame, descriptor, offset, length = slot.file_answer()
    try:
        body = os.pread(descriptor, length, offset)
    finally:
        os.close(descriptor)
    assert len(body) == length
    return frame.headers, body


def read(slot: Connection, request: int, **environ: str) -> tuple[list[Any], bytes]:
    """The headers and the body of an answer that the slot read itself."""
    slot.request(request, **environ)
    frame, body = slot.answer()
    assert not frame.flags & FD
    return frame.headers, body


def test_a_file_is_handed_over_and_closed_before_the_slot_is_free(start: Start, path: Path) -> None:
    opened = []

    def make() -> Any:
        opened.append(path.open("rb"))
        return opened[-1]

    [slot] = start(serve(make, ("X", "1")))
    before = len(os.listdir("/proc/self/fd"))
    for request in range(20):
        headers, body = handed_over(slot, request)
        assert body == CONTENT
        assert headers == [("X", "1"), ("Content-Length", str(len(CONTENT)))]
        assert opened[-1].closed
    assert len(os.listdir("/proc/self/fd")) <= before


def test_it_begins_at_the_position_of_the_file(start: Start, path: Path) -> None:
    def make() -> Any:
        file = path.open("rb")
        file.read(1000)
        return file

    [slot] = start(serve(make))
    headers, body = handed_over(slot, 1)
    assert (headers, body) == ([("Content-Length", str(len(CONTENT) - 1000))], CONTENT[1000:])


def test_a_shorter_content_length_is_kept_to(start: Start, path: Path) -> None:
    def make() -> Any:
        file = path.open("rb")
        file.seek(10)
        return file

    headers = ("Content-Length", "90"), ("Content-Range", f"bytes 10-99/{len(CONTENT)}")
    [slot] = start(serve(make, *headers, status="206 Partial Content"))
    assert handed_over(slot, 1) == (list(headers), CONTENT[10:100])


def test_a_longer_content_length_is_a_cut_body(start: Start, tmp_path: Path, caplog: Any) -> None:
    path = tmp_path / "short"
    path.write_bytes(b"abc")
    [slot] = start(serve(lambda: path.open("rb"), ("Content-Length", "5")))
    slot.request(1)
    assert slot.expect("ANSWER").body == b"abc"
    assert slot.expect("BODY").flags & 8
    slot.expect("READY")
    assert "2 bytes shorter" in caplog.text


@pytest.mark.parametrize(
    "kind", ["FileIO", "BufferedRandom", "named temporary", "wsgiref", "twice wrapped"]
)
def test_wrappers_that_change_nothing_are_seen_through(start: Start, path: Path, kind: str) -> None:
    def make() -> Any:
        match kind:
            case "FileIO":
                return path.open("rb", buffering=0)
            case "BufferedRandom":
                # What is written is still in its buffer.
                file = tempfile.TemporaryFile()  # noqa: SIM115 - the slot closes it
                file.write(CONTENT)
                file.write(b"unflushed")
                file.seek(9)
                return file
            case "named temporary":
                named = tempfile.NamedTemporaryFile()  # noqa: SIM115 - as above
                named.write(CONTENT)
                named.seek(0)
                return named
            case "wsgiref":
                return Wsgiref(path.open("rb"))
            case _:
                return _files.FileWrapper(_files.FileWrapper(path.open("rb")))

    [slot] = start(serve(make))
    expected = (CONTENT + b"unflushed")[9:] if kind == "BufferedRandom" else CONTENT
    assert handed_over(slot, 1)[1] == expected


@pytest.mark.parametrize("kind", ["BytesIO", "gzip", "pipe", "own class", "empty", "proc"])
def test_what_is_no_file_on_disk_is_read(start: Start, path: Path, kind: str) -> None:
    class Shouting(io.BufferedReader):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(size).upper()

    def make() -> Any:
        match kind:
            case "BytesIO":
                return io.BytesIO(b"bytes")
            case "gzip":
                zipped = path.with_suffix(".gz")
                zipped.write_bytes(gzip.compress(b"bytes"))
                return gzip.open(zipped)
            case "pipe":
                reader, writer = os.pipe()
                os.write(writer, b"bytes")
                os.close(writer)
                return os.fdopen(reader, "rb")
            case "own class":
                path.write_bytes(b"bytes")
                return Shouting(io.FileIO(path))
            case "empty":
                path.write_bytes(b"")
                return path.open("rb")
            case _:
                return open("/proc/self/cmdline", "rb")

    expected = {
        "own class": b"BYTES",
        "empty": b"",
        "proc": Path("/proc/self/cmdline").read_bytes(),
    }
    [slot] = start(serve(make))
    assert read(slot, 1) == ([], expected.get(kind, b"bytes"))


def test_the_wrapper_reads_like_a_file_in_blocks(path: Path) -> None:
    with path.open("rb") as file:
        wrapper = _files.FileWrapper(file, 1000)
        assert next(wrapper) == CONTENT[:1000]
        assert (wrapper.seekable(), wrapper.tell(), wrapper.seek(10)) == (True, 1000, 10)
        assert [len(block) for block in wrapper][:2] == [1000, 1000]
        wrapper.close()
        assert file.closed
    assert not _files.FileWrapper(iter(())).seekable()


def test_a_middleware_around_the_wrapper_is_not_bypassed(start: Start, path: Path) -> None:
    path.write_bytes(b"abc")
    app = serve(lambda: path.open("rb"))

    def outer(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        inner = app(environ, start_response)
        for block in inner:
            yield block.upper()
        inner.close()

    [slot] = start(outer)
    assert read(slot, 1)[1] == b"ABC"


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_an_answer_without_a_body_has_none(start: Start, path: Path, status: str) -> None:
    [slot] = start(serve(lambda: path.open("rb"), status=status))
    assert read(slot, 1) == ([], b"")


def test_a_head_has_no_body_and_closes_the_file(start: Start, path: Path) -> None:
    opened = []

    def make() -> Any:
        opened.append(path.open("rb"))
        return opened[-1]

    [slot] = start(serve(make, ("Content-Length", str(len(CONTENT)))))
    headers, body = read(slot, 1, REQUEST_METHOD="HEAD")
    assert (headers, body) == ([("Content-Length", str(len(CONTENT)))], b"")
    assert opened[-1].closed


def test_a_file_that_is_closed_already_is_a_500(start: Start, path: Path) -> None:
    def make() -> Any:
        file = path.open("rb")
        file.close()
        return file

    [slot] = start(serve(make))
    slot.request(1)
    assert slot.answer()[0].aux == 500


def test_a_file_that_cannot_be_read_is_a_500(start: Start, path: Path) -> None:
    [slot] = start(serve(lambda: io.FileIO(os.open(path, os.O_WRONLY), "w")))
    slot.request(1)
    assert slot.answer()[0].aux == 500


def test_an_answer_of_a_coroutine_application_may_be_a_file(start: Start, path: Path) -> None:
    class Response:
        status = "200 OK"
        quick_close = False

        def __init__(self) -> None:
            self.headers = [("X", "1")]
            self.filelike = path.open("rb")

        def __iter__(self) -> Iterator[bytes]:
            raise AssertionError("read by the slot")

        def close(self) -> None:
            self.filelike.close()

    async def app(environ: dict[str, Any]) -> Any:
        return Response()

    [slot] = start(app, mode="coroutine")
    assert handed_over(slot, 1)[1] == CONTENT
    # The slot is ready for the next one.
    assert handed_over(slot, 2)[1] == CONTENT


def test_the_flag_ready_is_not_set_before_the_file_is_closed(start: Start, path: Path) -> None:
    [slot] = start(serve(lambda: path.open("rb")))
    slot.request(1)
    frame, descriptor, _, _ = slot.file_answer()
    os.close(descriptor)
    assert frame.flags == FD
    assert not frame.flags & READY
