"""httpx2 by the gateway: a transport for Client and AsyncClient.

    client = httpx2.Client(transport=layby.httpx2.Transport())

Redirects, cookies, authentication and errors are httpx2's own. Streaming works, with a
response that is whole when it arrives.

In a slot an AsyncClient's await parks the request as layby's own things do. Under an
event loop, outside layby, and for what the gateway cannot do (bodies from files and
generators, client certificates, proxies, `verify=False`), httpx2's own transport is used.
"""

from __future__ import annotations

import httpx2

from layby import _httpx

__all__ = ["Transport"]


class Transport(_httpx.Transport, httpx2.BaseTransport, httpx2.AsyncBaseTransport):
    """A transport by the gateway. The options are those of `httpx2.HTTPTransport`."""

    _library = httpx2
    _own = httpx2.HTTPTransport
    _own_async = httpx2.AsyncHTTPTransport
