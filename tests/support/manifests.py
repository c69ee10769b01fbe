"""The files of infra/ that a platform team applies, and the checks of the programs that read them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from jsonschema import Draft202012Validator, ValidationError
from jsonschema.exceptions import best_match

ROOT = Path(__file__).parents[2]
KUBERNETES = "1.34"
KUBERAY = json.loads((Path(__file__).parent / "kuberay.schema.json").read_text())


def load(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / "infra/ray" / name).read_text()))


(CLUSTER,), (JOB,), (AUTOSCALER,) = (load(f"{n}.yaml") for n in ("raycluster", "rayjob", "autoscaler"))
WORKSPACE = load("workspace.yaml")


def check_kubernetes(manifest: dict[str, Any]) -> None:
    """Raise ValidationError unless Kubernetes, or KubeRay and Kubernetes, would accept ``manifest`` unchanged."""
    if not manifest["apiVersion"].startswith("ray.io/"):
        _strict(manifest)
        return
    part = {**KUBERAY, "$ref": f"#/$defs/{manifest['kind']}"}
    del part["oneOf"]  # the branch is known, so the message can be clearer
    if manifest["kind"] not in KUBERAY["$defs"]:
        raise ValidationError(f"{manifest['kind']} is no kind of {manifest['apiVersion']} that is used here")
    _raise(Draft202012Validator(part).iter_errors(manifest))
    spec = manifest["spec"].get("rayClusterSpec", manifest["spec"])
    _template({"metadata": manifest["metadata"], "spec": {"containers": []}})
    scaler = {"name": "autoscaler", "resources": spec["autoscalerOptions"]["resources"]}
    _template({"spec": {"containers": [scaler]}})
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        _template(group["template"])


def check_autoscaler(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration completed as by ``ray up``; ValidationError or ValueError as ``ray up`` raises them."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared: dict[str, Any] = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def check_pool(kind: str, template: dict[str, Any]) -> None:
    """Raise ValidationError or ValueError unless Prefect's worker makes a complete job of the template's defaults."""
    from prefect.utilities.templating import apply_values, find_placeholders
    from prefect.workers.base import BaseWorker
    from prefect.workers.process import ProcessWorker
    from prefect_kubernetes.worker import KubernetesWorker

    worker: type[BaseWorker[Any, Any, Any]] = {"process": ProcessWorker, "kubernetes": KubernetesWorker}[kind]
    known = worker.get_default_base_job_template()
    if missing := set(known) - set(template):
        raise ValueError(f"the template lacks {sorted(missing)}")
    written, own = set(template["job_configuration"]), set(known["job_configuration"])
    if unknown := (written - own) | (own - written - {"annotations", "cluster_config"}):
        raise ValueError(f"the worker does not know, or lacks, {sorted(unknown)}")
    variables = template["variables"]["properties"]
    used = {p.name for p in find_placeholders(template["job_configuration"])}
    if used != set(variables):
        raise ValueError(f"variables and placeholders differ in {sorted(used ^ set(variables))}")
    for name, variable in variables.items():
        if "default" in variable:
            errors = Draft202012Validator(variable).iter_errors(variable["default"])
            _raise(errors, f"variable {name}: ")
    values = {name: v["default"] for name, v in variables.items() if v.get("default") is not None}
    job = worker.job_configuration(**apply_values(copy.deepcopy(template["job_configuration"]), values))
    if kind == "kubernetes":
        _job(job)


def _job(job: Any) -> None:
    """Check the Kubernetes job of a run against Kubernetes' schema."""
    from uuid import UUID

    from prefect.client.schemas.objects import FlowRun

    job.prepare_for_flow_run(FlowRun(id=UUID(int=1), flow_id=UUID(int=2), name="run"))
    manifest = copy.deepcopy(job.job_manifest)
    pod = manifest["spec"]["template"]["spec"]
    for key in ("parallelism", "completions"):
        del pod[key]  # Prefect requires the job's fields in its pod; Kubernetes ignores them there
    _strict(manifest)


def _template(template: dict[str, Any]) -> None:
    _strict({"apiVersion": "v1", "kind": "PodTemplate", "template": template})


def _strict(manifest: dict[str, Any]) -> None:
    try:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        raise ValidationError(f"{'/'.join(map(str, error.path))}: {error.message}") from error


def _raise(errors: Any, where: str = "") -> None:
    if worst := best_match(errors):
        raise ValidationError(f"{where}{'/'.join(map(str, worst.absolute_path))}: {worst.message}")
