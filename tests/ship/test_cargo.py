"""`cargo install`, as somebody does it who has a Rust toolchain and this repository."""

from __future__ import annotations

import subprocess
from pathlib import Path

from support.places import REPOSITORY, environment


def test_cargo_installs_the_gateway(tmp_path: Path) -> None:
    host = subprocess.run(
        ["rustc", "--print", "host-tuple"], check=True, capture_output=True, text=True
    ).stdout.strip()
    # As the archive's binary was made, so that nothing has to be compiled again.
    command = ["cargo", "install", "--path", ".", "--locked", "--target", host, "--root", tmp_path]
    static = environment(RUSTFLAGS="-C target-feature=+crt-static")
    subprocess.run(command, cwd=REPOSITORY, env=static, check=True)
    said = subprocess.run(
        [tmp_path / "bin" / "layby", "--version"], check=True, capture_output=True, text=True
    ).stdout
    assert said.startswith("layby ")
    assert [path.name for path in (tmp_path / "bin").iterdir()] == ["layby"]
