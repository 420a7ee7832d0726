"""What operators see: a real Prometheus scrapes a gateway under load, and every panel has data."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import Starter
from support.checkout import Buying
from support.gateway import Gateway, free_ports
from support.places import REPOSITORY, environment
from support.program import Program
from support.services import Services
from support.story import eventually, story

DASHBOARDS = REPOSITORY / "dashboards"
RULES = DASHBOARDS / "rules.yml"
CONFIGURATION = """
[slots]
count = 8

[outbound]
allow = ["127.0.0.1"]
label = ["127.0.0.1"]
"""


class Prometheus(Program):
    """Scrapes a gateway every second, as the job `layby`."""

    def __init__(self, gateway: Gateway, folder: Path) -> None:
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        configuration = folder / "prometheus.yml"
        targets = [f"127.0.0.1:{gateway.admin_port}"]
        # JSON is YAML.
        configuration.write_text(
            json.dumps(
                {
                    "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                    "rule_files": [str(RULES)],
                    "scrape_configs": [
                        {"job_name": "layby", "static_configs": [{"targets": targets}]}
                    ],
                }
            )
        )
        super().__init__(
            "Prometheus",
            [
                "prometheus",
                f"--config.file={configuration}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            environment=environment(),
            directory=folder,
            log=folder / "prometheus.log",
        )
        self.wait_for("Server is ready")

    def query(self, expression: str) -> list[dict[str, Any]]:
        address = f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        with urllib.request.urlopen(address, timeout=30) as response:
            return list(json.load(response)["data"]["result"])

    def values(self, expression: str) -> list[float]:
        """Of every series that the expression gives and that has a value."""
        found = (float(series["value"][1]) for series in self.query(expression))
        return [value for value in found if not math.isnan(value)]


@pytest.fixture
def prometheus(start: Starter, tmp_path: Path) -> Iterator[tuple[Gateway, Prometheus]]:
    gateway = start(CONFIGURATION)
    folder = tmp_path / "prometheus"
    folder.mkdir()
    running = Prometheus(gateway, folder)
    yield gateway, running
    running.end()


def queries() -> Iterator[tuple[str, str]]:
    """The place and the expression of every query of every dashboard."""
    for file in sorted(DASHBOARDS.glob("*.json")):
        dashboard = json.loads(file.read_text())
        for panel in dashboard["panels"]:
            for target in panel.get("targets", []):
                yield f"{file.stem}: {panel['title']}", target["expr"]


def asked(expression: str) -> str:
    """As Grafana asks, with its variables chosen."""
    chosen = {"$job": "layby", "$instance": ".*", "$__rate_interval": "10s"}
    for name, value in chosen.items():
        expression = expression.replace(name, value)
    assert "$" not in expression, expression
    return expression


@story(120)
async def test_every_panel_and_recording_has_data_from_a_gateway_under_load(
    prometheus: tuple[Gateway, Prometheus], stub: Services
) -> None:
    gateway, server = prometheus
    stub.set(latency=200)
    buying = Buying(gateway, "panel-", 6)
    empty: list[str] = []

    def all_have_data() -> bool:
        empty[:] = [place for place, query in queries() if not server.values(asked(query))]
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
    assert [alert["metric"] for alert in server.query("ALERTS{alertstate='firing'}")] == []


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
    for place, expression in [*queries(), ("rules", RULES.read_text())]:
        for name in re.findall(r"\b(?:layby|process)_\w+", expression):
            plain = re.sub(r"_(bucket|sum|count)$", "", name)
            assert f"`{plain}`" in known, f"{place}: {name}"


def test_the_dashboards_are_as_they_are_written() -> None:
    script = DASHBOARDS / "build.py"
    subprocess.run([sys.executable, script, "--check"], check=True)
