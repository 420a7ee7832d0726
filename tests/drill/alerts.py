"""Faults to alerts: breaks one thing at a time under load, and tells which alert fired, and when.

    make alerts                       every fault, and a minute of nothing
    make alerts ALERTS="Spool Down"   those whose alerts contain a word

A real Prometheus scrapes the gateway every second and goes by dashboards/rules.yml, with every
minute of its windows made a second: what takes an hour there takes a minute here. Thresholds
stay. Exits 1 if an alert did not fire, if another one did that has nothing to do with the fault, or
if the panel that is to show it does not move. With `--write`, which make gives,
what was run has its rows in the report anew.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import math
import os
import platform
import random
import re
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "e2e"), str(HERE.parent / "e2e" / "apps")]

from alarms import ALARMS, Alarm, Scene  # noqa: E402
from crowd import Crowd, Kind  # noqa: E402
from hasten import hastened  # noqa: E402
from support.certificates import certificate  # noqa: E402
from support.client import Connection  # noqa: E402
from support.gateway import Gateway  # noqa: E402
from support.places import REPOSITORY  # noqa: E402
from support.program import until  # noqa: E402
from support.prometheus import RULES, Prometheus, Query, asked, queries  # noqa: E402
from world import SLOTS, World, world  # noqa: E402

REPORT = REPOSITORY / "docs" / "alerts-demonstration.md"
# More than slots, so that there is a queue when slots are held.
CLIENTS = 24
# Without large bodies, whose making and checking would keep the cores busy that all this runs on.
MIX = {Kind.CHECKOUT: 2, Kind.QUOTE: 1, Kind.PAGE: 1}
# Before the fault, in which nothing may fire, so that windows have something to go by.
CALM = 8.0  # seconds
# For a fault to be noticed. The longest is OriginSlow's: 12 s to the first answer, then 10 s.
PATIENCE = 90.0
QUIET = 60.0
# Panels are asked as Grafana asks with an interval that fits a scrape every second.
RATE_INTERVAL = "5s"

CONFIGURATION = """
spool_dir = "{folder}"
drain_timeout = "2s"
{keys}

[slots]
count = {count}
{slots}

[workers]
processes = {processes}

[outbound]
allow = ["127.0.0.1"]
label = ["127.0.0.1"]

[tls]
listen = "127.0.0.1:0"
cert = "{folder}/cert.pem"
key = "{folder}/key.pem"
"""


@dataclass
class Round:
    alarm: Alarm | None
    # Seconds from the fault to each alert that fired.
    fired: dict[str, float] = field(default_factory=dict)
    before: float = math.nan
    during: float = math.nan
    unit: str = ""
    wrong: list[str] = field(default_factory=list)

    def saw(self, value: float) -> None:
        """Keeps what is furthest from what was before."""

        def change(it: float) -> float:
            known = [0.0 if math.isnan(each) else each for each in (it, self.before)]
            return abs(known[0] - known[1])

        if math.isnan(self.during) or change(value) > change(self.during):
            self.during = value

    def others(self) -> list[str]:
        expected = {self.alarm.alert} if self.alarm else set()
        return sorted(set(self.fired) - expected)


def shown(value: float, unit: str) -> str:
    """As Grafana would write it."""
    if math.isnan(value):
        return "nothing"
    match unit:
        case "percentunit":
            return f"{value:.0%}"
        case "s" if value > 86400:
            return f"{value / 86400:.1f} days"
        case "s":
            return f"{value:.2f} s" if value < 10 else f"{value:.0f} s"
        case "reqps" | "ops":
            return f"{value:.1f}/s"
        case _:
            return f"{value:.0f}"


def query_of(alarm: Alarm) -> Query:
    """The query of its panel that has its series."""
    dashboard, panel, series = alarm.panel
    found = [it for it in queries() if (it.dashboard, it.panel) == (dashboard, panel)]
    named = [it for it in found if it.legend == series] or [it for it in found if "{{" in it.legend]
    assert named, f"no panel {dashboard}: {panel}, or no {series} in it"
    return named[0]


def value_of(alarm: Alarm, prometheus: Prometheus) -> float:
    """What the panel shows now; NaN if it shows nothing."""
    query, series = query_of(alarm), alarm.panel[2]
    for each in prometheus.query(asked(query.expression, RATE_INTERVAL)):
        labels = each["metric"]
        if query.legend == series or series in labels.values() or series in labels:
            return float(each["value"][1])
    return math.nan


@asynccontextmanager
async def scene(it: World, number: int, alarm: Alarm | None) -> AsyncIterator[Scene]:
    """A gateway and a Prometheus of their own, so that no fault has anything of the one before."""
    folder = it.folder / f"alarm{number}"
    folder.mkdir()
    certificate(folder, 90)
    gateway = Gateway(
        "shop.wsgi:application",
        folder=folder,
        environment={**it.shop.environment, "SHOP_SERVICES_TIMEOUT": "30"},
        configuration=CONFIGURATION.format(
            folder=folder,
            count=SLOTS,
            keys=alarm.keys if alarm else "",
            slots=alarm.slots if alarm else "",
            processes=alarm.processes if alarm else 2,
        ),
    )
    rules = folder / "rules.yml"
    rules.write_text(hastened(RULES.read_text()))
    try:
        await asyncio.to_thread(gateway.wait_ready)
        prometheus = await asyncio.to_thread(Prometheus, gateway, folder, rules)
        try:
            # It looks for its targets after 5 s, which are not hastened: LaybyGone fires.
            await asyncio.to_thread(
                until,
                "Prometheus does not find the gateway",
                lambda: prometheus.values("up") == [1.0] and not prometheus.firing(),
                20,
            )
            yield Scene(folder, it.postgres, it.shop, it.stub, gateway, prometheus)
        finally:
            await asyncio.to_thread(prometheus.end)
    finally:
        it.stub.ask("POST", "/control/reset")
        await asyncio.to_thread(gateway.end)


async def watch(round_: Round, prometheus: Prometheus, seconds: float) -> None:
    """Writes down what fires and what the panel shows, until the alert does, or time is over."""
    began = time.monotonic()
    wanted = round_.alarm.alert if round_.alarm else None
    while (now := time.monotonic() - began) < seconds and wanted not in round_.fired:
        for alert in await asyncio.to_thread(prometheus.firing):
            round_.fired.setdefault(alert, now)
        if round_.alarm:
            round_.saw(await asyncio.to_thread(value_of, round_.alarm, prometheus))
        await asyncio.sleep(0.25)


async def one(it: World, number: int, alarm: Alarm | None, dice: random.Random) -> Round:
    done = Round(alarm)
    it.stub.set(latency=200)
    async with scene(it, number, alarm) as here:
        crowd = Crowd(
            f"a{number}-",
            here.gateway.address,
            it.stub.url,
            dice,
            clients=CLIENTS,
            pause=1.0,
            mix=MIX,
        )
        crowd.start()
        calm = Round(None)
        await watch(calm, here.prometheus, CALM if alarm else QUIET)
        done.wrong += [f"{alert} fired while nothing was wrong" for alert in calm.fired]
        if alarm:
            done.unit = query_of(alarm).unit
            done.before = await asyncio.to_thread(value_of, alarm, here.prometheus)
            async with alarm.inject(here):
                await watch(done, here.prometheus, PATIENCE)
                # The panel has its next point.
                await asyncio.sleep(1)
                done.saw(await asyncio.to_thread(value_of, alarm, here.prometheus))
            judge(done, alarm)
        else:
            done.fired = calm.fired
        crowd.over = True
        await Connection.end_all()
        await crowd.finish()
    return done


def judge(done: Round, alarm: Alarm) -> None:
    if alarm.alert not in done.fired:
        done.wrong.append(f"{alarm.alert} did not fire within {PATIENCE:.0f} s")
    done.wrong += [f"{alert} fired, too" for alert in done.others() if alert not in alarm.follows]
    if math.isnan(done.during) or shown(done.during, done.unit) == shown(done.before, done.unit):
        done.wrong.append(f"the panel {alarm.panel} does not show it: {done.before}, {done.during}")


def row(done: Round) -> str:
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    alarm = done.alarm
    if alarm is None:
        return f"| nothing, for a minute | {', '.join(done.fired) or 'none'} | | | | | | {today} |"
    dashboard, panel, series = alarm.panel
    where = f"{dashboard}: {panel}" + ("" if series == "instance" else f", *{series}*")
    after = done.fired.get(alarm.alert)
    also = ", ".join(f"`{alert}`" for alert in done.others())
    return (
        f"| {alarm.fault} | `{alarm.alert}` | {'never' if after is None else f'{after:.0f} s'} |"
        f" {where} | {shown(done.before, done.unit)} | {shown(done.during, done.unit)} | {also} |"
        f" {today} |"
    )


def report(rounds: list[Round], before: str) -> str:
    """The page, with the rows of what was not run as they are in the one before."""
    new = {each.alarm: row(each) for each in rounds}
    old = {
        alert: line
        for line in before.splitlines()
        for alert in re.findall(r"`(Layby\w+)`", line)[:1]
    }
    quiet = [line for line in before.splitlines() if line.startswith("| nothing, for a minute |")]
    rows = [new[None]] if None in new else quiet
    rows += [new.get(alarm, old.get(alarm.alert, "")) for alarm in ALARMS]
    table = "\n".join(each for each in rows if each)
    return f"""\
# Faults and their alerts

Does the right alert fire, and does a panel show why? `make alerts` breaks one thing at a time under
load, in front of a real Prometheus, and writes this page. The last machine that it ran on has
{os.cpu_count()} cores ({platform.machine()}), which also had other work to do.

Each fault has a gateway of its own: the example shop on PostgreSQL, {SLOTS} slots, services that
answer after 0.2 s, and {CLIENTS} clients that pause for a second between two requests. For
{CALM:.0f} s nothing is wrong. Then the fault begins, and goes on until its alert fires.

**Time is hastened.** The rules are those of [`rules.yml`](../dashboards/rules.yml) with every
minute of their windows and of their `for` made a second: what waits for 10 s here waits for ten
minutes there. Thresholds are as they are. *After* is the time from the fault to the alert;
*before* is what the panel's own query gives at the fault, *during* what it gives until the alert
fires, at its furthest from that.

| fault | alert | after | panel | before | during | also fired | run on |
|---|---|---:|---|---:|---:|---|---|
{table}

An alert in the column *also fired* is of the same fault, seen from another side. Any other fails
the run, as does one that fires before its fault has begun. Where the machine has too much other
work, requests wait for its cores, and the queue's alerts fire beside any other: such a row is to be
run again. `LaybyGone` is not here, since it takes a Prometheus that finds no gateway. What to do
about an alert is in the [runbooks](dashboards.md#alerts).
"""


def chosen(words: list[str]) -> list[Alarm | None]:
    found: list[Alarm | None] = [
        it for it in ALARMS if not words or any(word in it.alert for word in words)
    ]
    if not found:
        sys.exit(f"no alert has one of {words} in its name")
    return found if words else [None, *found]


async def demonstrate(words: list[str], *, write: bool) -> bool:
    dice = random.Random(1)
    rounds: list[Round] = []
    with world(gateway=False) as it:
        for number, alarm in enumerate(chosen(words)):
            rounds.append(await one(it, number, alarm, dice))
            print(row(rounds[-1]), flush=True)
            for wrong in rounds[-1].wrong:
                print(f"    WRONG: {wrong}", flush=True)
    if write:
        REPORT.write_text(report(rounds, REPORT.read_text()))
        print(f"written: {REPORT.relative_to(REPOSITORY)}")
    return not any(each.wrong for each in rounds)


def main() -> int:
    parser = argparse.ArgumentParser(description="Break one thing at a time; see its alert fire.")
    parser.add_argument("words", nargs="*", help="alerts with one of these in their names")
    parser.add_argument("--write", action="store_true", help="write what happened into the report")
    arguments = parser.parse_args()
    return 0 if asyncio.run(demonstrate(arguments.words, write=arguments.write)) else 1


if __name__ == "__main__":
    sys.exit(main())
