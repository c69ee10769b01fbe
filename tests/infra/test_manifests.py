"""Manifests for a platform team: every file fits its schema and the code, and each check can fail."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError
from manifests import (
    AUTOSCALER,
    CLUSTER,
    JOB,
    ROOT,
    WORKSPACE,
    check_autoscaler,
    check_kubernetes,
    check_pool,
)
from object_store import CREDENTIALS
from packaging.specifiers import SpecifierSet

from infra.prefect.server import POOL
from infra.ray.capacity import LARGEST
from infra.ray.environment import SETTINGS

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*")

Change = Callable[[dict[str, Any]], Any]
POOLS = {
    name: json.loads((ROOT / f"infra/prefect/{name}-pool.json").read_text())
    for name in ("process", "kubernetes")
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCKERFILE = (ROOT / "infra/images/Dockerfile").read_text()
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD")


def pods() -> dict[str, dict[str, Any]]:
    """Return the specification of every pod, by its source."""
    found = {
        "kubernetes pool": POOLS["kubernetes"]["job_configuration"]["job_manifest"]["spec"]["template"][
            "spec"
        ]
    }
    for name, spec in (("cluster", CLUSTER["spec"]), ("job", JOB["spec"]["rayClusterSpec"])):
        found[f"{name}'s head"] = spec["headGroupSpec"]["template"]["spec"]
        found[f"{name}'s workers"] = spec["workerGroupSpecs"][0]["template"]["spec"]
    return found


def containers() -> Iterator[dict[str, Any]]:
    for pod in pods().values():
        yield from [*pod.get("initContainers", []), *pod["containers"]]


def changed(whole: dict[str, Any], change: Change) -> dict[str, Any]:
    copied = copy.deepcopy(whole)
    change(copied)
    return copied


@pytest.mark.parametrize("manifest", [CLUSTER, JOB, *WORKSPACE], ids=lambda m: m["kind"])
def test_kubernetes_manifests_fit_their_schema(manifest: dict[str, Any]) -> None:
    check_kubernetes(manifest)


def worker(cluster: dict[str, Any]) -> dict[str, Any]:
    return cluster["spec"]["workerGroupSpecs"][0]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["spec"].update(rayversion="2.60.0"), "rayversion"),
        (lambda c: c["spec"]["autoscalerOptions"].update(idleTimeout=60), "idleTimeout"),
        (lambda c: worker(c).update(maxReplicas="8"), "'8' is not of type 'integer'"),
        (lambda c: worker(c)["rayStartParams"].update({"num-cpus": 0}), "0 is not of type 'string'"),
        (lambda c: worker(c).pop("template"), "'template' is a required property"),
        (lambda c: worker(c)["template"].pop("spec"), "'spec' is a required property"),
        (lambda c: worker(c)["template"]["spec"]["containers"][0].update(volumeMount=[]), "volumeMount"),
        (lambda c: worker(c)["template"]["spec"].update(containers={}), "is not of type 'array'"),
        (lambda c: c["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0].pop("name"), "'name'"),
        (lambda c: c["spec"]["autoscalerOptions"]["resources"].update(limit={}), "limit"),
        (lambda c: c["metadata"].update(label={}), "label"),
        (lambda c: c.update(kind="RayClusters"), "RayClusters"),
    ],
)  # fmt: skip
def test_a_cluster_that_kuberay_would_not_take_is_refused(change: Change, said: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(said)):
        check_kubernetes(changed(CLUSTER, change))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda j: j["spec"].update(backOffLimit=3), "backOffLimit"),
        (lambda j: j["spec"].pop("entrypoint"), "'entrypoint'"),
        (lambda j: j["spec"].update(ttlSecondsAfterFinished="600"), "'600'"),
        (lambda j: j["spec"].pop("rayClusterSpec"), "'rayClusterSpec'"),
    ],
)
def test_a_job_that_kuberay_would_not_take_is_refused(change: Change, said: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(said)):
        check_kubernetes(changed(JOB, change))


def test_a_volume_that_kubernetes_would_not_take_is_refused() -> None:
    claim = changed(WORKSPACE[1], lambda c: c["spec"].update(accessModes="ReadWriteMany"))
    with pytest.raises(ValidationError, match="ReadWriteMany"):
        check_kubernetes(claim)


def test_the_cluster_launcher_takes_the_autoscaler_s_file() -> None:
    prepared = check_autoscaler(AUTOSCALER)
    assert prepared["docker"]["image"] == AUTOSCALER["docker"]["image"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: a.update(idle_timeout=10), "idle_timeout"),
        (lambda a: a.update(max_workers="8"), "'8' is not of type 'integer'"),
        (lambda a: a["docker"].update(images="x"), "images"),
        (lambda a: a["available_node_types"]["gpu"].pop("node_config"), "node_config"),
        (lambda a: a.update(head_node_type="heads"), "head_node_type"),
    ],
)  # fmt: skip
def test_a_file_that_the_launcher_would_not_take_is_refused(change: Change, said: str) -> None:
    with pytest.raises((ValidationError, ValueError), match=said):
        check_autoscaler(changed(AUTOSCALER, change))


@pytest.mark.parametrize("kind", POOLS)
def test_prefect_s_worker_takes_the_pool(kind: str) -> None:
    check_pool(kind, POOLS[kind])


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("process", lambda p: p["job_configuration"].update(workdir="/"), "workdir"),
        ("process", lambda p: p["variables"]["properties"]["env"].update(default="X=1"), "env"),
        ("process", lambda p: p["job_configuration"].update(command="{{ comand }}"), "comand"),
        ("process", lambda p: p.pop("job_configuration"), "job_configuration"),
        ("kubernetes", lambda p: pool_pod(p).pop("completions"), "completions"),
        ("kubernetes", lambda p: pool_pod(p)["containers"][0].update(volumeMount=[]), "volumeMount"),
        ("kubernetes", lambda p: pool_pod(p).update(restartPolicy="Always"), "restartPolicy"),
        ("kubernetes", lambda p: pool_pod(p)["containers"][0].update(image="{{ imgae }}"), "imgae"),
        ("kubernetes", lambda p: p["job_configuration"].pop("job_manifest"), "job_manifest"),
    ],
)  # fmt: skip
def test_a_pool_that_prefect_s_worker_would_not_take_is_refused(kind: str, change: Change, said: str) -> None:
    with pytest.raises((ValidationError, ValueError), match=said):
        check_pool(kind, changed(POOLS[kind], change))


def pool_pod(pool: dict[str, Any]) -> dict[str, Any]:
    return pool["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]  # type: ignore[no-any-return]


def test_one_image_of_this_version_everywhere() -> None:
    images = {c["image"] for c in containers()} - {"{{ image }}"}
    images |= {
        POOLS["kubernetes"]["variables"]["properties"]["image"]["default"],
        AUTOSCALER["docker"]["image"],
    }
    assert len(images) == 1
    assert images.pop().split(":") == ["registry.example.com/rcm-distill", PROJECT["version"]]


def test_ray_and_python_are_the_pinned_ones() -> None:
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    )
    for spec in (CLUSTER["spec"], JOB["spec"]["rayClusterSpec"]):
        assert spec["rayVersion"] == pinned["ray"]
    pythons = set(re.findall(r"python(3\.\d+)", DOCKERFILE))
    assert len(pythons) == 1
    assert pythons.pop() in SpecifierSet(PROJECT["requires-python"])
    page = (ROOT / "docs/scale.md").read_text()
    assert set(re.findall(r"prefectTag=([\d.]+)-python", page)) == {pinned["prefect"]}


def test_raylets_have_the_settings_that_drivers_have() -> None:
    given = dict(re.findall(r"\b((?:RAY|TORCH)_\w+)=(\S+)", DOCKERFILE))
    assert given == {k: v for k, v in SETTINGS.items() if k != "RAY_AUTH_MODE"}  # the cluster has a token


def test_the_job_s_cluster_is_the_standing_one() -> None:
    def plain(spec: dict[str, Any]) -> dict[str, Any]:
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            (container,) = group["template"]["spec"]["containers"]
            for key in ("command", "args"):
                container.pop(key, None)
            own = ("PREFECT_API_URL", "PREFECT_API_KEY", "RAY_ADDRESS")
            container["env"] = [e for e in container["env"] if e["name"] not in own]
        return spec

    assert plain(copy.deepcopy(CLUSTER["spec"])) == plain(copy.deepcopy(JOB["spec"]["rayClusterSpec"]))


def environment(container: dict[str, Any]) -> dict[str, Any]:
    return {entry["name"]: entry for entry in container.get("env", [])}


def test_the_capacity_is_what_the_workers_add_up_to() -> None:
    for spec in (CLUSTER["spec"], JOB["spec"]["rayClusterSpec"]):
        (group,) = spec["workerGroupSpecs"]
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        cpus, gpus = (group["maxReplicas"] * int(limits[k]) for k in ("cpu", "nvidia.com/gpu"))
        head = spec["headGroupSpec"]["template"]["spec"]["containers"][0]
        assert environment(head)[LARGEST]["value"] == f"CPU={cpus},GPU={gpus}"
    machine = AUTOSCALER["available_node_types"]["gpu"]
    cpus, gpus = (machine["max_workers"] * machine["resources"][k] for k in ("CPU", "GPU"))
    assert AUTOSCALER["docker"]["head_run_options"] == [f"--env {LARGEST}=CPU={cpus},GPU={gpus}"]


def test_secrets_come_by_reference_and_s3_s_under_the_names_that_are_read() -> None:
    for container in containers():
        for name, entry in environment(container).items():
            assert "value" not in entry or not SECRET.search(name)
    for name, pod in pods().items():
        given = environment(pod["containers"][0])
        assert set(CREDENTIALS) <= set(given), name  # with these names tests reach a real S3 server
        assert all("secretKeyRef" in given[key]["valueFrom"] for key in CREDENTIALS)


def test_every_pod_has_the_shared_volume_memory_to_share_and_no_root() -> None:
    (claim,) = (w for w in WORKSPACE if w["kind"] == "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for name, pod in pods().items():
        volumes = {v["name"]: v for v in pod["volumes"]}
        mounts = {m["mountPath"]: volumes[m["name"]] for m in pod["containers"][0]["volumeMounts"]}
        assert mounts["/data"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"], name
        assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
        assert pod["securityContext"]["runAsNonRoot"]
        assert f"USER {pod['securityContext']['runAsUser']}\n" in DOCKERFILE
    namespaces = {m["metadata"].get("namespace") for m in (CLUSTER, JOB, claim)}
    namespaces.add(POOLS["kubernetes"]["variables"]["properties"]["namespace"]["default"])
    assert namespaces == {WORKSPACE[0]["metadata"]["name"]}


def test_the_deployments_pool_is_the_workers() -> None:
    named = {
        d["work_pool"]["name"] for d in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    }
    head = CLUSTER["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["args"][0]
    assert named == set(re.findall(r"prefect worker start --pool (\S+)", head)) == {POOL}
    assert f"--pool {POOL} " in AUTOSCALER["head_start_ray_commands"][-1]
