"""Requests of Django whose body comes later: who waits for it, and who is told to wait."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import Context
from io import BytesIO
from typing import Any

import pytest
from django.http import HttpResponse, JsonResponse, UnreadablePostError
from django.test import override_settings
from django.urls import path
from django.views import View
from stepper import environ as make_environ

import layby
from layby._body import BodyWait, LazyBody
from layby._job import Job, tls

BOUNDARY = "frontier"
TOKEN = "t" * 32


def multipart(*parts: tuple[str, str | None, bytes]) -> bytes:
    body = b""
    for name, filename, content in parts:
        file = f'; filename="{filename}"' if filename else ""
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
        body += head.encode() + content + b"\r\n"
    return body + f"--{BOUNDARY}--\r\n".encode()


UPLOAD = multipart(
    ("photo", "first.jpg", b"one"), ("photo", "last.jpg", b"two" * 2_000_000), ("title", None, b"A")
)


async def upload(request):
    photo = await layby.read_uploaded_file(request, "photo")
    return JsonResponse(
        {
            "name": photo.name,
            "size": photo.size,
            "title": request.POST["title"],
            "files": len(request.FILES.getlist("photo")),
            "length": request.META["CONTENT_LENGTH"],
            "kind": type(photo).__name__,
        }
    )


async def refuses(request):
    return HttpResponse("no, thank you", status=403)


async def too_early(request):
    seen = []
    for read in (
        lambda: request.POST, lambda: request.FILES, lambda: request.body,
        lambda: request.read(1), request.readline, lambda: list(request), request.readlines,
    ):  # fmt: skip
        try:
            read()
        except layby.BodyNotReady as error:
            seen.append(isinstance(error, UnreadablePostError))
    # Nothing is spoilt by that.
    await layby.body_ready(request)
    return JsonResponse({"seen": seen, "title": request.POST["title"]})


async def raw(request):
    await layby.body_ready(request)
    return HttpResponse(request.body)


async def streamed(request):
    await layby.body_ready(request)
    return HttpResponse(request.read(3) + b"|" + request.readline() + b"|" + request.read())


async def missing(request):
    try:
        await layby.read_uploaded_file(request, "video")
    except KeyError as error:
        return HttpResponse(str(error))


async def fails(request):
    raise ValueError("before the upload")


def sync(request):
    return HttpResponse(f"{request.POST['title']} {len(request.FILES)}")


def by_the_length(request):
    """As Django REST framework reads: not at all if there is no length."""
    length = int(request.META.get("CONTENT_LENGTH") or 0)
    return HttpResponse(request.read(length))


class Page(View):
    async def post(self, request):
        return await upload(request)


def reads_the_form(get_response):
    """A middleware that asks before it is known which view it will be."""

    def middleware(request):
        request.title = request.POST["title"]
        return get_response(request)

    return middleware


# Django 4.2's csrf_exempt does not know of `async def` views.
too_early.csrf_exempt = True  # type: ignore[attr-defined]

urlpatterns = [
    path("upload/", upload),
    path("refuses/", refuses),
    path("too-early/", too_early),
    path("raw/", raw),
    path("streamed/", streamed),
    path("missing/", missing),
    path("sync/", sync),
    path("page/", Page.as_view()),
    path("fails/", fails),
    path("by-the-length/", by_the_length),
]


class Waiter:
    """The gateway, with the whole body at hand."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.in_place: list[str] = []

    def wait_in_place(self, job: Any, suspend: Any, reason: str, detail: str = "") -> None:
        assert isinstance(suspend, BodyWait)
        self.in_place.append(reason)
        self.fill(suspend)

    def fill(self, wait: BodyWait) -> None:
        wait._body.fill(BytesIO(self.content), len(self.content))


class Seen:
    def __init__(self, response: Any, parks: int, in_place: list[str], body: LazyBody) -> None:
        self.status = response.status
        self.text = b"".join(response).decode()
        self.parks = parks
        self.in_place = in_place
        self.body_came = body.here
        response.close()


@contextmanager
def slot(job: Job, waiter: Waiter) -> Iterator[None]:
    tls.job, tls.waiter = job, waiter
    try:
        yield
    finally:
        tls.job = tls.waiter = None


def post(
    path: str,
    content: bytes = UPLOAD,
    *,
    token: bool = True,
    announced: bool = True,
    kind: str = f"multipart/form-data; boundary={BOUNDARY}",
    **settings: Any,
) -> Seen:
    from django.core.handlers.wsgi import WSGIHandler

    from layby.django import application

    headers = {"X-CSRFToken": TOKEN} if token else {}
    environ = make_environ(path, post={}, cookies={"csrftoken": TOKEN}, headers=headers)
    environ["CONTENT_TYPE"] = kind
    del environ["CONTENT_LENGTH"]
    if announced:
        environ["CONTENT_LENGTH"] = str(len(content))
    environ["wsgi.input"] = body = LazyBody(environ)
    waiter = Waiter(content)
    job = Job(request=1, epoch=0, environ=environ, context=Context(), slot=0)
    job.body = body
    with override_settings(ROOT_URLCONF=__name__, **settings), slot(job, waiter):
        coroutine = job.context.run(application(WSGIHandler()), environ)
        for parks in range(5):
            try:
                waiter.fill(job.context.run(coroutine.send, None))
            except StopIteration as stop:
                return job.context.run(Seen, stop.value, parks, waiter.in_place, body)
    raise AssertionError("parked without end")


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("path", ["/upload/", "/page/"])
def test_a_view_parks_for_its_upload(database: None, path: str, announced: bool) -> None:
    seen = post(path, announced=announced)
    assert (seen.status, seen.parks, seen.in_place) == ("200 OK", 1, [])
    assert json.loads(seen.text) == {
        "name": "last.jpg",
        "size": 6_000_000,
        "title": "A",
        "files": 2,
        "length": str(len(UPLOAD)),
        "kind": "TemporaryUploadedFile",
    }


def test_a_view_that_refuses_never_sees_the_body(database: None) -> None:
    seen = post("/refuses/")
    assert (seen.text, seen.parks, seen.body_came) == ("no, thank you", 0, False)


def test_a_token_in_the_form_is_a_403_as_it_is_not_there_yet(database: None) -> None:
    with_field = multipart(("csrfmiddlewaretoken", None, TOKEN.encode()), ("title", None, b"A"))
    seen = post("/upload/", with_field, token=False)
    assert seen.status == "403 Forbidden"
    assert "CSRF" in seen.text
    assert not seen.body_came


def test_reading_too_early_says_what_to_do_and_spoils_nothing(database: None) -> None:
    seen = post("/too-early/")
    assert seen.text == '{"seen": [true, true, true, true, true, true, true], "title": "A"}'
    assert seen.parks == 1


@pytest.mark.parametrize("announced", [True, False])
def test_other_bodies_are_read_as_usual(database: None, announced: bool) -> None:
    kind = "application/octet-stream"
    body = b"one\ntwo\nthree"
    assert post("/raw/", body, kind=kind, announced=announced).text == "one\ntwo\nthree"
    assert post("/streamed/", body, kind=kind, announced=announced).text == "one|\n|two\nthree"


def test_a_file_that_is_not_there_is_a_key_error(database: None) -> None:
    assert post("/missing/").text == "'video'"


@pytest.mark.parametrize("announced", [True, False])
def test_a_synchronous_view_gets_it_in_place(database: None, announced: bool) -> None:
    seen = post("/sync/", announced=announced)
    assert (seen.text, seen.parks, seen.in_place) == ("A 1", 0, ["mode"])
    # There the token may also be in the form.
    with_field = multipart(("csrfmiddlewaretoken", None, TOKEN.encode()), ("title", None, b"A"))
    assert post("/sync/", with_field, token=False, announced=announced).text == "A 0"


@pytest.mark.parametrize("announced", [True, False])
def test_a_synchronous_view_may_go_by_the_length(database: None, announced: bool) -> None:
    seen = post("/by-the-length/", b"hello", kind="text/plain", announced=announced)
    assert (seen.text, seen.in_place) == ("hello", ["mode"])


def test_a_middleware_that_reads_first_gets_it_in_place(database: None) -> None:
    from django.conf import settings

    middleware = [*settings.MIDDLEWARE, f"{__name__}.reads_the_form"]
    seen = post("/upload/", MIDDLEWARE=middleware)
    assert (seen.status, seen.body_came) == ("200 OK", True)
    assert seen.in_place == ["mode"]


def test_the_page_of_an_error_does_without_the_form(database: None) -> None:
    seen = post("/fails/", DEBUG=True)
    assert seen.status == "500 Internal Server Error"
    assert "before the upload" in seen.text
    assert not seen.body_came


def test_outside_layby_nothing_is_different(database: None) -> None:
    from django.core.files.uploadedfile import SimpleUploadedFile
    from django.test import Client

    with override_settings(ROOT_URLCONF=__name__):
        files = [SimpleUploadedFile(name, name.encode()) for name in ("a.jpg", "b.jpg")]
        answer = Client().post("/upload/", {"photo": files, "title": "A"})
        assert answer.json()["name"] == "b.jpg"
        answer = Client().post("/raw/", b"abc", content_type="text/plain")
        assert answer.content == b"abc"
