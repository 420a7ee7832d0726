"""Where things are. `LAYBY_BINARY` names another gateway than the debug build."""

from __future__ import annotations

import os
from pathlib import Path

E2E = Path(__file__).resolve().parent.parent
REPOSITORY = E2E.parent.parent
PACKAGE = REPOSITORY / "python" / "src"
SHOP = REPOSITORY / "examples" / "shop"
STUB = REPOSITORY / "examples" / "services" / "stub.py"
APPS = E2E / "apps"
BINARY = Path(os.environ.get("LAYBY_BINARY", REPOSITORY / "target" / "debug" / "layby"))


def environment(**own: str) -> dict[str, str]:
    """Our environment without what would configure the things under test behind our back."""
    ours = ("LAYBY_", "SHOP_", "DJANGO_", "DATABASE_URL", "PG", "OTEL_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "PYTHONUNBUFFERED": "1", **own}
