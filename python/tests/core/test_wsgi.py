"""wsgi mode: PEP 3333, and answers that are well-formed whatever the application does."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any
from wsgiref.validate import validator

import pytest
from conftest import Start
from fakegateway import BROKEN, MORE, READY, response

import layby


def hello(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


def test_a_list_is_one_frame_and_frees_the_slot(start: Start) -> None:
    [slot] = start(hello)
    slot.request(71)
    frame = slot.expect("ANSWER")
    assert (frame.request, frame.epoch, frame.aux, frame.flags) == (71, 0, 200, READY)
    assert frame.head == b"OK\0Content-Type\0text/plain\0"
    assert frame.body == b"hello"
    slot.request(72)
    assert slot.answer()[1] == b"hello"


def test_the_validator_of_pep_3333_finds_nothing(start: Start) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        body = environ["wsgi.input"].read(3) + environ["wsgi.input"].readline(100)
        body += b"".join(environ["wsgi.input"].readlines(100)) + b"".join(environ["wsgi.input"])
        environ["wsgi.errors"].write("")
        environ["wsgi.errors"].flush()
        start_response("200 OK", [("Content-Type", "text/plain"), ("X", "\xe9")])
        return iter([body[:4], body[4:]])

    [slot] = start(validator(app))
    slot.request(1, "/caf\xc3\xa9", body=b"one\ntwo\nthree", QUERY_STRING="a=1")
    frame, body = slot.answer()
    assert (frame.aux, body) == (200, b"one\ntwo\nthree")
    assert frame.headers == [("Content-Type", "text/plain"), ("X", "\xe9")]
    slot.request(2, file=b"one\ntwo\n" * 30_000)
    frame, body = slot.answer()
    assert (frame.aux, body) == (200, b"one\ntwo\n" * 30_000)


def test_the_environ_has_what_the_gateway_sent_and_what_pep_3333_asks(start: Start) -> None:
    seen: dict[str, Any] = {}

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.update(environ)
        return hello(environ, start_response)

    [slot] = start(app)
    slot.request(1, "/a", HTTP_X="1")
    slot.answer()
    assert seen["HTTP_X"] == "1"
    assert seen["wsgi.version"] == (1, 0)
    assert seen["wsgi.errors"] is not None
    assert seen["wsgi.input"].read() == b""
    # What one request writes into its environ is not in the next one's.
    seen["HTTP_Y"] = "2"
    seen.clear()
    slot.request(2)
    slot.answer()
    assert "HTTP_X" not in seen
    assert "HTTP_Y" not in seen


def test_every_block_of_a_generator_leaves_before_the_next_is_made(start: Start) -> None:
    made = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        for number in range(3):
            made.append(number)
            yield b"%d" % number

    [slot] = start(app)
    slot.request(1)
    first = slot.expect("ANSWER")
    assert (first.body, first.flags) == (b"0", MORE)
    assert [slot.expect("BODY").body for _ in range(3)] == [b"1", b"2", b""]
    slot.expect("READY")
    assert made == [0, 1, 2]


def test_close_is_called_after_the_last_byte_and_before_ready(start: Start) -> None:
    events = []

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            yield b"abc"

        def close(self) -> None:
            events.append("closed")

    def app(environ: dict[str, Any], start_response: Any) -> Body:
        start_response("200 OK", [("Content-Length", "3")])
        return Body()

    [slot] = start(app)
    slot.request(1)
    frame = slot.expect("ANSWER")
    assert (frame.body, frame.flags) == (b"abc", 0)
    slot.expect("READY")
    assert events == ["closed"]


def test_close_is_called_when_the_body_fails(start: Start) -> None:
    events = []

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            yield b"abc"
            raise ValueError("half way")

        def close(self) -> None:
            events.append("closed")
            raise ValueError("and in close")

    def app(environ: dict[str, Any], start_response: Any) -> Body:
        start_response("200 OK", [])
        return Body()

    [slot] = start(app)
    slot.request(1)
    assert slot.expect("ANSWER").flags == MORE
    assert slot.expect("BODY").flags == BROKEN
    slot.expect("READY")
    assert events == ["closed"]


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()])
def test_what_escapes_before_the_head_is_a_500_and_the_slot_lives(
    start: Start, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] == "/fails":
            start_response("200 OK", [])
            raise error
        return hello(environ, start_response)

    [slot] = start(app)
    slot.request(1, "/fails")
    frame, body = slot.answer()
    assert (frame.aux, body) == (500, b"Internal Server Error\n")
    slot.request(2)
    assert slot.answer()[1] == b"hello"
    assert "the application failed: GET /fails" in caplog.text


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        ("200 OK", [("X", "a\r\nSet-Cookie: b")]),
        ("200 OK", [("X", "a\0b")]),
        ("200 OK", [("X\n", "a")]),
        ("200 OK", [("X Y", "a")]),
        ("200 OK", [("", "a")]),
        ("200 OK", [("X", b"bytes")]),
        ("200 OK", [("X", "\u20ac")]),
        ("200 O\nK", []),
        ("200 O\0K", []),
        ("20 OK", []),
        ("100 Continue", []),
        (200, []),
        ("200 OK", [("Content-Length", "-1")]),
        ("200 OK", [("Content-Length", "3"), ("content-length", "4")]),
        ("200 OK", [("X", "a")] * 1000),
    ],
)
def test_a_head_that_cannot_be_sent_is_a_500(start: Start, status: Any, headers: Any) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response(status, headers)
        return [b"abc"]

    [slot] = start(app)
    slot.request(1)
    assert slot.answer()[0].aux == 500


def test_headers_of_the_connection_are_not_passed_on(start: Start) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response(
            "200 OK",
            [("Connection", "close"), ("Transfer-Encoding", "chunked"), ("X-Kept", "yes")],
        )
        return [b"abc"]

    [slot] = start(app)
    slot.request(1)
    assert slot.answer()[0].headers == [("X-Kept", "yes")]


def test_start_response_twice_needs_exc_info(start: Start) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("X", "1")])
        if environ["PATH_INFO"] == "/twice":
            start_response("200 OK", [])
        try:
            raise ValueError("late")
        except ValueError:
            start_response("503 Later", [("Y", "2")], sys.exc_info())
        return [b"later"]

    [slot] = start(app)
    slot.request(1, "/twice")
    assert slot.answer()[0].aux == 500
    slot.request(2)
    frame, body = slot.answer()
    assert (frame.aux, frame.head, body) == (503, b"Later\0Y\x002\0", b"later")


def test_exc_info_after_the_head_raises_and_cuts(start: Start) -> None:
    raised = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"abc"
        try:
            raise ValueError("late")
        except ValueError:
            try:
                start_response("500 Oh", [], sys.exc_info())
            except ValueError as error:
                raised.append(str(error))
                raise

    [slot] = start(app)
    slot.request(1)
    assert slot.expect("ANSWER").body == b"abc"
    assert slot.expect("BODY").flags == BROKEN
    slot.expect("READY")
    assert raised == ["late"]


def test_write_sends_before_the_iterable(start: Start) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        write = start_response("200 OK", [])
        write(b"one ")
        write(b"two ")
        return [b"three"]

    [slot] = start(app)
    slot.request(1)
    assert slot.answer()[1] == b"one two three"


@pytest.mark.parametrize(
    "body", [[], [b""], (), [b" more"], iter([b" more"])], ids=["[]", "[b'']", "()", "list", "iter"]
)
def test_after_the_last_byte_by_write_nothing_more_is_sent(start: Start, body: Any) -> None:
    """The gateway takes a frame after the last one for nonsense, and ends the process."""

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        write = start_response("200 OK", [("Content-Length", "5")])
        write(b"hel")
        write(b"lo")
        return body

    [slot] = start(app)
    slot.request(1)
    assert slot.expect("ANSWER").body == b"hel"
    last = slot.expect("BODY")
    assert (last.body, last.flags) == (b"lo", 0)
    slot.expect("READY")
    assert slot.quiet()


def test_a_list_may_be_the_rest_of_what_write_began(start: Start) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        write = start_response("200 OK", [("Content-Length", "9")])
        write(b"one ")
        return [b"three"]

    [slot] = start(app)
    slot.request(1)
    assert slot.answer()[1] == b"one three"


@pytest.mark.parametrize("body", [[], [b""], None])
def test_no_head_is_a_500(start: Start, body: Any) -> None:
    [slot] = start(lambda environ, start_response: body)
    slot.request(1)
    assert slot.answer()[0].aux == 500


def test_an_empty_body_is_an_answer(start: Start) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("204 No Content", [])
        return iter([])

    [slot] = start(app)
    slot.request(1)
    frame, body = slot.answer()
    assert (frame.aux, body) == (204, b"")


def test_head_has_the_head_and_no_body(start: Start) -> None:
    ran_on = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Length", "6")])
        yield b"abc"
        ran_on.append(True)
        yield b"def"

    [slot] = start(app)
    slot.request(1, REQUEST_METHOD="HEAD")
    frame = slot.expect("ANSWER")
    assert (frame.body, frame.flags) == (b"", 0)
    assert ("Content-Length", "6") in frame.headers
    slot.expect("READY")
    assert ran_on == []


def body_of(*chunks: bytes, length: int, as_list: bool = False) -> Any:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [("Content-Length", str(length))])
        return list(chunks) if as_list else iter(chunks)

    return app


@pytest.mark.parametrize("as_list", [False, True])
def test_a_body_longer_than_its_content_length_ends_there(
    start: Start, caplog: pytest.LogCaptureFixture, as_list: bool
) -> None:
    [slot] = start(body_of(b"abc", b"def", length=4, as_list=as_list))
    slot.request(1)
    assert slot.answer()[1] == b"abcd"
    assert "GET / is longer than its Content-Length" in caplog.text


@pytest.mark.parametrize("as_list", [False, True])
def test_a_body_shorter_than_its_content_length_is_cut(
    start: Start, caplog: pytest.LogCaptureFixture, as_list: bool
) -> None:
    [slot] = start(body_of(b"abc", length=4, as_list=as_list))
    slot.request(1)
    frame = slot.expect("ANSWER")
    assert (frame.body, frame.flags) == (b"abc", MORE)
    assert slot.expect("BODY").flags == BROKEN
    slot.expect("READY")
    assert "1 bytes shorter than its Content-Length" in caplog.text


@pytest.mark.parametrize("name", ["X-Sendfile", "x-accel-redirect"])
def test_the_length_beside_the_name_of_a_file_is_the_files(
    start: Start, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Length", "4000"), (name, "/a"), ("X-B", "c")])
        return []

    [slot] = start(app)
    slot.request(1)
    frame = slot.expect("ANSWER")
    assert (frame.body, frame.flags) == (b"", READY)
    assert bytes(frame.head) == b"OK\0" + name.encode() + b"\0/a\0X-B\0c\0"
    assert caplog.text == ""


def test_a_promised_body_that_never_comes_is_cut(start: Start) -> None:
    [slot] = start(body_of(length=4))
    slot.request(1)
    assert slot.expect("ANSWER").flags == MORE
    assert slot.expect("BODY").flags == BROKEN
    slot.expect("READY")


@pytest.mark.parametrize("size", [1, 65_536, 262_144, 262_145, 3_000_000])
@pytest.mark.parametrize("as_list", [False, True])
def test_large_bodies_come_in_bounded_frames(start: Start, size: int, as_list: bool) -> None:
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    [slot] = start(body_of(data, length=size, as_list=as_list))
    slot.request(1)
    frame = slot.expect("ANSWER")
    body = frame.body
    while frame.flags & MORE:
        assert len(frame.body) <= 262_144
        frame = slot.expect("BODY")
        body += frame.body
    assert body == data


def test_a_file_wrapper_is_read_in_large_blocks_and_closed(start: Start) -> None:
    files = []

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        file = io.BytesIO(b"x" * 600_000)
        files.append(file)
        return environ["wsgi.file_wrapper"](file, 10)

    [slot] = start(app)
    slot.request(1)
    frame = slot.expect("ANSWER")
    sizes = [len(frame.body)]
    while frame.flags & MORE:
        frame = slot.expect("BODY")
        sizes.append(len(frame.body))
    slot.expect("READY")
    assert sizes == [262_144, 262_144, 75_712, 0]
    assert files[0].closed


def test_a_stop_ends_the_body_and_closes_the_iterable(start: Start) -> None:
    closed = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        try:
            while True:
                yield b"tick"
        finally:
            closed.append(environ["PATH_INFO"])

    [slot] = start(app)
    slot.request(1, "/endless")
    slot.expect("ANSWER")
    slot.send("STOP", request=1, epoch=0)
    while not (frame := slot.expect("BODY")).flags & BROKEN:
        assert frame.body == b"tick"
    slot.expect("READY")
    assert closed == ["/endless"]


def test_a_late_stop_means_nothing(start: Start) -> None:
    [slot] = start(hello)
    slot.request(1)
    slot.answer()
    slot.send("STOP", request=1, epoch=0)
    slot.request(2)
    assert slot.answer()[1] == b"hello"


def test_a_request_waits_in_place_while_its_slot_is_held(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "layby")

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        quote = layby.get("https://ship.example/quote", params={"zip": "1"}).result()
        start_response("200 OK", [])
        return [quote.content + quote.headers["content-type"].encode()]

    [slot] = start(app)
    for request in (1, 2):
        slot.request(request)
        hold = slot.expect("HOLD")
        assert (hold.request, hold.epoch, hold.flags) == (request, 0, 0)
        [thing] = hold.plan["gather"]
        assert thing["fetch"]["url"] == "https://ship.example/quote?zip=1"
        assert hold.plan["hold"]["reason"] == "mode"
        assert hold.plan["hold"]["source"].endswith(f"test_wsgi.py:{line_of('zip')}")
        slot.results("RESULTS", request, 0, response(b"12 EUR"), body=b"12 EUR")
        assert slot.answer()[1] == b"12 EURtext/plain"
    assert caplog.text.count("waits in place (mode)") == 1


def line_of(words: str) -> int:
    with open(__file__) as file:
        return next(number for number, line in enumerate(file, 1) if words in line)


def test_results_may_come_as_a_file(start: Start) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        one, two = layby.gather(
            layby.get("http://a.example/"), layby.get("http://b.example/")
        ).result()
        start_response("200 OK", [])
        return [two.content, one.content]

    [slot] = start(app)
    slot.request(1)
    slot.expect("HOLD")
    one, two = b"1" * 400_000, b"2" * 300_000
    slot.results("RESULTS", 1, 0, response(one), response(two, at=len(one)), file=one + two)
    assert slot.answer()[1] == two + one


def test_a_client_that_leaves_a_wait_in_place_ends_the_request(start: Start) -> None:
    events: list[Any] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] == "/":
            return hello(environ, start_response)
        try:
            layby.sleep(5).result()
        except Exception:
            events.append("taken for a failure")
            raise
        finally:
            events.append("finally")
            events.append(layby.sleep(0.5).result())
        return hello(environ, start_response)

    [slot] = start(app)
    slot.request(1, "/sleeps")
    slot.expect("HOLD")
    slot.send("CANCEL", request=1, epoch=0)
    # What its finally block does still works.
    hold = slot.expect("HOLD")
    assert (hold.request, hold.epoch) == (1, 0)
    slot.results("RESULTS", 1, 0, {"slept": 0.5})
    slot.expect("READY")
    assert events == ["finally", 0.5]
    slot.request(2)
    assert slot.answer()[1] == b"hello"


def test_a_cancel_in_place_is_of_the_same_job(start: Start) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        layby.sleep(5).result()
        return hello(environ, start_response)

    [slot] = start(app)
    slot.request(1)
    slot.expect("HOLD")
    slot.send("CANCEL", request=1, epoch=1)
    # A cancel of another job than the one in hand is nonsense: request and slot end.
    slot.expect("READY")
    assert slot.closed()


def test_an_answer_after_a_swallowed_cancel_is_discarded(start: Start) -> None:
    closed = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        try:
            layby.sleep(5).result()
        except layby.Cancelled:
            pass
        try:
            yield b"nobody wants this"
        finally:
            closed.append(True)

    [slot] = start(app)
    slot.request(1)
    slot.expect("HOLD")
    slot.send("CANCEL", request=1, epoch=0)
    ready = slot.expect("READY")
    assert (ready.request, ready.epoch) == (1, 0)
    assert closed == [True]


def test_a_shielded_wait_says_so(start: Start) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        with layby.shield():
            layby.sleep(1).result()
        layby.sleep(2).result()
        return hello(environ, start_response)

    [slot] = start(app)
    slot.request(1)
    assert slot.expect("HOLD").flags == 16
    slot.results("RESULTS", 1, 0, {"slept": 1.0})
    assert slot.expect("HOLD").flags == 0
    slot.results("RESULTS", 1, 0, {"slept": 2.0})
    slot.answer()


def test_a_wait_in_the_middle_of_a_body(start: Start) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"waiting "
        yield layby.get("http://a.example/").result().content

    [slot] = start(app)
    slot.request(1)
    assert slot.expect("ANSWER").body == b"waiting "
    assert slot.expect("HOLD").plan["hold"]["reason"] == "mode"
    slot.results("RESULTS", 1, 0, response(b"no longer"), body=b"no longer")
    assert slot.expect("BODY").body == b"no longer"
    slot.expect("BODY")
    slot.expect("READY")


def test_a_client_that_leaves_in_the_middle_of_a_body_cancels_its_wait(start: Start) -> None:
    closed = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        try:
            yield b"waiting"
            yield layby.get("http://a.example/").result().content
        finally:
            closed.append(True)

    [slot] = start(app)
    slot.request(1)
    assert slot.expect("ANSWER").body == b"waiting"
    slot.expect("HOLD")
    slot.send("CANCEL", request=1, epoch=0)
    last = slot.frame()
    assert (last.type, last.flags & BROKEN) == ("BODY", BROKEN)
    slot.expect("READY")
    assert closed == [True]


def test_an_async_view_below_a_sync_application_waits_in_place(start: Start) -> None:
    from layby._drive import drive

    async def view() -> bytes:
        return (await layby.get("http://a.example/")).content

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [drive(view())]

    [slot] = start(app)
    slot.request(1)
    assert slot.expect("HOLD").plan["hold"]["reason"] == "mode"
    slot.results("RESULTS", 1, 0, response(b"x"), body=b"x")
    assert slot.answer()[1] == b"x"


def test_a_plan_larger_than_the_gateway_takes_is_an_error_of_the_fetch(start: Start) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        try:
            layby.post("http://a.example/?key=k", content=b"x" * (1 << 20) + b"x").result()
        except layby.TooLarge as error:
            start_response("200 OK", [])
            return [f"{error.method} {error.url} {error.phase}".encode()]
        raise AssertionError

    [slot] = start(app)
    slot.request(1)
    assert slot.answer()[1] == b"POST http://a.example/?key=*** send"


def test_context_variables_end_with_their_request(start: Start) -> None:
    user: ContextVar[str] = ContextVar("user", default="nobody")

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        before = user.get()
        user.set(environ["QUERY_STRING"])
        start_response("200 OK", [])
        yield f"{before} ".encode()
        yield user.get().encode()

    [slot] = start(app)
    for number, name in enumerate(("ann", "bob"), 1):
        slot.request(number, QUERY_STRING=name)
        assert slot.answer()[1] == f"nobody {name}".encode()


def test_a_path_is_escaped_in_the_log(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if "short" not in environ["PATH_INFO"]:
            raise ValueError("as the test has it")
        start_response("200 OK", [("Content-Length", "3")])
        return [b""]

    forged = "/\u00fc\nERROR layby: all is lost \x1b[2J\u0085\u202e"
    path = forged.encode().decode("latin-1")
    [slot] = start(app)
    slot.request(1, path)
    assert slot.answer()[0].aux == 500
    slot.request(2, f"/short{path}")
    slot.expect("ANSWER")
    slot.expect("BODY")
    slot.expect("READY")
    shown = "/\u00fc\\nERROR layby: all is lost \\x1b[2J\\x85\\u202e"
    failed, cut = (record.getMessage() for record in caplog.records)
    assert failed == f"the application failed: GET {shown}"
    assert cut.startswith(f"the answer to GET /short{shown} is 3 bytes shorter")
