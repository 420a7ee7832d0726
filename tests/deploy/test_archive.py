"""The archive: what is in it, and that it is the same wherever and whenever it is made.

That its binary runs with nothing around it is shown by `make test-ship`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from support.places import REPOSITORY


def packed(binary: Path, out: Path) -> Path:
    command = [sys.executable, REPOSITORY / "scripts" / "archive.py"]
    done = subprocess.run(
        [*command, "--binary", binary, "--out", out], check=True, capture_output=True, text=True
    )
    return Path(done.stdout.strip())


def test_it_holds_the_program_its_papers_and_how_to_deploy_it(tmp_path: Path) -> None:
    archive = packed(Path("/bin/true"), tmp_path)
    with tarfile.open(archive) as tar:
        names = {entry.name.partition("/")[2]: entry for entry in tar}
    assert {"layby", "README.md", "LICENSE-MIT", "LICENSE-APACHE", "CHANGELOG.md"} <= set(names)
    assert {"deploy/systemd/layby.service", "deploy/nginx/site.conf"} <= set(names)
    assert [name for name, entry in names.items() if entry.mode & 0o111] == ["layby"]
    assert {(entry.uid, entry.gid, entry.uname) for entry in names.values()} == {(0, 0, "")}


def test_the_same_program_gives_the_same_archive(tmp_path: Path) -> None:
    first = packed(Path("/bin/true"), tmp_path / "first")
    copy = tmp_path / "copy"
    shutil.copy("/bin/true", copy)
    os.utime(copy, (1e9, 1e9))
    second = packed(copy, tmp_path / "second")
    assert first.read_bytes() == second.read_bytes()


def test_its_checksum_is_right(tmp_path: Path) -> None:
    archive = packed(Path("/bin/true"), tmp_path)
    check = ["sha256sum", "--check", f"{archive.name}.sha256"]
    subprocess.run(check, cwd=tmp_path, check=True)
    with archive.open("ab") as file:
        file.write(b"more")
    assert subprocess.run(check, cwd=tmp_path, capture_output=True).returncode == 1
