"""requests by the gateway: an adapter to mount.

    session = requests.Session()
    session.mount("https://", layby.requests.Adapter())

Redirects, retries, cookies and authentication are requests' own, and so are its
exceptions. With `stream=True` the response is whole when it arrives. What the gateway
cannot do is left to requests: see `layby.urllib3`, which does the work.
"""

from __future__ import annotations

from typing import Any

import urllib3
from requests.adapters import HTTPAdapter

from layby.urllib3 import use_gateway

__all__ = ["Adapter"]


class Adapter(HTTPAdapter):
    """An HTTPAdapter whose requests are made by the gateway when the code runs in a slot."""

    def init_poolmanager(self, *args: Any, **settings: Any) -> None:
        super().init_poolmanager(*args, **settings)
        use_gateway(self.poolmanager)

    def proxy_manager_for(self, proxy: Any, **settings: Any) -> urllib3.PoolManager:
        # Its requests are not for the gateway, but they are counted.
        manager: urllib3.PoolManager = super().proxy_manager_for(proxy, **settings)
        use_gateway(manager)
        return manager
