"""What the shop takes from its environment: where its data is, its key, its database."""

from __future__ import annotations

import os
import secrets
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured


def data_dir() -> Path:
    """`SHOP_DATA`, or a directory of this user under the system's temporary one.

    Not a fresh one for each process: all workers of a gateway must share the database.
    """
    given = os.environ.get("SHOP_DATA")
    if given:
        path = Path(given).resolve()
        path.mkdir(parents=True, exist_ok=True)
        return path
    path = Path(tempfile.gettempdir()) / f"layby-shop-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    if path.is_symlink() or path.stat().st_uid != os.getuid():
        # Anybody may have put it there first, and we are about to keep a key in it.
        raise ImproperlyConfigured(f"{path} belongs to somebody else; set SHOP_DATA")
    return path


def secret_key(directory: Path) -> str:
    """`SHOP_SECRET_KEY`, or a key made once for this data directory."""
    given = os.environ.get("SHOP_SECRET_KEY")
    if given:
        return given
    path = directory / "secret_key"
    if not path.exists():
        # Workers start side by side: each writes a whole file, the first link wins.
        draft = directory / f"secret_key.{os.getpid()}"
        draft.write_text(secrets.token_urlsafe(50))
        draft.chmod(0o600)
        try:
            os.link(draft, path)
        except FileExistsError:
            pass  # Another worker was first: its key is the key.
        finally:
            draft.unlink()
    return path.read_text()


def database(directory: Path) -> dict[str, Any]:
    """`DATABASE_URL`, or SQLite in the data directory."""
    url = os.environ.get("DATABASE_URL")
    return from_url(url) if url else sqlite(directory / "shop.sqlite3")


def sqlite(path: Path) -> dict[str, Any]:
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": path,
        # Kept open, one for each thread, so that the threads are the connections.
        "CONN_MAX_AGE": None,
        "OPTIONS": {
            # Readers do not wait for the writer.
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
            # A transaction that reads first and writes later could not wait for the write lock:
            # SQLite answers "database is locked" at once. So it takes the lock when it begins.
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
        },
    }


def from_url(url: str) -> dict[str, Any]:
    """`postgres://user:password@host:port/name?sslmode=require` or `sqlite:////path`.

    Every part may be percent-encoded, so a password may hold any character and the host may be
    the directory of a Unix socket: `postgres://shop@%2Frun%2Fpostgresql/shop`.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        # The message of urlsplit can quote the password.
        raise ImproperlyConfigured("DATABASE_URL is not a URL") from error
    name = unquote(parts.path[1:])
    if not name:
        raise ImproperlyConfigured("DATABASE_URL names no database")
    if parts.scheme == "sqlite":
        return sqlite(Path(name))
    if parts.scheme not in ("postgres", "postgresql"):
        raise ImproperlyConfigured("DATABASE_URL begins with postgres:// or sqlite://")
    options = dict(parse_qsl(parts.query))
    # libpq's other way to name a Unix socket: postgres:///shop?host=/run/postgresql
    host = options.pop("host", "") or unquote(host_of(parts.netloc))
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": name,
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": host,
        "PORT": options.pop("port", "") or str(port or ""),
        "CONN_MAX_AGE": None,
        "CONN_HEALTH_CHECKS": True,
        "OPTIONS": options,
    }


def host_of(netloc: str) -> str:
    """As written: `SplitResult.hostname` lower-cases, which spoils the path of a socket."""
    host = netloc.rpartition("@")[2]
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def words(name: str) -> list[str]:
    return [word.strip() for word in os.environ.get(name, "").split(",") if word.strip()]
