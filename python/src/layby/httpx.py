"""httpx by the gateway: a transport for Client and AsyncClient.

    client = httpx.Client(transport=layby.httpx.Transport())

Redirects, cookies, authentication and errors are httpx's own. Streaming works, with a
response that is whole when it arrives.

In a slot an AsyncClient's await parks the request as layby's own things do. Under an
event loop, outside layby, and for what the gateway cannot do (bodies from files and
generators, client certificates, proxies, `verify=False`), httpx's own transport is used.
"""

from __future__ import annotations

import httpx

from layby import _httpx

__all__ = ["Transport"]


class Transport(_httpx.Transport, httpx.BaseTransport, httpx.AsyncBaseTransport):
    """A transport by the gateway. The options are those of `httpx.HTTPTransport`."""

    _library = httpx
    _own = httpx.HTTPTransport
    _own_async = httpx.AsyncHTTPTransport
