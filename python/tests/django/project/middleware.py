"""Middleware of the kinds that a coroutine chain meets."""

import asyncio
import threading

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


def _with_loop(before, after):
    """A middleware in both forms, whose asynchronous one uses asyncio before or after the rest."""

    @sync_and_async_middleware
    def factory(get_response):
        if iscoroutinefunction(get_response):

            async def middleware(request):
                request.META["BEGUN"] = f"{request.META.get('BEGUN', '')}async "
                if before:
                    async with asyncio.timeout(10):
                        return await get_response(request)
                response = await get_response(request)
                await asyncio.sleep(0 if after else 1)
                return response

        else:

            def middleware(request):
                begun = request.META.get("BEGUN", "")
                response = get_response(request)
                response["X-Begun"] = f"{begun}sync"
                return response

        return middleware

    return factory


times_out = _with_loop(before=True, after=False)
sleeps_late = _with_loop(before=False, after=True)


@sync_and_async_middleware
def counts(get_response):
    """How often it has been run for one request."""

    def count(request):
        request.META["COUNT"] = request.META.get("COUNT", 0) + 1

    if iscoroutinefunction(get_response):

        async def middleware(request):
            count(request)
            response = await get_response(request)
            response["X-Count"] = str(request.META["COUNT"])
            return response

    else:

        def middleware(request):
            count(request)
            response = get_response(request)
            response["X-Count"] = str(request.META["COUNT"])
            return response

    return middleware


class NeedsLoop:
    """Nothing but asynchronous, and in need of a loop on both ways."""

    sync_capable = False
    async_capable = True

    def __init__(self, get_response):
        self.get_response = get_response
        markcoroutinefunction(self)

    async def __call__(self, request):
        async with asyncio.timeout(10):
            await asyncio.sleep(0)
            response = await self.get_response(request)
        response["X-Needs-Loop"] = threading.current_thread().name
        return response


class LoopHooks:
    """Hooks that use asyncio."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response):
        self.get_response = get_response
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    def __call__(self, request):
        return self.get_response(request)

    async def process_view(self, request, view, args, kwargs):
        await asyncio.sleep(0.001)
        request.seen_by_process_view = True

    async def process_exception(self, request, exception):
        async with asyncio.timeout(10):
            return HttpResponse(f"handled {exception}")
