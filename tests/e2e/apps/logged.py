"""A Django application in one file, whose log names requests."""

from __future__ import annotations

import logging

import layby
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path

settings.configure(
    SECRET_KEY="only for tests",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=["layby.django"],
    LOGGING={
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"request_id": {"()": "layby.RequestIdFilter"}},
        "formatters": {"line": {"format": "app says %(request_id)s %(message)s"}},
        "handlers": {
            "console": {
                "class": "logging.StreamHandler",
                "filters": ["request_id"],
                "formatter": "line",
            }
        },
        "loggers": {"told": {"handlers": ["console"], "level": "INFO"}},
    },
)

log = logging.getLogger("told")


async def told(request: HttpRequest) -> JsonResponse:
    log.info("before")
    answer = await layby.get(request.GET["url"])
    log.info("after")
    return JsonResponse({"id": request.headers["X-Request-ID"], "origin": answer.json()})


urlpatterns = [path("told", told)]
application = get_wsgi_application()
