"""Only for the system check: a worker marks middleware that it has looked at."""

from django.core.exceptions import MiddlewareNotUsed
from django.core.wsgi import get_wsgi_application
from django.utils.decorators import async_only_middleware, sync_and_async_middleware
from django.utils.deprecation import MiddlewareMixin

from project.middleware import SyncOnly as _SyncOnly
from project.middleware import both

__all__ = ["both"]


class SyncOnly(_SyncOnly):
    pass


class OwnCall(MiddlewareMixin):
    def __call__(self, request):
        return self.get_response(request)


class OwnCalls(OwnCall):
    """Both halves are its own."""

    async def __acall__(self, request):
        return await self.get_response(request)


class ClaimsAsync:
    sync_capable = async_capable = True

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        return self.get_response(request)


@sync_and_async_middleware
def unused(get_response):
    raise MiddlewareNotUsed


@async_only_middleware
def fails(get_response):
    raise ConnectionError("no licence server")


class Wrapper:
    """As an agent wraps an application."""

    def __init__(self, application):
        self.application = application

    def __call__(self, environ, start_response):
        return self.application(environ, start_response)


wrapped = Wrapper(get_wsgi_application())
