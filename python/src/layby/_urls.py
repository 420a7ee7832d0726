"""URLs as layby sends them and as it shows them.

A URL is made ASCII here in the way httpx does it, so that application code moves
over unchanged. Whether it may be fetched is decided where it is fetched.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

Primitive = str | int | float | bool | None
Params = (
    Mapping[str, Primitive | Sequence[Primitive]] | Iterable[tuple[str, Primitive]] | str | bytes
)

# What may stand unquoted: printable ASCII but for these. "%" stays, so that what is
# quoted already is not quoted again.
_QUERY_SAFE = "".join(chr(i) for i in range(0x21, 0x7F) if chr(i) not in '"#<>')
_PATH_SAFE = "".join(chr(i) for i in range(0x21, 0x7F) if chr(i) not in '"#<>?`{}')

# A URL on which nothing is to be done: nearly all of them.
_PLAIN = re.compile(
    r"https?://[a-z0-9.-]+(:[0-9]+)?/[A-Za-z0-9._~/%&=+:,;!$*()-]*"
    r"(\?[A-Za-z0-9._~/%&=+:,;!$*()-]*)?"
)

# ß, final sigma, and the two joiners that are not seen.
_CHANGED_SINCE_2003 = frozenset("ß\u03c2\u200c\u200d")

_SECRET = re.compile(
    r"key|token|secret|passw|pwd|auth|sig|credential|session|jwt|code", re.IGNORECASE
)


def prepare(url: str, params: Params | None) -> tuple[str, str | None]:
    """The URL to fetch and the Authorization header that its user info stands for.

    As in httpx, `params` replace a query that the URL has. What is no URL comes back as
    it is: the fetch then fails with phase "url".
    """
    if params is None and _PLAIN.fullmatch(url):
        return url, None
    try:
        parts = urlsplit(url)
        netloc, authorization = _prepare_netloc(parts.netloc)
    except ValueError:
        return url, None
    query = encode_pairs(params) if params is not None else quote(parts.query, safe=_QUERY_SAFE)
    path = quote(parts.path, safe=_PATH_SAFE) or "/"
    return urlunsplit((parts.scheme, netloc, path, query, "")), authorization


def host_trouble(url: str) -> str | None:
    """Why `url` has a host that cannot be made ASCII, if it has one: it must not be asked for."""
    if url.isascii():
        return None
    try:
        _prepare_netloc(urlsplit(url).netloc)
    except ValueError as error:
        return str(error)
    return None


def encode_pairs(params: Params) -> str:
    """Query or form encoding: lists repeat their name, None is empty, True is "true"."""
    if isinstance(params, bytes):
        params = params.decode("ascii")
    if isinstance(params, str):
        params = parse_qsl(params, keep_blank_values=True)
    items = params.items() if isinstance(params, Mapping) else params
    # Values of one name stand together, at the place of the first.
    values: dict[str, list[str]] = {}
    for name, value in items:
        many = value if isinstance(value, list | tuple) else (value,)
        values.setdefault(str(name), []).extend(_primitive(one) for one in many)
    return urlencode(values, doseq=True)


def masked(url: str) -> str:
    """`url` for logs and errors: user info and values that may be secrets are `***`."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "***"
    netloc = parts.netloc
    if "@" in netloc:
        netloc = f"***@{netloc.rpartition('@')[2]}"
    query = "&".join(_mask_pair(pair) for pair in parts.query.split("&"))
    return urlunsplit((parts.scheme, netloc, parts.path, query, ""))


def _mask_pair(pair: str) -> str:
    name, equals, _ = pair.partition("=")
    return f"{name}=***" if equals and _SECRET.search(unquote(name)) else pair


def _prepare_netloc(netloc: str) -> tuple[str, str | None]:
    user_info, at, host = netloc.rpartition("@")
    if not host.isascii():
        name, colon, port = host.partition(":")
        host = _ascii_name(name) + colon + port
    if not at:
        return host.lower(), None
    user, _, password = user_info.partition(":")
    credentials = f"{unquote(user)}:{unquote(password)}".encode()
    return host.lower(), f"Basic {b64encode(credentials).decode('ascii')}"


def _ascii_name(name: str) -> str:
    """An internationalised name as it is looked up. Raises ValueError when it is none."""
    try:
        import idna
    except ImportError:
        # The standard library's are the rules of 2003, which make another name of some: httpx and
        # browsers would then go elsewhere.
        if _CHANGED_SINCE_2003 & set(name.lower()):
            raise ValueError(
                "this host name has characters that Python's own IDNA reads as other ones:"
                " install the package idna, or write the name in its xn-- form"
            ) from None
        return name.encode("idna").decode("ascii")
    return idna.encode(name.lower()).decode("ascii")


def _primitive(value: object) -> str:
    if value is True:
        return "true"
    if value is False:
        return "false"
    if value is None:
        return ""
    return str(value)
