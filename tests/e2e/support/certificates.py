"""Certificates of our own making."""

from __future__ import annotations

import subprocess
from pathlib import Path


def certificate(folder: Path, days: int) -> None:
    """`cert.pem` and `key.pem`, as renewal puts them there: at once."""
    command = "openssl req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1"
    files = ["-subj", "/CN=shop.example", "-days", str(days)]
    files += ["-keyout", "new-key.pem", "-out", "new-cert.pem"]
    subprocess.run([*command.split(), *files], cwd=folder, check=True, capture_output=True)
    for name in ("key.pem", "cert.pem"):
        (folder / f"new-{name}").replace(folder / name)
