"""Makes the archive of the gateway: its static binary, its papers, and what deploys it.

    python scripts/archive.py --binary target/…/release/layby --out dist

Writes layby-VERSION-MACHINE-linux.tar.gz, and beside it a .sha256 for `sha256sum -c`. The same
binary gives the same archive, byte for byte: all that tar and gzip would add of this machine and
this moment is left out.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import platform
import subprocess
import tarfile
import tempfile
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PAPERS = ["LICENSE-APACHE", "LICENSE-MIT", "README.md", "CHANGELOG.md"]
FOLDERS = ["deploy/nginx", "deploy/systemd", "deploy/tls"]
# Of every file, unless SOURCE_DATE_EPOCH says when: as in wheels, whose format begins in 1980.
EPOCH = 315532800


def version() -> str:
    manifest = tomllib.loads((REPOSITORY / "Cargo.toml").read_text())
    return str(manifest["package"]["version"])


def contents(binary: Path) -> dict[str, Path]:
    """What is in the archive, by its path there."""
    found = {"layby": binary}
    found |= {name: REPOSITORY / name for name in PAPERS}
    for folder in FOLDERS:
        for path in (REPOSITORY / folder).iterdir():
            found[str(path.relative_to(REPOSITORY))] = path
    return found


def pack(binary: Path, out: Path) -> Path:
    """The archive, in the folder `out`."""
    root = f"layby-{version()}"
    archive = out / f"{root}-{platform.machine()}-linux.tar.gz"
    when = int(os.environ.get("SOURCE_DATE_EPOCH", EPOCH))
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        stripped = Path(folder, "layby")
        subprocess.run(["strip", "-o", stripped, binary], check=True)
        with (
            archive.open("wb") as file,
            gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=when) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for name, path in sorted(contents(stripped).items()):
                entry = tarfile.TarInfo(f"{root}/{name}")
                entry.size = path.stat().st_size
                entry.mode = 0o755 if path == stripped else 0o644
                entry.mtime = when
                with path.open("rb") as source:
                    tar.addfile(entry, source)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    archive.with_name(archive.name + ".sha256").write_text(f"{digest}  {archive.name}\n")
    return archive


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the archive of the gateway.")
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "dist")
    options = parser.parse_args()
    print(pack(options.binary, options.out))
