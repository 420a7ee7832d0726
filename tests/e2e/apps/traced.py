"""A Django application in one file that traces with OpenTelemetry's SDK, as its parent says."""

from __future__ import annotations

import layby
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from opentelemetry import trace
from opentelemetry.propagate import extract, inject
from opentelemetry.sdk.trace import TracerProvider

settings.configure(
    SECRET_KEY="only for tests",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=["layby.django"],
)

# Samples like its parent, which is what most applications do.
tracer = TracerProvider().get_tracer("traced")


def ids(span: trace.Span) -> dict[str, object]:
    context = span.get_span_context()
    parent = getattr(span, "parent", None)
    return {
        "trace": f"{context.trace_id:032x}",
        "id": f"{context.span_id:016x}",
        "parent": f"{parent.span_id:016x}" if parent else "",
        "sampled": context.trace_flags.sampled,
    }


async def traced(request: HttpRequest) -> JsonResponse:
    """Two fetches: one as an instrumented client makes it, one that knows nothing of tracing."""
    url = request.GET["url"]
    with tracer.start_as_current_span("view", context=extract(request.headers)) as span:
        headers: dict[str, str] = {}
        inject(headers)
        own, plain = await layby.gather(layby.get(url, headers=headers), layby.get(url))
        return JsonResponse(
            {
                "headers": dict(request.headers),
                "span": ids(span),
                "own": own.json()["headers"],
                "plain": plain.json()["headers"],
            }
        )


def held(request: HttpRequest) -> HttpResponse:
    """Waits in place: a synchronous view cannot park."""
    return HttpResponse(layby.get(request.GET["url"]).result().text)


def fails(request: HttpRequest) -> HttpResponse:
    return HttpResponse("it is broken", status=500)


urlpatterns = [path("traced", traced), path("held", held), path("fails", fails)]
application = get_wsgi_application()
