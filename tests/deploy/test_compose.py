"""The compose file: understood by docker-compose, and run, each service as a plain process.

What differs from containers is what has to: names of hosts, ports, and where what is mounted lies.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from deployed import DEPLOY, configuration, drain, instructions, seconds
from support.gateway import free_ports
from support.places import BINARY, PACKAGE, REPOSITORY, environment
from support.postgres import programs
from support.program import Program, until

COMPOSE = DEPLOY / "compose"
FILE = COMPOSE / "compose.yaml"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(FILE.read_text())["services"]

# Where each image has what is there on this machine.
IN_IMAGES = {
    "/srv/shop": str(REPOSITORY / "examples" / "shop"),
    "/srv/services": str(REPOSITORY / "examples" / "services"),
}
# What listens, at which ports.
PORTS = {"db": 5432, "services": 9300, "layby": 8000, "metrics": 9181, "prometheus": 9090}


def test_docker_compose_understands_every_line() -> None:
    done = subprocess.run(
        ["docker-compose", "-f", FILE, "config", "--quiet"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_key_that_docker_compose_does_not_know_would_be_noticed(tmp_path: Path) -> None:
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(FILE.read_text().replace("stop_grace_period", "stop_grace"))
    done = subprocess.run(["docker-compose", "-f", wrong, "config"], capture_output=True, text=True)
    assert done.returncode != 0
    assert "stop_grace" in done.stderr


def test_the_gateway_is_stopped_before_the_workers_and_has_time_to_drain() -> None:
    gateway = SERVICES["layby"]
    # Services are stopped before those that they depend on.
    assert "workers" in gateway["depends_on"]
    config = configuration(COMPOSE / "layby.toml")
    assert seconds(gateway["stop_grace_period"].removesuffix("s")) >= drain(config) + 10


def test_gateway_and_workers_agree() -> None:
    config = configuration(COMPOSE / "layby.toml")
    workers = SERVICES["workers"]
    assert workers["environment"]["LAYBY_LINK"] == config["workers"]["link"]
    command = workers["command"]
    assert int(command[command.index("--threads") + 1]) == config["slots"]["count"]
    folder = str(Path(config["workers"]["link"].removeprefix("unix:")).parent)
    for name in ("workers", "layby"):
        assert f"link:{folder}" in SERVICES[name]["volumes"]
    users = [
        rest
        for dockerfile in ("Dockerfile", "compose/shop.Dockerfile")
        for name, rest in instructions(DEPLOY / dockerfile)
        if name == "USER"
    ]
    assert len(users) == 2
    assert len(set(users)) == 1


def test_what_is_mounted_and_what_is_built_is_there() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert not source.startswith(".") or (COMPOSE / source).exists(), source
        if build := service.get("build"):
            context = (COMPOSE / build["context"]).resolve()
            assert context == REPOSITORY
            assert (context / build["dockerfile"]).is_file()


def test_grafana_finds_its_data_and_the_dashboards() -> None:
    """By what Grafana's documents say of these files; Grafana itself is in no Debian package."""
    provisioning = COMPOSE / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())[
        "datasources"
    ]
    known = {"name", "type", "uid", "access", "url", "isDefault", "jsonData"}
    assert set(source) == known
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    host, port = source["url"].removeprefix("http://").split(":")
    assert host in SERVICES
    assert int(port) == PORTS[host]
    # What every dashboard asks for is a data source of this type.
    for path in (REPOSITORY / "dashboards").glob("*.json"):
        variables = json.loads(path.read_text())["templating"]["list"]
        (asked,) = (each for each in variables if each["type"] == "datasource")
        assert asked["query"] == source["type"]
    provided = yaml.safe_load((provisioning / "dashboards" / "layby.yaml").read_text())
    assert provided["apiVersion"] == 1
    (provider,) = provided["providers"]
    folder = provider["options"]["path"]
    mounts = dict(volume.split(":")[1::-1] for volume in SERVICES["grafana"]["volumes"])
    assert (COMPOSE / mounts[folder]).resolve() == REPOSITORY / "dashboards"
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (REPOSITORY / "dashboards" / Path(home).name).is_file()
    assert Path(home).parent == Path(folder)


class Machine:
    """All services on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        (self.admin,) = free_ports(1)
        self.ended = ExitStack()

    def port(self, name: str) -> int:
        return self.ports[name]

    def here(self, text: str, volumes: dict[str, str]) -> str:
        """A text of the compose file, or of a mounted one, as it has to be on this machine."""
        for name, port in PORTS.items():
            host = "layby" if name == "metrics" else name
            for address in (f"{host}:{port}", f"0.0.0.0:{port}"):
                text = text.replace(address, f"127.0.0.1:{self.ports[name]}")
        # By itself: a fetch policy's name, and what a stub is told.
        text = text.replace('"services"', '"127.0.0.1"')
        places = {**volumes, **IN_IMAGES}
        # Whole paths, and what is below them; in one go, as some look like parts of others.
        inside = "|".join(re.escape(place) for place in sorted(places, reverse=True))
        path = re.compile(rf"(?<![\w./-])({inside})(?![\w.-])")
        return path.sub(lambda found: places[found[1]], text)

    def volumes(self, service: dict[str, Any]) -> dict[str, str]:
        """Where things are, by where the service has them. Files that are mounted are copied."""
        found = {path: str(self.folder / "tmp") for path in service.get("tmpfs", ())}
        for volume in service.get("volumes", ()):
            source, target, *_ = volume.split(":")
            if not source.startswith("."):
                found[target] = str(self.folder / source)
                Path(found[target]).mkdir(exist_ok=True)
            elif (COMPOSE / source).is_file():
                found[target] = str(self.folder / Path(target).name)
        for volume in service.get("volumes", ()):
            source, target, *_ = volume.split(":")
            if source.startswith(".") and (COMPOSE / source).is_file():
                text = self.here((COMPOSE / source).read_text(), found)
                Path(found[target]).write_text(text)
        return found

    def start(self, name: str, program: list[str | Path], directory: Path) -> Program:
        """`program` is the image's entry point."""
        service = SERVICES[name]
        volumes = self.volumes(service)
        given = service.get("command", [])
        command = [self.here(word, volumes) for word in given]
        if command[:1] == ["python"]:
            command[0] = sys.executable
        if "--port" in command:
            place = command.index("--port")
            command[place + 1] = str(self.ports[name])
            command[command.index("--host") + 1] = "127.0.0.1"
        own = {
            key: self.here(str(value), volumes)
            for key, value in service.get("environment", {}).items()
        }
        running = Program(
            name,
            [*program, *command],
            environment=environment(PYTHONPATH=str(PACKAGE), **own),
            directory=directory,
            log=self.folder / f"{name}.log",
        )
        self.ended.callback(running.end)
        return running

    def up(self) -> None:
        """In the order that the compose file's dependencies give."""
        (self.folder / "tmp").mkdir()
        self.database()
        shop = REPOSITORY / "examples" / "shop"
        self.start("services", [], shop).wait_for("services on ")
        prepare = self.start("prepare", [], shop)
        assert prepare.wait(60) == 0, prepare.tail()
        self.workers = self.start("workers", [], shop)
        # The image's entry point and command; the file is the one that is mounted.
        file = self.folder / "layby.toml"
        serve = ["serve", f"--config={file}", f"--admin=127.0.0.1:{self.admin}"]
        self.gateway = self.start("layby", [BINARY, *serve], self.folder)
        until("it is not ready", self.healthy, 60)
        web = f"--web.listen-address=127.0.0.1:{self.ports['prometheus']}"
        self.start("prometheus", ["prometheus", web], self.folder).wait_for("Server is ready")

    def healthy(self) -> bool:
        """What the image's health check says."""
        (check,) = (
            json.loads(rest.partition("CMD ")[2])
            for name, rest in instructions(DEPLOY / "Dockerfile")
            if name == "HEALTHCHECK"
        )
        command = [BINARY, *check[1:], f"--admin=127.0.0.1:{self.admin}"]
        return subprocess.run(command, capture_output=True).returncode == 0

    def database(self) -> None:
        """A server with what PostgreSQL's image makes of its variables."""
        variables = SERVICES["db"]["environment"]
        name = variables["POSTGRES_USER"]
        data = self.folder / "database"
        data.mkdir()
        secret = self.folder / "password"
        secret.write_text(variables["POSTGRES_PASSWORD"])
        who: dict[str, Any] = {}
        if os.geteuid() == 0:
            # The server refuses to run as root.
            who = {"user": "nobody", "group": "nogroup"}
            for path in (data, secret):
                shutil.chown(path, "nobody", "nogroup")
        initdb = [programs() / "initdb", "-D", data, "-U", name, "-A", "scram-sha-256", "--no-sync"]
        subprocess.run(
            [*initdb, f"--pwfile={secret}"], check=True, cwd="/", stdout=subprocess.DEVNULL, **who
        )
        options = f"-c port={self.ports['db']} -c listen_addresses=127.0.0.1 -c fsync=off -k {data}"
        control = [programs() / "pg_ctl", "-D", data, "-w"]
        log = ["-l", data / "log", "-o", options]
        subprocess.run(
            [*control, *log, "start"], check=True, cwd="/", stdout=subprocess.DEVNULL, **who
        )
        self.ended.callback(
            subprocess.run,
            [*control, "-m", "immediate", "stop"],
            cwd="/",
            stdout=subprocess.DEVNULL,
            **who,
        )
        login = f"host=127.0.0.1 port={self.ports['db']} user={name} password={secret.read_text()}"
        with psycopg.connect(f"{login} dbname=postgres", autocommit=True) as server:
            server.execute(f"CREATE DATABASE {variables['POSTGRES_DB']}".encode())

    def ask(self, name: str, path: str, body: object = None) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.ports[name]}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read()
            return json.loads(text) if "json" in answer.headers["content-type"] else text.decode()

    def query(self, expression: str) -> list[float]:
        path = f"/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        found = self.ask("prometheus", path)["data"]["result"]
        return [float(series["value"][1]) for series in found]


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    # Not pytest's own, which is closed to PostgreSQL's user.
    with tempfile.TemporaryDirectory(prefix="layby-compose-") as folder:
        Path(folder).chmod(0o755)
        machine = Machine(Path(folder))
        with machine.ended:
            machine.up()
            yield machine


def test_the_shop_is_open_and_what_it_asks_others_parks(machine: Machine) -> None:
    assert "Teapot" in machine.ask("layby", "/products/teapot/")
    lines = [{"product": "teapot", "quantity": 1}]
    order = machine.ask("layby", "/api/checkout", {"reference": "compose-1", "lines": lines})
    assert order["status"] == "paid"
    metrics = machine.ask("metrics", "/metrics")
    parked = re.search(r"^layby_park_seconds_count (\d+)$", metrics, re.MULTILINE)
    assert parked is not None
    assert int(parked[1]) >= 1
    assert 'layby_slots{state="idle"} 8' in metrics
    # By the name that the configuration gives it.
    assert re.search(
        r'^layby_fetches_total\{origin="127\.0\.0\.1",outcome="ok"\} [1-9]', metrics, re.M
    )


def test_prometheus_scrapes_the_gateway_and_has_its_rules(machine: Machine) -> None:
    until("no scrape", lambda: machine.query('up{job="layby"}') == [1.0], 30)
    groups = machine.ask("prometheus", "/api/v1/rules")["data"]["groups"]
    rules = {rule["name"] for group in groups for rule in group["rules"]}
    assert {"LaybyDown", "layby:slot_utilisation:ratio5m"} <= rules


def test_the_autoscalers_metric_is_there(machine: Machine) -> None:
    """The adapter's query, asked as it asks; a pod is told from others by `instance` here."""
    path = DEPLOY / "kubernetes" / "autoscaling" / "prometheus-adapter.yaml"
    (rule,) = yaml.safe_load(path.read_text())["rules"]
    query = rule["metricsQuery"]
    for name, value in {
        "GroupBy": "instance",
        "LabelMatchers": 'job="layby"',
        "Series": rule["name"]["matches"],
    }.items():
        query = query.replace(f"<<.{name}>>", value)
    assert "<<" not in query

    def between_none_and_all() -> bool:
        machine.ask("layby", "/products/teapot/")
        found = machine.query(query)
        return len(found) == 1 and 0 < found[0] <= 1

    until("no utilisation", between_none_and_all, 30, every=0.3)


def test_a_stop_in_the_order_of_the_dependencies_loses_nobody(machine: Machine) -> None:
    """Last, as it ends the gateway: a purchase that is parked meanwhile is answered."""
    lines = [{"product": "cup", "quantity": 1}]
    purchase = {"reference": "compose-2", "lines": lines, "latency": 1500}
    answers: list[Any] = []
    buying = threading.Thread(
        target=lambda: answers.append(machine.ask("layby", "/api/checkout", purchase))
    )
    buying.start()
    until(
        "it is not parked",
        lambda: re.search(r"^layby_parked_requests 1$", machine.ask("metrics", "/metrics"), re.M),
        10,
    )
    machine.gateway.process.terminate()
    assert machine.gateway.wait(30) == 0
    buying.join(30)
    assert [answer["status"] for answer in answers] == ["paid"]
    # It has ended by itself, in peace: its gateway is gone.
    assert machine.workers.wait(10) == 0, machine.workers.tail()
