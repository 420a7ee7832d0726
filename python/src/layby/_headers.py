"""What is known of header names, whoever sends them."""

from __future__ import annotations

# The gateway takes no more of them from a worker: in an answer, or for a fetch.
MAX_HEADERS = 1000

# Headers about a connection that is not the application's. Other servers drop them
# too, so applications do set them.
HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "trailers",
        "transfer-encoding",
        "upgrade",
    }
)
