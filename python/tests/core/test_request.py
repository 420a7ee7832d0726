"""Requests are encoded as httpx encodes them: compared with httpx itself."""

from __future__ import annotations

import sys
from typing import Any

import httpx
import pytest

import layby
from layby import _request, _urls
from layby._request import build


def built(method: str, url: str, **arguments: Any) -> _request.Request:
    every = dict.fromkeys(("params", "headers", "content", "data", "json"))
    return build(method, url, **{**every, **arguments})


def sent_by_httpx(method: str, url: str, **arguments: Any) -> httpx.Request:
    """What httpx puts on the wire."""
    sent = []

    def handle(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(200)

    with httpx.Client(transport=httpx.MockTransport(handle)) as client:
        client.request(method, url, **arguments)
    return sent[0]


@pytest.mark.parametrize(
    ("url", "params"),
    [
        ("http://a.example/", None),
        ("http://a.example", None),
        ("http://a.example?x=1", None),
        ("http://a.example/p?x=1", {"y": 2}),
        ("http://a.example/p?x=1", {}),
        ("http://a.example/p", {"a": [1, 2], "b": None, "c": True, "d": False, "e": 1.5}),
        ("http://a.example/p", {"d": "\xe4 &+/?:@!'~*%"}),
        ("http://a.example/p", [("a", "1"), ("b", "2"), ("a", "3")]),
        ("http://a.example/p", "a=1&b=2 3&c=%20+&d"),
        ("http://a.example/p", b"a=1"),
        ('http://a.example/\xe4 b%20c%zz/"<>`{}|^[]', None),
        ("http://a.example/p?q=a b'\"<>\xe4%20", None),
        ("http://a.example/p?q=1#fragment", {"a": "b"}),
        ("HTTP://A.Example:8080/P", None),
        ("http://b\xfccher.example/", None),
        ("http://[::1]:8080/a", None),
    ],
)
def test_urls_are_encoded_as_by_httpx(url: str, params: Any) -> None:
    theirs = sent_by_httpx("GET", url, params=params).url.copy_with(fragment=None)
    # httpx leaves the slash of an empty path to its transport.
    expected = str(theirs.copy_with(path=theirs.path or "/"))
    assert built("GET", url, params=params).url == expected


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"json": {"a": 1, "\xe4": [1.5, None, True]}},
        {"json": []},
        {"json": None},
        {"json": {}, "headers": {"content-type": "application/vnd.x+json"}},
        {"data": {"a": [1, "b c"], "n": None, "t": True, "\xe4": "&="}},
        {"data": {}},
        {"data": {}, "json": {"a": 1}},
        {"data": {"a": 1}, "json": {"a": 1}},
        {"data": '{"a":"\xe4&="}'},
        {"data": b"a=1&b=\0\xff"},
        {"data": "", "json": {"a": 1}},
        {"data": "x", "content": "y", "headers": {"content-type": "text/plain"}},
        {"content": "h\xe4"},
        {"content": b"\0\xff"},
        {"content": b"x", "json": {}},
        {"content": iter([b"a", b"b"])},
        {"headers": {"X-Mixed-Case": "1", "accept": "text/plain"}},
        {"headers": [("Set", "1"), ("Set", "2")]},
        {"headers": {b"X-Bytes": b"\xe9"}},
    ],
)
def test_bodies_and_headers_are_encoded_as_by_httpx(arguments: dict[str, Any]) -> None:
    ours = built("POST", "http://a.example/", **{**arguments})
    if not isinstance(arguments.get("content", b""), str | bytes):
        arguments = {"content": b"ab"}  # The iterator is used up.
    theirs = sent_by_httpx("POST", "http://a.example/", **arguments)
    assert ours.body == theirs.content
    # Those that whoever sends it sees to, and those with which each names itself.
    other = {"host", "content-length", "connection", "accept-encoding", "user-agent"}
    raw = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in theirs.headers.raw]
    expected = [(name, value) for name, value in raw if name.lower() not in other]
    found = [(name, value) for name, value in ours.headers if name.lower() not in other]
    assert sorted(found) == sorted(expected)


def test_user_info_becomes_an_authorization_header() -> None:
    request = built("GET", "http://ann:p%40ss@a.example/x")
    theirs = sent_by_httpx("GET", "http://ann:p%40ss@a.example/x")
    assert request.url == "http://a.example/x"
    assert dict(request.headers)["Authorization"] == theirs.headers["authorization"]


def test_a_user_agent_of_ones_own_is_kept() -> None:
    assert dict(built("GET", "http://a.example/").headers)["User-Agent"].startswith("python-layby/")
    given = built("GET", "http://a.example/", headers={"user-agent": "me"}).headers
    assert [value for name, value in given if name.lower() == "user-agent"] == ["me"]


@pytest.mark.parametrize(
    ("method", "headers", "error"),
    [
        ("GE T", None, ValueError),
        ("", None, ValueError),
        ("GET", {"X": "a\r\nY: b"}, ValueError),
        ("GET", {"X": "a\0"}, ValueError),
        ("GET", {"X:": "a"}, ValueError),
        ("GET", {"X": "\u20ac"}, ValueError),
        ("GET", {"X": 1}, TypeError),
        ("GET", [("X", "a")] * 1001, ValueError),
    ],
)
def test_what_cannot_be_sent_is_an_error_at_once(method: str, headers: Any, error: Any) -> None:
    with pytest.raises(error) as caught:
        built(method, "http://a.example/", headers=headers)
    assert "Y: b" not in str(caught.value), "a header's value may be a credential"


def test_json_that_is_none_is_an_error_at_once() -> None:
    with pytest.raises(ValueError, match="Out of range"):
        built("POST", "http://a.example/", json=float("nan"))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://a.example/p?zip=1", "http://a.example/p?zip=1"),
        ("http://ann:secret@a.example/", "http://***@a.example/"),
        (
            "http://a.example/?zip=1&api_key=k&Token=t",
            "http://a.example/?zip=1&api_key=***&Token=***",
        ),
        ("http://a.example/?X-Amz-Signature=abc&a", "http://a.example/?X-Amz-Signature=***&a"),
        ("http://a.example/?pass%77ord=abc", "http://a.example/?pass%77ord=***"),
        ("http://[bad/?token=t", "***"),
    ],
)
def test_secrets_in_urls_are_masked(url: str, shown: str) -> None:
    assert _urls.masked(url) == shown


NEWER = [
    "stra\xdfe.example",
    "fa\xdf.de.",
    "\u03c3\u03bf\u03c6\u03cc\u03c2.example",
    "a\u200db.example",
]


@pytest.mark.parametrize("host", [*NEWER[:3], "B\xdcCHER.example:81", "\u2603.example"])
def test_internationalised_names_are_those_of_httpx(host: str) -> None:
    url = f"http://{host}/"
    try:
        theirs = httpx.URL(url).netloc.decode("ascii")
    except httpx.InvalidURL:
        with pytest.raises(layby.FetchError) as caught:
            layby.get(url).result()
        assert caught.value.phase == "url"
        return
    assert built("GET", url).url == f"http://{theirs}/"


@pytest.mark.parametrize("host", NEWER)
def test_names_that_the_standard_library_reads_otherwise_are_not_asked_for(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setitem(sys.modules, "idna", None)
    assert built("GET", "http://b\xfccher.example/").url == "http://xn--bcher-kva.example/"
    fetch = layby.get(f"http://{host}/")
    with pytest.raises(layby.FetchError, match="install the package idna, or write") as caught:
        fetch.result()
    assert caught.value.phase == "url"
    with pytest.raises(layby.FetchError, match="install the package idna"):
        layby.stream(layby.get(f"http://{host}/"))
