"""Django's requests whose body is not here yet.

What reads the body before an `async def` view runs gets `BodyNotReady`, so that the view
decides whether the upload is wanted. The CSRF check is such a reader: it takes an
unreadable POST as one without a token, and goes on to the header. Everywhere else (a
synchronous view; a middleware, before it is known which view it will be) reading waits
in place, so that nothing breaks that is not written for such routes. Where the client did not
say how long the body is, that is before the synchronous view.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asgiref.sync import iscoroutinefunction
from django.core.handlers.wsgi import LimitedStream, WSGIRequest
from django.http import UnreadablePostError
from django.urls import ResolverMatch

from layby._body import LazyBody
from layby._exceptions import BodyNotReady

_FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")


class NotReady(BodyNotReady, UnreadablePostError):
    """`BodyNotReady` as Django's own code knows it."""


def request_class(plain: type[WSGIRequest], environ: dict[str, Any]) -> type[WSGIRequest]:
    """The class of the request that `environ` is about: `plain`, or one made of it."""
    return _lazy(plain) if isinstance(environ["wsgi.input"], LazyBody) else plain


if TYPE_CHECKING:
    _Base = WSGIRequest
else:
    _Base = object


class _LazyRequest(_Base):
    """Goes before Django's class: whatever reads has the body come first."""

    def _have_body(self) -> None:
        body = self.environ["wsgi.input"]
        # A middleware may have put something else there, and knows what it does.
        if not isinstance(body, LazyBody) or getattr(self, "_layby_body_seen", False):
            return
        if not body.here:
            if _is_async(self.resolver_match):
                raise NotReady(
                    "the body of this request is not here yet: in the view, first"
                    " `await layby.read_uploaded_file(request, name)` or"
                    " `await layby.body_ready(request)`"
                )
            body.wait()
        self._layby_body_seen = True
        # The one that Django made at the start ends where the client said, if it did.
        stream: Any = body
        self._stream: Any = LimitedStream(stream, int(self.environ["CONTENT_LENGTH"]))

    # Set by Django as soon as it is known which view it will be.
    @property
    def resolver_match(self) -> ResolverMatch | None:
        return self._layby_match

    @resolver_match.setter
    def resolver_match(self, match: ResolverMatch | None) -> None:
        self._layby_match = match
        if match is not None and not _is_async(match) and not self.environ.get("CONTENT_LENGTH"):
            # Code that is not written for such routes takes it that there is no body.
            self._have_body()

    @property
    def body(self) -> bytes:
        if not hasattr(self, "_body"):
            self._have_body()
        return super().body

    def read(self, *args: Any, **kwargs: Any) -> bytes:
        self._have_body()
        return super().read(*args, **kwargs)

    def readline(self, *args: Any, **kwargs: Any) -> bytes:
        self._have_body()
        return super().readline(*args, **kwargs)

    def _load_post_and_files(self) -> None:
        if self.method == "POST" and self.content_type in _FORMS and not hasattr(self, "_body"):
            self._have_body()
        super()._load_post_and_files()


def _is_async(match: ResolverMatch | None) -> bool:
    return match is not None and iscoroutinefunction(match.func)


def forget_form(request: Any, **kwargs: Any) -> None:
    """A view has failed: what reports that must not fail for want of a form."""
    if isinstance(request, _LazyRequest) and not hasattr(request, "_post"):
        body = request.environ["wsgi.input"]
        if isinstance(body, LazyBody) and not body.here:
            lenient: Any = request
            lenient._mark_post_parse_error()


_made: dict[type[WSGIRequest], type[WSGIRequest]] = {}


def _lazy(plain: type[WSGIRequest]) -> type[WSGIRequest]:
    made = _made.get(plain)
    if made is None:
        names = {"__module__": plain.__module__}
        made = _made.setdefault(plain, type(plain.__name__, (_LazyRequest, plain), names))
    return made
