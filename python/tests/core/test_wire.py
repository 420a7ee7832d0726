"""The codec against the files of bytes that the gateway's codec is tested with too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from layby._wire import Decoder, Frame, WireError, encode, fill_environ

WIRE = Path(__file__).parents[3] / "tests" / "wire"
FILES = sorted(WIRE.glob("*.bin"))


def expected(path: Path) -> Any:
    return json.loads(path.with_suffix(".json").read_text())


def decode(path: Path, piece: int) -> Frame | None:
    """The one frame of a file, received in pieces."""
    about = expected(path)
    decoder = Decoder(preamble=about["preamble"], max_plan=about["max_plan"])
    data = path.read_bytes()
    frame = None
    for start in range(0, len(data), piece):
        assert frame is None, "a frame before its last byte"
        frame = decoder.receive(data[start : start + piece])
    assert decoder.empty == (frame is not None)
    if frame is not None and frame.type == 0x10:
        fill_environ({}, frame.head, frame.aux)
    return frame


def test_there_are_files_for_every_type_of_frame() -> None:
    types = {expected(path).get("type") for path in FILES} - {None}
    assert types == {*range(0x01, 0x0E), *range(0x10, 0x17), *range(0x20, 0x27)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("piece", [1 << 30, 7])
def test_a_file_of_bytes_is_read_as_it_says(path: Path, piece: int) -> None:
    about = expected(path)
    if "error" in about:
        if about["error"] == "truncated":
            assert decode(path, piece) is None
        else:
            with pytest.raises(WireError) as caught:
                decode(path, piece)
            assert caught.value.kind == about["error"]
        return
    frame = decode(path, piece)
    assert frame is not None
    for field in ("type", "flags", "aux", "request", "epoch"):
        assert getattr(frame, field) == about[field], field
    assert frame.head == about["head"].encode("latin-1")
    assert frame.body == about["body"].encode("latin-1")
    again = encode(
        frame.type,
        flags=frame.flags,
        aux=frame.aux,
        request=frame.request,
        epoch=frame.epoch,
        head=frame.head,
        body=frame.body,
    )
    assert again == path.read_bytes().removeprefix(b"LAYBY/1\n")


def test_frames_that_come_glued_are_handed_out_one_by_one() -> None:
    names = ["stop", "request", "retire"]
    data = b"".join((WIRE / f"{name}.bin").read_bytes() for name in names)
    decoder = Decoder()
    frames = [decoder.receive(data), decoder.receive(b""), decoder.receive(b"")]
    assert [frame.type for frame in frames if frame] == [0x15, 0x10, 0x14]
    assert decoder.empty


def test_a_nul_in_the_path_sets_no_variable() -> None:
    about = expected(WIRE / "pairs-forged.bin")
    assert about["error"] == "pairs"
    environ: dict[str, Any] = {}
    with pytest.raises(WireError):
        fill_environ(environ, b"PATH_INFO\0/\0REMOTE_USER\0admin\0", 1)
    assert environ == {}
