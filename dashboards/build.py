"""Writes the Grafana dashboards beside it from the tables below.

    python dashboards/build.py           write them
    python dashboards/build.py --check   fail if a file is not what would be written

A dashboard is rows of panels, a panel is a title, a kind, a unit and its queries. What Grafana
wants beyond that is the same for all, and is said once. The JSON is committed: import it as it is.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
# Grafana's grid.
COLUMNS, HEIGHT = 24, 8

# In every query: the chosen application, and the chosen replicas of it.
CHOSEN = 'job="$job",instance=~"$instance"'


@dataclass(frozen=True)
class Panel:
    title: str
    unit: str
    # What each shows, by legend.
    queries: dict[str, str]
    help: str
    kind: str = "timeseries"
    stacked: bool = False
    # Above this, red; for a single number.
    bad: float | None = None


@dataclass(frozen=True)
class Dashboard:
    name: str
    title: str
    help: str
    rows: dict[str, list[Panel]] = field(default_factory=dict)


def total(metric: str, by: str = "", more: str = "") -> str:
    """Per second."""
    labels = f"{CHOSEN},{more}" if more else CHOSEN
    grouped = f"sum by ({by})" if by else "sum"
    return f"{grouped} (rate({metric}{{{labels}}}[$__rate_interval]))"


def now(metric: str, by: str = "", more: str = "") -> str:
    labels = f"{CHOSEN},{more}" if more else CHOSEN
    grouped = f"sum by ({by})" if by else "sum"
    return f"{grouped} ({metric}{{{labels}}})"


def quantiles(metric: str, by: str = "", more: str = "") -> dict[str, str]:
    grouped = f"{by}, le" if by else "le"
    name = f"{{{{{by}}}}} " if by else ""
    buckets = total(f"{metric}_bucket", grouped, more)
    return {
        f"{name}p50": f"histogram_quantile(0.5, {buckets})",
        f"{name}p95": f"histogram_quantile(0.95, {buckets})",
        f"{name}p99": f"histogram_quantile(0.99, {buckets})",
    }


def utilisation() -> str:
    return f"{total('layby_slots_busy_seconds_total')} / {now('layby_slots')}"


HASHES = f'count_values("hash", layby_config_hash{{{CHOSEN}}})'
REFUSED = f"count(layby_config_last_reload_successful{{{CHOSEN}}} == 0)"
ERRORS = total("layby_requests_total", more='class="5xx"')
REQUESTS = Panel(
    "Requests by class of status",
    "reqps",
    {"{{class}}": total("layby_requests_total", "class")},
    "Everything that ended, what the gateway answered itself included. 499 is a client that left.",
    stacked=True,
)
LATENCY = Panel(
    "Time of a request",
    "s",
    quantiles("layby_request_seconds"),
    "From its arrival to the last byte of its answer, waits for slots and services included.",
)
SLOTS = Panel(
    "Slots",
    "short",
    {"{{state}}": now("layby_slots", "state")},
    "They add up to the configured count. Lost ones are overdue, dead or not started.",
    stacked=True,
)
UTILISATION = Panel(
    "Slots in use",
    "percentunit",
    {"in use": utilisation()},
    "The share of their time that slots work. Above 0.8, requests begin to wait.",
)
PHASES = Panel(
    "Where the time of a request goes",
    "s",
    {
        "{{phase}}": total("layby_request_phase_seconds_sum", "phase")
        + " / ignoring(phase) group_left() "
        + total("layby_request_seconds_count")
    },
    "Its mean time, by what it did meanwhile. queue and resume are waits for slots, run is "
    "blocking code, park is other services, body and answer are the client's connection.",
    stacked=True,
)
QUEUE = Panel(
    "Queue",
    "short",
    {"waiting for a slot": now("layby_queue_length")},
    "Requests that wait for a slot at this moment.",
)
QUEUE_WAIT = Panel(
    "Wait for a slot",
    "s",
    quantiles("layby_queue_wait_seconds"),
    "What requests wait that get a slot. Those that get none in time are shed.",
)
SHED = Panel(
    "Shed",
    "reqps",
    {"{{reason}}": total("layby_requests_shed_total", "reason")},
    "Turned away by the slots before any work, with 503.",
    stacked=True,
)
UPSTREAMS = Panel(
    "Shed by upstreams of routes",
    "reqps",
    {"{{upstream}}": total("layby_upstream_requests_shed_total", "upstream")},
    "Turned away with 503: a route's own server is busy, or away. Empty without one.",
    stacked=True,
)
PARKED = Panel(
    "Parked requests",
    "short",
    {"parked": now("layby_parked_requests")},
    "Requests that wait for services and hold no slot.",
)
FETCHES = Panel(
    "Fetches by outcome",
    "reqps",
    {"{{outcome}}": total("layby_fetches_total", "outcome")},
    "What the gateway fetched for requests.",
    stacked=True,
)

DASHBOARDS = [
    Dashboard(
        "overview",
        "Layby: overview",
        "Is it well, and if not, is it the threads, the database or the services?",
        {
            "At a glance": [
                Panel(
                    "Gateways",
                    "short",
                    {"up": now("up")},
                    "Those that answer Prometheus.",
                    kind="stat",
                ),
                Panel(
                    "Requests",
                    "reqps",
                    {"requests": total("layby_requests_total")},
                    "All of them.",
                    kind="stat",
                ),
                Panel(
                    "Server errors",
                    "percentunit",
                    {
                        "5xx": f"({ERRORS} or vector(0)) / {total('layby_requests_total')}",
                    },
                    "Answers of 500 and above, the gateway's own included.",
                    kind="stat",
                    bad=0.01,
                ),
                Panel(
                    "Slots in use",
                    "percentunit",
                    {"in use": utilisation()},
                    "Above 0.8, requests begin to wait.",
                    kind="stat",
                    bad=0.8,
                ),
                Panel(
                    "Slots lost",
                    "short",
                    {"lost": now("layby_slots", more='state="lost"')},
                    "Overdue, dead or not started.",
                    kind="stat",
                    bad=1,
                ),
            ],
            "Clients": [REQUESTS, LATENCY, PHASES],
            "Threads": [SLOTS, QUEUE_WAIT, SHED],
            "Services": [PARKED, FETCHES],
        },
    ),
    Dashboard(
        "slots",
        "Layby: slots and queue",
        "Where requests wait for slots, and what slots do.",
        {
            "Slots": [SLOTS, UTILISATION],
            "Queue": [QUEUE, QUEUE_WAIT, SHED, UPSTREAMS],
            "Steps": [
                Panel(
                    "Time of one step",
                    "s",
                    quantiles("layby_slot_busy_seconds"),
                    "What one step of a request holds its slot: blocking code and queries.",
                ),
                Panel(
                    "Steps",
                    "ops",
                    {"steps": total("layby_slot_busy_seconds_count")},
                    "A request that parks once has two.",
                ),
            ],
            "Phases of a request": [
                Panel(
                    "95th percentile by phase",
                    "s",
                    {
                        "{{phase}}": "histogram_quantile(0.95, "
                        + total("layby_request_phase_seconds_bucket", "phase, le")
                        + ")"
                    },
                    "Of the requests that had the phase, all their stays in it together.",
                ),
                Panel(
                    "Requests that had the phase",
                    "percentunit",
                    {
                        "{{phase}}": total("layby_request_phase_seconds_count", "phase")
                        + " / ignoring(phase) group_left() "
                        + total("layby_request_seconds_count")
                    },
                    "The share of requests with a body, in a queue, parked, …",
                ),
            ],
            "Waits in place": [
                Panel(
                    "Slots held by requests that wait",
                    "short",
                    {"waiting in place": now("layby_waiting_in_place")},
                    "Requests that could not park where they wait for a service.",
                ),
                Panel(
                    "Waits in place by reason",
                    "ops",
                    {"{{reason}}": total("layby_waits_in_place_total", "reason")},
                    "The status page names the lines.",
                    stacked=True,
                ),
                Panel(
                    "Clients that left",
                    "reqps",
                    {"{{phase}}": total("layby_requests_cancelled_total", "phase")},
                    "By what their request was doing.",
                    stacked=True,
                ),
            ],
        },
    ),
    Dashboard(
        "services",
        "Layby: third parties",
        "What requests wait for. `other` stands for all that are not in outbound.label.",
        {
            "Parked": [
                PARKED,
                Panel(
                    "Time of one park",
                    "s",
                    quantiles("layby_park_seconds"),
                    "From leaving the slot until asking for one again.",
                ),
            ],
            "Fetches": [
                Panel(
                    "Fetches in flight",
                    "short",
                    {"{{origin}}": now("layby_fetches_in_flight", "origin")},
                    "What each service has of us at this moment.",
                    stacked=True,
                ),
                Panel(
                    "Fetches by origin",
                    "reqps",
                    {"{{origin}}": total("layby_fetches_total", "origin")},
                    "How many each service gets.",
                    stacked=True,
                ),
                FETCHES,
                Panel(
                    "Fetches that fail",
                    "percentunit",
                    {
                        "{{origin}}": total(
                            "layby_fetches_total", "origin", 'outcome=~"timeout|connect|too_large"'
                        )
                        + " / "
                        + total("layby_fetches_total", "origin", 'outcome!="aborted"')
                    },
                    "Timeouts, no connection, too large.",
                ),
                Panel(
                    "Responses that are errors",
                    "percentunit",
                    {
                        "{{origin}}": total("layby_fetches_total", "origin", 'outcome="http_error"')
                        + " / "
                        + total("layby_fetches_total", "origin", 'outcome=~"ok|http_error"')
                    },
                    "4xx and 5xx among all responses.",
                ),
            ],
            "Time": [
                Panel(
                    "Time of a fetch, 95th percentile",
                    "s",
                    {
                        "{{origin}}": "histogram_quantile(0.95, "
                        + total("layby_fetch_seconds_bucket", "origin, le")
                        + ")"
                    },
                    "By origin, redirects included.",
                ),
                Panel(
                    "Unsafe fetches that nobody needed",
                    "ops",
                    {"leftover": total("layby_leftover_fetches_total")},
                    "A join was met before they ended; they were run to their end.",
                ),
            ],
        },
    ),
    Dashboard(
        "workers",
        "Layby: workers and resources",
        "Worker processes, bodies on disk, and what the gateway itself takes.",
        {
            "Workers": [
                Panel(
                    "Worker processes started again",
                    "short",
                    {
                        "{{reason}}": "sum by (reason) "
                        f"(increase(layby_worker_restarts_total{{{CHOSEN}}}[$__rate_interval]))"
                    },
                    "crash: it died by itself. overdue: a request in it never ended.",
                    stacked=True,
                ),
                SLOTS,
            ],
            "Bodies": [
                Panel(
                    "Bodies on disk",
                    "bytes",
                    {"{{instance}}": now("layby_spool_bytes", "instance")},
                    "What did not stay in memory, of uploads and of answers to slow readers.",
                ),
                Panel(
                    "Share of the spool in use",
                    "percentunit",
                    {
                        "{{instance}}": now("layby_spool_bytes", "instance")
                        + " / "
                        + now("layby_spool_limit_bytes", "instance")
                    },
                    "Of spool_limit.",
                ),
                Panel(
                    "Bodies that found no room",
                    "ops",
                    {"{{reason}}": total("layby_body_shortages_total", "reason")},
                    "memory: it went to disk. spool_limit, disk: an upload was refused, an answer"
                    " held back.",
                    stacked=True,
                ),
                Panel(
                    "Answers that waited for their reader",
                    "ops",
                    {"backpressure": total("layby_answer_backpressure_total")},
                    "The spool of the answer was full, so its slot was held.",
                ),
            ],
            "The gateway": [
                Panel(
                    "Certificate",
                    "s",
                    {
                        "{{instance}}": "min by (instance) "
                        f"((layby_tls_certificate_expiry_seconds{{{CHOSEN}}} > 0) - time())"
                    },
                    "Until the first one ends. Empty without [tls].",
                    kind="timeseries",
                ),
                Panel(
                    "CPU",
                    "percentunit",
                    {"{{instance}}": total("process_cpu_seconds_total", "instance")},
                    "Cores that the gateway uses; its workers are not in it.",
                ),
                Panel(
                    "Memory",
                    "bytes",
                    {"{{instance}}": now("process_resident_memory_bytes", "instance")},
                    "Resident.",
                ),
                Panel(
                    "Descriptors",
                    "percentunit",
                    {
                        "{{instance}}": now("process_open_fds", "instance")
                        + " / "
                        + now("process_max_fds", "instance")
                    },
                    "Of those that it may have.",
                ),
            ],
            "Tracing": [
                Panel(
                    "Spans by what became of them",
                    "ops",
                    {"{{outcome}}": total("layby_spans_total", "outcome")},
                    "Of traced requests. All zero without [tracing]; anything but sent is lost.",
                    stacked=True,
                ),
            ],
            "Configuration": [
                Panel(
                    "Different configurations",
                    "short",
                    {
                        "configurations": f"count({HASHES})",
                    },
                    "Among the chosen replicas: more than one for long means that some were not "
                    "reloaded or restarted.",
                    kind="stat",
                    bad=2,
                ),
                Panel(
                    "Reloads refused",
                    "short",
                    {"refused": f"{REFUSED} or vector(0)"},
                    "Replicas that still have an older configuration than their file.",
                    kind="stat",
                    bad=1,
                ),
                Panel(
                    "Versions",
                    "short",
                    {"{{version}}": f"count by (version) (layby_build_info{{{CHOSEN}}})"},
                    "How many replicas run which.",
                    kind="stat",
                ),
            ],
        },
    ),
]


def panel(it: Panel, number: int, x: int, y: int, width: int) -> dict[str, Any]:
    custom = {
        "drawStyle": "line",
        "fillOpacity": 25 if it.stacked else 8,
        "lineWidth": 1,
        "showPoints": "never",
        "stacking": {"group": "A", "mode": "normal" if it.stacked else "none"},
    }
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if it.bad is not None:
        steps.append({"color": "red", "value": it.bad})
    return {
        "id": number,
        "title": it.title,
        "description": it.help,
        "type": it.kind,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "gridPos": {"x": x, "y": y, "w": width, "h": HEIGHT if it.kind == "timeseries" else 4},
        "fieldConfig": {
            "defaults": {
                "unit": it.unit,
                "min": 0,
                "custom": custom if it.kind == "timeseries" else {},
                "thresholds": {"mode": "absolute", "steps": steps},
            },
            "overrides": [],
        },
        "options": (
            {
                "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }
            if it.kind == "timeseries"
            else {
                "colorMode": "value",
                "graphMode": "area",
                "reduceOptions": {"calcs": ["lastNotNull"]},
            }
        ),
        "targets": [
            {"refId": chr(ord("A") + place), "expr": query, "legendFormat": legend}
            for place, (legend, query) in enumerate(it.queries.items())
        ],
    }


def panels(rows: dict[str, list[Panel]]) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    y = 0
    for title, row in rows.items():
        grid = {"x": 0, "y": y, "w": COLUMNS, "h": 1}
        made.append(
            {"id": len(made) + 1, "type": "row", "title": title, "gridPos": grid, "panels": []}
        )
        y += 1
        width = COLUMNS // len(row)
        for place, each in enumerate(row):
            made.append(panel(each, len(made) + 1, place * width, y, width))
        y += HEIGHT if row[0].kind == "timeseries" else 4
    return made


def variable(name: str, query: str, *, many: bool) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": many,
        "includeAll": many,
        "current": {"text": "All", "value": "$__all"} if many else {},
    }


def grafana(it: Dashboard) -> dict[str, Any]:
    return {
        "uid": f"layby-{it.name}",
        "title": it.title,
        "description": it.help,
        "tags": ["layby"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "links": [
            {
                "type": "dashboards",
                "title": "layby",
                "tags": ["layby"],
                "asDropdown": True,
                "includeVars": True,
                "keepTime": True,
            }
        ],
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "current": {}},
                variable("job", "label_values(layby_build_info, job)", many=False),
                variable(
                    "instance", 'label_values(layby_build_info{job="$job"}, instance)', many=True
                ),
            ]
        },
        "panels": panels(it.rows),
    }


def main() -> int:
    stale = []
    for it in DASHBOARDS:
        file = HERE / f"{it.name}.json"
        text = json.dumps(grafana(it), indent=2) + "\n"
        if "--check" not in sys.argv[1:]:
            file.write_text(text)
        elif not file.exists() or file.read_text() != text:
            stale.append(file.name)
    if stale:
        print(f"not as build.py writes them: {', '.join(stale)}; run python dashboards/build.py")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
