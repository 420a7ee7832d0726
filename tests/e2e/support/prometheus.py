"""A real Prometheus, what it is asked, and what the dashboards ask it."""

from __future__ import annotations

import json
import math
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.gateway import Gateway, free_ports
from support.places import REPOSITORY, environment
from support.program import Program

DASHBOARDS = REPOSITORY / "dashboards"
RULES = DASHBOARDS / "rules.yml"


class Prometheus(Program):
    """Scrapes a gateway every second, as the job `layby`, and goes by the rules as often."""

    def __init__(self, gateway: Gateway, folder: Path, rules: Path = RULES) -> None:
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        configuration = folder / "prometheus.yml"
        targets = [f"127.0.0.1:{gateway.admin_port}"]
        # JSON is YAML.
        configuration.write_text(
            json.dumps(
                {
                    "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                    "rule_files": [str(rules)],
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

    def firing(self) -> set[str]:
        """The names of the alerts that fire now."""
        return {each["metric"]["alertname"] for each in self.query("ALERTS{alertstate='firing'}")}


@dataclass(frozen=True)
class Query:
    """One of a panel's."""

    dashboard: str
    panel: str
    legend: str
    expression: str
    unit: str

    def __str__(self) -> str:
        return f"{self.dashboard}: {self.panel}"


def queries() -> Iterator[Query]:
    """Every one of every dashboard."""
    for file in sorted(DASHBOARDS.glob("*.json")):
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel.get("targets", []):
                unit = panel["fieldConfig"]["defaults"]["unit"]
                legend, expression = target["legendFormat"], target["expr"]
                yield Query(file.stem, panel["title"], legend, expression, unit)


def asked(expression: str, rate_interval: str = "10s") -> str:
    """As Grafana asks, with its variables chosen."""
    chosen = {"$job": "layby", "$instance": ".*", "$__rate_interval": rate_interval}
    for name, value in chosen.items():
        expression = expression.replace(name, value)
    assert "$" not in expression, expression
    return expression
