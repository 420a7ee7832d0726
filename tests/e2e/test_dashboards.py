"""What operators see: a real Prometheus scrapes a gateway under load, and every panel has data."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import Starter
from support.certificates import certificate
from support.checkout import Buying
from support.gateway import Gateway
from support.places import REPOSITORY
from support.prometheus import DASHBOARDS, RULES, Prometheus, asked, queries
from support.services import Services
from support.story import eventually, story

CONFIGURATION = """
[slots]
count = 8

[outbound]
allow = ["127.0.0.1"]
label = ["127.0.0.1"]

[[route]]
path = "/services"
upstream = "{services}"

[tls]
listen = "127.0.0.1:0"
cert = "{folder}/cert.pem"
key = "{folder}/key.pem"
"""


@pytest.fixture
def prometheus(
    start: Starter, stub: Services, tmp_path: Path
) -> Iterator[tuple[Gateway, Prometheus]]:
    folder = tmp_path / "prometheus"
    folder.mkdir()
    certificate(folder, days=90)
    gateway = start(CONFIGURATION.format(folder=folder, services=stub.url))
    running = Prometheus(gateway, folder)
    yield gateway, running
    running.end()


@story(120)
async def test_every_panel_and_recording_has_data_from_a_gateway_under_load(
    prometheus: tuple[Gateway, Prometheus], stub: Services
) -> None:
    gateway, server = prometheus
    stub.set(latency=200)
    buying = Buying(gateway, "panel-", 6)
    empty: list[str] = []

    def all_have_data() -> bool:
        empty[:] = [str(it) for it in queries() if not server.values(asked(it.expression))]
        # A rule over six hours has something to go by after two scrapes.
        recorded = re.findall(r"record: (\S+)", RULES.read_text())
        empty.extend(name for name in recorded if not server.values(name))
        return not empty

    try:
        await eventually("a panel has no data", all_have_data, 60)
    except AssertionError:
        pytest.fail(f"without data: {empty}")
    finally:
        await buying.end()
    requests = "sum(layby_requests_total)"
    # Not just any data: what Prometheus has is what the gateway counted.
    counted = gateway.metric("layby_requests_total")
    await eventually("they do not agree", lambda: server.values(requests) == [counted], 10)
    assert server.firing() == set()


def test_every_rule_fires_when_it_should_and_only_then() -> None:
    subprocess.run(["promtool", "check", "rules", RULES], check=True)
    subprocess.run(["promtool", "test", "rules", DASHBOARDS / "rules_test.yml"], check=True)


def test_every_alert_is_tried_and_has_its_page() -> None:
    rules = RULES.read_text()
    tried = (DASHBOARDS / "rules_test.yml").read_text()
    for alert in re.findall(r"alert: (\S+)", rules):
        assert f"alertname: {alert}\n        exp_alerts:" in tried, (
            f"nothing shows that {alert} fires"
        )
    for page in re.findall(r"runbook: (\S+)", rules):
        text = (REPOSITORY / page).read_text()
        assert "**Alert" in text, page


def test_every_query_is_of_a_metric_that_there_is() -> None:
    known = (REPOSITORY / "docs" / "metrics.md").read_text()
    panels = [(str(it), it.expression) for it in queries()]
    for place, expression in [*panels, ("rules", RULES.read_text())]:
        for name in re.findall(r"\b(?:layby|process)_\w+", expression):
            plain = re.sub(r"_(bucket|sum|count)$", "", name)
            assert f"`{plain}`" in known, f"{place}: {name}"


def test_the_dashboards_are_as_they_are_written() -> None:
    script = DASHBOARDS / "build.py"
    subprocess.run([sys.executable, script, "--check"], check=True)
