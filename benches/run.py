"""`make bench`: measure layby against arithmetic and against its peers, on this machine.

    python benches/run.py [--quick] [--write] [NAME ...]

NAME is of: main, latency, fanout, modes, hello, memory, proxy, connections, overload.

This file only sets up: a virtual environment with the peers, the load generator, the gateway.
What is measured, and how, is in `layby_bench/`; it runs with that environment's Python.
Everything made is below `target/bench`, out of the repository's way.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

BENCHES = Path(__file__).resolve().parent
REPOSITORY = BENCHES.parent
TARGET = REPOSITORY / "target"
ENVIRONMENT = TARGET / "bench" / "venv"
REQUIREMENTS = BENCHES / "requirements.txt"


def main() -> int:
    try:
        prepare_environment()
        build("the load generator", BENCHES / "load" / "Cargo.toml", TARGET / "bench")
        build("the gateway", REPOSITORY / "Cargo.toml", TARGET)
    except subprocess.CalledProcessError as error:
        print(f"bench: failed: {' '.join(map(str, error.cmd))}", file=sys.stderr)
        return 1
    except FileNotFoundError as error:
        print(f"bench: not found: {error.filename}", file=sys.stderr)
        return 1
    python = f"{ENVIRONMENT}/bin/python"
    environment = os.environ | {"PYTHONPATH": str(BENCHES)}
    os.execve(python, [python, "-m", "layby_bench", *sys.argv[1:]], environment)


def prepare_environment() -> None:
    """Installs the peers and layby's worker package, unless that is done already."""
    stamp = ENVIRONMENT / "installed"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print("bench: installing the peers ...", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", ENVIRONMENT], check=True)
    pip = [f"{ENVIRONMENT}/bin/python", "-m", "pip", "--disable-pip-version-check", "install"]
    packages = ["--requirement", f"{REQUIREMENTS}", "--editable", f"{REPOSITORY}/python"]
    subprocess.run([*pip, "--quiet", *packages], check=True)
    stamp.write_text(wanted)


def build(what: str, manifest: Path, target: Path) -> None:
    print(f"bench: building {what} ...", flush=True)
    cargo = ["cargo", "build", "--release", "--locked", "--quiet"]
    subprocess.run([*cargo, "--manifest-path", manifest, "--target-dir", target], check=True)


if __name__ == "__main__":
    sys.exit(main())
