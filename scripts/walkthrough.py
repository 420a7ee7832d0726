"""Runs docs/install.md as somebody reads it, on a Debian that has Python and nothing else.

    python scripts/walkthrough.py dist/layby-….whl

Makes the Debian (mmdebstrap, as root), runs every command of the page in it and says how long each
took. The one thing that is not as written: `layby` is the wheel that is given, as long as there is
none to be had from an index. The gateway and who looks at it have a loopback of their own, so no
port of this machine is touched.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = REPOSITORY / "docs" / "install.md"
SUITE = "bookworm"
# What the page says that is there, and curl to look with.
PACKAGES = "python3,python3-venv,ca-certificates,curl"
# Of commands, in seconds; the Debian itself is there before the clock starts.
WITHIN = 120
SHOWN = ["The install worked successfully", "ready", 'layby_slots{state="idle"} 8']


def blocks() -> tuple[list[str], list[str]]:
    """The commands that set up and, last of all, start; and those that look."""
    section = PAGE.read_text().partition("scripts/walkthrough.py")[2]
    first, second, *_ = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    return first.splitlines(), second.splitlines()


def debian(root: Path) -> None:
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}"]
    subprocess.run([*command, SUITE, root], check=True)


def inside(root: Path, script: str, *, network: bool) -> subprocess.Popen[str]:
    """The script, in root's home on that Debian, with a loopback of its own unless `network`."""
    # How to reach an index is this machine's business: its resolver, its authorities, its settings.
    shared = ["/etc/resolv.conf", "/etc/hosts", "/etc/ssl/certs/ca-certificates.crt"]
    lent = [word for path in shared if Path(path).exists() for word in ("--ro-bind", path, path)]
    told = {
        name: value
        for name, value in os.environ.items()
        if name.lower().endswith("_proxy")
        # A folder of wheels would be one of this machine's.
        or (name.startswith("PIP_") and name != "PIP_FIND_LINKS")
    }
    told |= {"HOME": "/root", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
    return subprocess.Popen(
        [
            "bwrap",
            *("--bind", root, "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"),
            *lent,
            *("--chdir", "/root", "--die-with-parent", "--unshare-pid", "--clearenv"),
            *(word for name, value in told.items() for word in ("--setenv", name, value)),
            *(() if network else ("--unshare-net",)),
            *("bash", "-euc", script),
        ],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def run(root: Path, script: str, *, network: bool) -> str:
    process = inside(root, script, network=network)
    said, _ = process.communicate(timeout=600)
    print(said, end="")
    if process.returncode != 0:
        sys.exit(f"ended with {process.returncode}: {script}")
    return said


def walk(root: Path, wheel: Path) -> None:
    set_up, look = blocks()
    *preparing, start = set_up
    (root / "root" / wheel.name).write_bytes(wheel.read_bytes())
    place = "."
    total = 0.0
    for command in preparing:
        print(f"$ {command}")
        if command.startswith("cd "):
            place = command.removeprefix("cd ")
            continue
        as_run = re.sub(r"\blayby\b", wheel.name, command) if "pip install" in command else command
        begun = time.monotonic()
        run(root, f"cd {place}; {as_run}", network=True)
        took = time.monotonic() - begun
        total += took
        print(f"  ({took:.1f} s)")
    begun = time.monotonic()
    print(f"$ {start} &")
    # A person would look a moment later; a script asks until it is there.
    ready = "until curl -sf http://127.0.0.1:9180/readyz >/dev/null; do sleep 0.1; done"
    looking = "\n".join(f"echo {shlex.quote('$ ' + each)}; {each}" for each in look)
    stop = "kill -TERM $layby; wait $layby"
    script = f"cd {place}; {start} >log 2>&1 & layby=$!\n{ready}\n{looking}\n{stop}"
    said = run(root, script, network=False)
    total += time.monotonic() - begun
    missing = [text for text in SHOWN if text not in said]
    if missing:
        sys.exit(f"not seen: {missing}")
    print(f"all of it: {total:.0f} s")
    if total > WITHIN:
        sys.exit(f"that is more than {WITHIN} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Run docs/install.md on a fresh Debian.")
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--root", type=Path, help="a Debian that is there; it is written to")
    options = parser.parse_args()
    if options.root:
        walk(options.root, options.wheel.resolve())
    else:
        with tempfile.TemporaryDirectory(prefix="layby-walk-") as folder:
            root = Path(folder, "debian")
            debian(root)
            walk(root, options.wheel.resolve())
