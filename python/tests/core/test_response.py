"""Responses have httpx's attributes: compared with httpx itself."""

from __future__ import annotations

import gzip
import json
import pickle
import zlib
from datetime import timedelta

import httpx
import pytest

import layby
from layby import Response


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("text/plain; charset=iso-8859-1", b"\xe9"),
        ('text/plain; charset="UTF-8"', "\xe9".encode()),
        ("text/plain; charset=nonsense", "\xe9".encode()),
        ("text/plain", b"\xff\xfe ok"),
        ("application/json", '{"a": "\xe9"}'.encode()),
        ("", b""),
    ],
)
def test_text_is_decoded_as_by_httpx(content_type: str, body: bytes) -> None:
    headers = [("Content-Type", content_type)] if content_type else []
    theirs = httpx.Response(200, headers=headers, content=body)
    ours = Response(200, headers=headers, content=body)
    assert ours.text == theirs.text
    assert ours.content == theirs.content


def test_headers_are_read_as_with_httpx() -> None:
    pairs = [("Set-Cookie", "a=1"), ("X-A", "1"), ("set-cookie", "b=2")]
    theirs = httpx.Response(200, headers=pairs).headers
    ours = Response(200, headers=pairs).headers
    for name in ("set-cookie", "SET-COOKIE", "x-a"):
        assert ours[name] == theirs[name]
        assert ours.get_list(name) == theirs.get_list(name)
        assert name in ours
    assert ours.get("none") is theirs.get("none") is None
    assert ours.multi_items() == theirs.multi_items()
    assert dict(ours) == dict(theirs)
    assert len(ours) == 2
    with pytest.raises(KeyError):
        ours["none"]


def test_a_success_is_returned_by_raise_for_status() -> None:
    response = Response(201, reason_phrase="Created", content=b'{"a": 1}', seconds=0.5)
    assert response.raise_for_status() is response
    assert response.is_success
    assert response.json() == {"a": 1}
    assert response.elapsed == timedelta(seconds=0.5)
    assert repr(response) == "<Response [201 Created]>"


@pytest.mark.parametrize("status", [304, 404, 500])
def test_any_other_status_raises(status: int) -> None:
    response = Response(status, reason_phrase="Oh", url="http://a.example/?token=t")
    response._method = "GET"
    with pytest.raises(layby.StatusError) as caught:
        response.raise_for_status()
    assert caught.value.response is response
    assert str(caught.value) == f"GET http://a.example/?token=***: answered {status} Oh"
    assert isinstance(caught.value, layby.FetchError)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "raw deflate"])
def test_a_coded_body_is_decoded(coding: str) -> None:
    data = json.dumps({"a": "b" * 100}).encode()
    match coding:
        case "gzip":
            body = gzip.compress(data)
        case "deflate":
            body = zlib.compress(data)
        case _:
            body = zlib.compress(data)[2:-4]
    response = Response(200, headers=[("Content-Encoding", coding.split()[-1])], content=body)
    assert response.content == data
    assert response.json() == {"a": "b" * 100}


def test_a_bomb_does_not_go_off() -> None:
    bomb = gzip.compress(bytes(65 << 20))
    assert len(bomb) < 100_000
    response = Response(200, headers=[("Content-Encoding", "gzip")], content=bomb)
    with pytest.raises(layby.TooLarge):
        response.content  # noqa: B018


def test_errors_survive_pickling() -> None:
    error = layby.Timeout("took too long", method="GET", url="http://a.example/", phase="head")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.phase) == (layby.Timeout, str(error), "head")


def test_the_tree_of_errors_is_as_drawn() -> None:
    for kind in (layby.ConnectError, layby.Timeout, layby.Refused, layby.TooLarge):
        assert issubclass(kind, layby.FetchError)
    for kind in (layby.FetchError, layby.ParkRefused, layby.NotInASlot):
        assert issubclass(kind, layby.Error)
    assert not issubclass(layby.Cancelled, Exception)
