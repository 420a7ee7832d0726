"""Middleware of the kinds that a coroutine chain meets."""

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.db import connection
from django.http import HttpResponse
from django.utils.decorators import sync_and_async_middleware
from django.utils.deprecation import MiddlewareMixin


class SyncOnly:
    """In the style of WhiteNoise: no word about async, so Django takes it as sync-only."""

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        response = self.get_response(request)
        response["X-Sync-Only"] = "seen"
        return response


class OwnCall(MiddlewareMixin):
    """Inherits `async_capable`, but has a `__call__` that knows nothing of it."""

    def __call__(self, request):
        response = self.get_response(request)
        response["X-Own-Call"] = "seen"
        return response


class ClaimsAsync:
    """Says that it is async-capable, and is not."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        response = self.get_response(request)
        response["X-Claims-Async"] = "seen"
        return response


@sync_and_async_middleware
def both(get_response):
    if iscoroutinefunction(get_response):

        async def middleware(request):
            response = await get_response(request)
            response["X-Both"] = "async"
            return response

    else:

        def middleware(request):
            response = get_response(request)
            response["X-Both"] = "sync"
            return response

    return middleware


class AsyncOnly:
    """Django adapts a synchronous chain for it."""

    sync_capable = False
    async_capable = True

    def __init__(self, get_response):
        self.get_response = get_response
        markcoroutinefunction(self)

    async def __call__(self, request):
        response = await self.get_response(request)
        response["X-Async-Only"] = "seen"
        return response


class Hooks:
    """`process_view` and `process_exception`, the latter asynchronous."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response):
        self.get_response = get_response
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    def __call__(self, request):
        return self.get_response(request)

    def process_view(self, request, view, args, kwargs):
        request.seen_by_process_view = True

    async def process_exception(self, request, exception):
        if isinstance(exception, KeyError):
            return HttpResponse(f"handled {exception}")
        return None


@sync_and_async_middleware
def wraps_queries(get_response):
    def wrapper(execute, sql, params, many, context):
        return execute(sql, params, many, context)

    async def middleware(request):
        with connection.execute_wrapper(wrapper):
            return await get_response(request)

    return middleware
