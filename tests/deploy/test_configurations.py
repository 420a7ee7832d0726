"""Every configuration of the gateway in deploy/ passes `layby check`."""

from __future__ import annotations

from pathlib import Path

import pytest
from deployed import DEPLOY, check

CONFIGURATIONS = sorted(DEPLOY.rglob("*.toml"))


def test_there_is_one_for_each_way_to_deploy() -> None:
    found = {str(path.relative_to(DEPLOY)) for path in CONFIGURATIONS}
    assert found == {
        "gateway.toml",
        "compose/layby.toml",
        "kubernetes/layby.toml",
        "nginx/layby.toml",
        "systemd/layby.toml",
        "tls/layby.toml",
    }


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_it_is_valid(path: Path) -> None:
    status, said = check("--config", path)
    assert status == 0, said
    assert "warning" not in said


def test_a_mistake_in_one_would_be_noticed(tmp_path: Path) -> None:
    wrong = tmp_path / "layby.toml"
    wrong.write_text((DEPLOY / "gateway.toml").read_text().replace("probes", "prober"))
    status, said = check("--config", wrong)
    assert status == 1
    assert "prober" in said


def test_nothing_there_is_left_out_of_the_map() -> None:
    page = (DEPLOY / "README.md").read_text()
    there = {path.name for path in DEPLOY.iterdir()} - {"README.md"}
    assert {name for name in there if f"`{name}" not in page} == set()
