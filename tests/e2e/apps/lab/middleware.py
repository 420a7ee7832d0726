"""A middleware that shows which threads ran a request, and one that keeps requests from parking."""

from __future__ import annotations

import os
import threading
from collections.abc import Awaitable, Callable
from inspect import iscoroutinefunction
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.utils.decorators import sync_and_async_middleware


def here() -> str:
    return f"{os.getpid()}:{threading.get_native_id()}"


@sync_and_async_middleware
def threads(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    def mark(response: HttpResponse, began: str) -> HttpResponse:
        response["Lab-Began-On"] = began
        response["Lab-Ended-On"] = here()
        return response

    if iscoroutinefunction(get_response):

        async def asynchronous(request: HttpRequest) -> HttpResponse:
            began = here()
            answer: Awaitable[HttpResponse] = get_response(request)
            return mark(await answer, began)

        return asynchronous

    def synchronous(request: HttpRequest) -> HttpResponse:
        began = here()
        return mark(get_response(request), began)

    return synchronous


class SyncOnly:
    """As written before Django knew of async."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        response["Lab-Sync-Only"] = "seen"
        return response
