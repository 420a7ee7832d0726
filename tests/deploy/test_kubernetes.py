"""The manifests: built by kustomize, held to Kubernetes' own schemas, and to each other."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from deployed import DEPLOY, check, configuration, documents, drain
from support.places import REPOSITORY

KUBERNETES = DEPLOY / "kubernetes"
FOLDERS = [
    KUBERNETES,
    KUBERNETES / "autoscaling",
    KUBERNETES / "monitoring",
    REPOSITORY / "dashboards",
]
# The oldest with native sidecars on by default whose schemas we have, and the newest.
VERSIONS = ("1.29", "1.37")
# Kinds that are not Kubernetes' own.
OPERATOR = ("PodMonitor", "PrometheusRule")


@cache
def built(folder: Path) -> list[dict[str, Any]]:
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return documents(done.stdout)


def minor_version() -> int:
    """Of kubectl, which brings its kustomize."""
    command = ["kubectl", "version", "--client", "--output=json"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(re.sub(r"\D", "", json.loads(said)["clientVersion"]["minor"]))


def only(kind: str, folder: Path = KUBERNETES) -> dict[str, Any]:
    (found,) = (each for each in built(folder) if each["kind"] == kind)
    return found


@pytest.fixture(scope="module")
def pod() -> dict[str, Any]:
    return dict(only("Deployment")["spec"]["template"])


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return configuration(KUBERNETES / "layby.toml")


def validate(manifest: dict[str, Any]) -> None:
    for version in VERSIONS:
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_kubernetes_understands_every_line(folder: Path) -> None:
    manifests = built(folder)
    assert manifests
    for manifest in manifests:
        if manifest["kind"] not in OPERATOR:
            validate(manifest)


def test_a_key_that_kubernetes_does_not_know_would_be_noticed() -> None:
    wrong = copy.deepcopy(only("Deployment"))
    wrong["spec"]["template"]["spec"]["initContainers"][0]["restartPolicies"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(wrong)


def test_the_workers_are_a_sidecar_and_so_outlive_the_drain_of_the_gateway(
    pod: dict[str, Any], config: dict[str, Any]
) -> None:
    (workers,) = pod["spec"]["initContainers"]
    assert workers["restartPolicy"] == "Always"
    (gateway,) = pod["spec"]["containers"]
    assert gateway["name"] == "layby"
    # Nothing holds up SIGTERM, and the time is enough for what follows it.
    assert "lifecycle" not in gateway
    assert config["drain_delay"] != "0s"
    assert pod["spec"]["terminationGracePeriodSeconds"] >= drain(config) + 10


def test_workers_and_gateway_meet_at_the_same_socket(
    pod: dict[str, Any], config: dict[str, Any]
) -> None:
    (workers,) = pod["spec"]["initContainers"]
    command = workers["command"]
    link = command[command.index("--link") + 1]
    assert link == config["workers"]["link"]
    folder = str(Path(link.removeprefix("unix:")).parent)
    for container in (workers, *pod["spec"]["containers"]):
        mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert mounted[folder] == "link"
    # A thread for every slot.
    assert int(command[command.index("--threads") + 1]) == config["slots"]["count"]


def test_probes_and_ports_are_those_of_the_configuration(
    pod: dict[str, Any], config: dict[str, Any]
) -> None:
    (gateway,) = pod["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in gateway["ports"]}
    assert ports == {
        "http": int(config["listen"].rpartition(":")[2]),
        "probes": int(config["probes"].rpartition(":")[2]),
    }
    asked = {
        kind: (gateway[kind]["httpGet"]["path"], gateway[kind]["httpGet"]["port"])
        for kind in ("readinessProbe", "livenessProbe")
    }
    assert asked == {"readinessProbe": ("/readyz", "probes"), "livenessProbe": ("/livez", "probes")}
    (served,) = only("Service")["spec"]["ports"]
    assert served["targetPort"] == "http"


def test_the_balancer_hears_of_a_drain_before_the_door_closes(
    pod: dict[str, Any], config: dict[str, Any]
) -> None:
    probe = pod["spec"]["containers"][0]["readinessProbe"]
    heard = probe["periodSeconds"] * probe["failureThreshold"]
    assert heard < int(config["drain_delay"].removesuffix("s"))


def test_containers_can_do_nothing_that_they_need_not(pod: dict[str, Any]) -> None:
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    for container in (*pod["spec"]["initContainers"], *pod["spec"]["containers"]):
        confined = container["securityContext"]
        assert confined["readOnlyRootFilesystem"] is True
        assert confined["allowPrivilegeEscalation"] is False
        assert confined["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"]


def test_every_volume_is_there_and_used(pod: dict[str, Any]) -> None:
    volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
    containers = (*pod["spec"]["initContainers"], *pod["spec"]["containers"])
    used = {mount["name"] for each in containers for mount in each["volumeMounts"]}
    assert used == volumes


def test_everything_selects_the_same_pods(pod: dict[str, Any]) -> None:
    labels = pod["metadata"]["labels"].items()
    selectors = [
        only("Deployment")["spec"]["selector"]["matchLabels"],
        only("Service")["spec"]["selector"],
        only("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        only("PodMonitor", KUBERNETES / "monitoring")["spec"]["selector"]["matchLabels"],
    ]
    for selector in selectors:
        assert selector
        assert selector.items() <= labels
    target = only("HorizontalPodAutoscaler", KUBERNETES / "autoscaling")["spec"]["scaleTargetRef"]
    assert target["name"] == only("Deployment")["metadata"]["name"]


def test_the_pod_gets_the_configuration_that_was_checked(
    pod: dict[str, Any], tmp_path: Path
) -> None:
    given = only("ConfigMap")
    (text,) = given["data"].values()
    assert tomllib.loads(text) == configuration(KUBERNETES / "layby.toml")
    # Named after its content, or a change of it would not reach the pods.
    (volume,) = (each for each in pod["spec"]["volumes"] if each["name"] == "config")
    assert volume["configMap"]["name"] == given["metadata"]["name"]
    assert given["metadata"]["name"] != "layby"
    path = tmp_path / "layby.toml"
    path.write_text(text)
    status, said = check("--config", path)
    assert status == 0, said


def test_the_spool_has_room_for_what_the_gateway_may_put_there(
    pod: dict[str, Any], config: dict[str, Any]
) -> None:
    (volume,) = (each for each in pod["spec"]["volumes"] if each["name"] == "spool")
    room = int(volume["emptyDir"]["sizeLimit"].removesuffix("Gi"))
    # The kubelet evicts a pod that has more in it.
    assert room > int(config["spool_limit"].removesuffix("GiB"))


def test_the_memory_has_room_for_what_the_gateway_may_keep_there(
    pod: dict[str, Any], config: dict[str, Any]
) -> None:
    def mebibytes(text: str) -> int:
        return int(text.removesuffix("MiB"))

    (gateway,) = pod["spec"]["containers"]
    limit = int(gateway["resources"]["limits"]["memory"].removesuffix("Mi"))
    parked = mebibytes(config["slots"]["parked_bytes"])
    # Responses on their way in have as much room as what requests retain, and one always fits.
    assert mebibytes(config["outbound"]["max_response"]) <= parked
    bodies = mebibytes(config["memory_limit"]) + 2 * parked
    # The rest is for connections, TLS, and what an allocator does not give back at once.
    assert bodies <= limit / 2


def test_each_pod_is_scraped_where_its_metrics_are(pod: dict[str, Any]) -> None:
    monitor = only("PodMonitor", KUBERNETES / "monitoring")
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert set(endpoint) <= {"port", "path", "interval", "relabelings"}
    names = {port["name"] for port in pod["spec"]["containers"][0]["ports"]}
    assert endpoint["port"] in names
    # As alerts and dashboards have it.
    assert endpoint["relabelings"] == [{"targetLabel": "job", "replacement": "layby"}]


def test_the_rules_are_those_of_the_dashboards(tmp_path: Path) -> None:
    script = KUBERNETES / "monitoring" / "rules.py"
    subprocess.run([sys.executable, script, "--check"], check=True)
    rule = only("PrometheusRule", KUBERNETES / "monitoring")
    ours = yaml.safe_load((REPOSITORY / "dashboards" / "rules.yml").read_text())
    assert rule["spec"] == ours
    # As the operator hands them to Prometheus.
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump(rule["spec"]))
    subprocess.run(["promtool", "check", "rules", path], check=True)


def test_grafana_gets_every_dashboard() -> None:
    given = only("ConfigMap", REPOSITORY / "dashboards")
    assert set(given["data"]) == {path.name for path in (REPOSITORY / "dashboards").glob("*.json")}
    assert given["metadata"]["labels"] == {"grafana_dashboard": "1"}


def test_the_autoscaler_goes_by_the_metric_that_the_adapter_makes() -> None:
    spec = only("HorizontalPodAutoscaler", KUBERNETES / "autoscaling")["spec"]
    (metric,) = spec["metrics"]
    (rule,) = yaml.safe_load((KUBERNETES / "autoscaling" / "prometheus-adapter.yaml").read_text())[
        "rules"
    ]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    assert rule["seriesQuery"].startswith(rule["name"]["matches"] + "{")


def test_an_overlay_as_the_page_shows_it_is_an_application_of_ones_own(tmp_path: Path) -> None:
    page = (DEPLOY / "README.md").read_text()
    (shown,) = re.findall(r"```yaml\n(apiVersion: kustomize.*?)```", page, re.DOTALL)
    if minor_version() < 21:
        # Debian's kubectl has a kustomize from before folders could be resources.
        shown = shown.replace("resources:", "bases:")
    shutil.copytree(KUBERNETES, tmp_path / "layby" / "deploy" / "kubernetes")
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    (overlay / "kustomization.yaml").write_text(shown)
    (overlay / "layby.toml").write_text("slots.count = 4\n")
    manifests = {manifest["kind"]: manifest for manifest in built(overlay)}
    pod = manifests["Deployment"]["spec"]["template"]["spec"]
    images = [each["image"] for each in (*pod["initContainers"], *pod["containers"])]
    assert images == ["registry.example/shop:42", "registry.example/layby:0.1.0"]
    assert manifests["ConfigMap"]["data"] == {"layby.toml": "slots.count = 4\n"}
