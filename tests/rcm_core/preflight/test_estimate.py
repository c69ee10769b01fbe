"""A plan predicts a training: memory as measured, operations as computed from the layers' sizes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from presets import preset
from tiny import ROOT, tiny_values
from torch import nn

from experiments.engine.plan_accuracy import CASES, Case, measure, predict
from rcm_core.config.base import check
from rcm_core.config.sections import Params
from rcm_core.preflight.dry_run import Rehearsal, rehearse
from rcm_core.preflight.dry_runs import task_of
from rcm_core.preflight.estimate import carried_on
from rcm_core.preflight.network_calls import kinds
from rcm_core.preflight.teacher_spec import Model, model_of, read_published
from rcm_core.training.distill import build_method


def params_of(values: dict[str, Any], **train: Any) -> Params:
    """Return ``values`` with changed keys of ``train`` and of ``train.parallel``."""
    parallel = {k: train.pop(k) for k in list(train) if k in values["train"]["parallel"]}
    values["train"] |= train
    values["train"]["parallel"] |= parallel
    return check(Params, values, "params.yaml")


def rehearsed(model: Model, params: Params, steps: int = 0) -> Rehearsal:
    """With the kinds of this many steps; without any, what is held and a forward pass are known."""
    method = build_method(params.method, params.train.tangent)
    alike = kinds(method, steps, 2, params.teacher.guidance, 4) if steps else []
    return rehearse(model, params, alike, fused=True)


OF_FAMILIES = sorted({facts["family"]: name for name, facts in read_published(ROOT).items()}.values())
SMALL = {
    "tiny scm": CASES["tiny scm"],
    "tiny rcm, blocks": CASES["mini rcm, blocks"]._replace(mini=CASES["tiny scm"].mini, batch=8),
    "tiny dmd2": CASES["mini dmd2"]._replace(mini=CASES["tiny scm"].mini, batch=8),
    "8 blocks, scm, bfloat16": Case(
        "scm", "matmuls", "bfloat16", dict(CASES["tiny scm"].mini) | {"layers": 8}
    ),
}


@pytest.mark.filterwarnings(
    "ignore:FSDP2-wrapped module"
)  # diffusers returns a view; nothing changes it in place
@pytest.mark.parametrize("name", SMALL)
def test_the_predicted_peak_is_the_measured_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CASES, name, SMALL[name])
    predicted, measured = predict(name)["tensors"], measure(name)["tensors"]
    # 15 % is promised; rehearsed is the training's own code, so what is left are buffers inside of kernels
    assert predicted == pytest.approx(measured, rel=0.03)


def test_the_committed_comparison_keeps_what_is_promised() -> None:
    found = json.loads((ROOT / "docs/results/plan.json").read_text())
    assert set(found["cases"]) >= set(CASES)
    assert all(abs(case["ratio"] - 1) <= found["allowed"] for case in found["cases"].values())


def test_the_committed_time_of_a_plan_keeps_what_is_promised() -> None:
    found = json.loads((ROOT / "docs/results/plan-time.json").read_text())
    spent = found["processor_seconds"]
    layouts = spent["rehearsals_by_layout"]
    assert found["two_idle_cores"] == pytest.approx(spent["this_process"] + sum(map(max, layouts)), abs=0.2)
    assert found["two_idle_cores"] <= found["allowed"]


@pytest.mark.parametrize(
    "parallel",
    [
        {},
        {
            "workers": 4,
            "context": 2,
            "precision": "bfloat16",
            "checkpointing": "blocks",
            "offload": ["teacher"],
        },
    ],
)
def test_few_blocks_carried_on_are_the_whole_network(parallel: dict[str, Any]) -> None:
    values = tiny_values()
    values["teacher"]["mini"] |= {"layers": 7}
    values["method"] = preset("scm")["method"]
    params = params_of(values, **parallel)
    model = model_of(params.teacher, ROOT)
    few, more, whole = (rehearsed(model.cut(n), params, 1) for n in (4, 5, 7))
    found = carried_on(few, more, 2)
    assert found.held == whole.held
    assert found.forward == whole.forward
    for mine, own in zip(found.takes, whole.takes, strict=True):
        assert [p.name for p in mine.phases] == [p.name for p in own.phases]
        assert [p.flops for p in mine.phases] == [p.flops for p in own.phases]
        # a pass is highest near its begin or its end, which are extrapolated
        assert [max(p.peaks).alive for p in mine.phases] == [max(p.peaks).alive for p in own.phases]


def test_parts_of_a_batch_are_rehearsed_once_for_any_number_of_them() -> None:
    values = tiny_values()
    values["method"] = preset("scm")["method"]
    four, eight = (params_of(values, batch=2 * n, accumulate=n) for n in (4, 8))
    model = model_of(four.teacher, ROOT)
    task = task_of(model, eight, [], True)
    assert task.params.train.batch == 4
    assert task.key == task_of(model, four, [], True).key
    assert rehearsed(model, task.params, 1) == rehearsed(model, eight, 1)


def test_the_name_of_a_rehearsal_has_all_it_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    values = tiny_values()
    params = params_of(values)
    model = model_of(params.teacher, ROOT)
    alike = kinds(build_method(params.method, params.train.tangent), 1, 8, 1.5, 4)
    keys = {
        task_of(model, params, alike, True).key,
        task_of(model, params, [], True).key,
        task_of(model, params, alike, False).key,
        task_of(model.cut(1), params, alike, True).key,
        task_of(model._replace(shape=(1, 1, 16, 8)), params, alike, True).key,
        task_of(model._replace(text=3), params, alike, True).key,
        task_of(model, params_of(values, workers=2), alike, True).key,
        task_of(model, params_of(values, checkpointing="blocks"), alike, True).key,
    }
    monkeypatch.setattr("rcm_core.preflight.dry_runs.version", lambda name: f"another {name}")
    keys.add(task_of(model, params, alike, True).key)
    monkeypatch.setattr("rcm_core.preflight.dry_runs._code", lambda choices: "other code")
    keys.add(task_of(model, params, alike, True).key)
    assert len(keys) == 10


def test_operations_of_a_velocity_are_those_of_its_layers() -> None:
    params = check(Params, tiny_values(), "params.yaml")
    model = model_of(params.teacher, ROOT)
    network: Any = model.on_meta()
    tokens, text, width = 16, model.text, 32
    expected = 0
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear):
            rows = text if "text_embedder" in name or "attn2.to_k" in name or "attn2.to_v" in name else tokens
            rows = 1 if "time" in name else rows
            expected += 2 * rows * layer.in_features * layer.out_features
    patch = network.patch_embedding.weight.numel()
    attention = 2 * 2 * tokens * (tokens + text) * width
    expected += 2 * tokens * patch + model.blocks * attention
    assert rehearsed(model, params).forward["teacher"] == expected


def test_shards_divide_what_is_held_and_replicas_do_not() -> None:
    values = tiny_values()
    one, four, pairs = (
        rehearsed(
            model_of(check(Params, values, "p").teacher, ROOT), params_of(values, workers=w, replicas=r)
        )
        for w, r in ((1, 1), (4, 1), (4, 2))
    )
    for name, size in one.held.items():
        # rank 0 has all of a tensor whose first dimension is 1: tables of six rows of the width, in every block
        assert size / 4 <= four.held[name] <= size / 3
        assert size / 2 <= pairs.held[name] <= size / 1.7


def test_what_lies_in_the_machines_memory_is_not_on_the_device() -> None:
    values = tiny_values()
    model = model_of(check(Params, values, "p").teacher, ROOT)
    here, away = (
        rehearsed(model, params_of(values, workers=2, offload=offload), 1)
        for offload in ([], ["teacher", "fake"])
    )
    gone = {"weights: teacher", "weights: fake"}
    assert here.held.keys() - away.held.keys() == gone
    less = sum(here.held.values()) - sum(away.held.values())
    assert (
        less == sum(here.held[name] for name in gone) + here.held["optimiser"] / 2
    )  # student and fake have moments
    for mine, own in zip(away.takes, here.takes, strict=True):
        for phase, whole in zip(mine.phases, own.phases, strict=True):
            highest = max(whole.peaks).alive - max(phase.peaks).alive
            # and gradients of the fake score, as many as its weights
            assert less <= highest <= less + here.held["weights: fake"] + 1


def test_kinds_of_steps_are_as_frequent_as_the_method_has_them() -> None:
    section: dict[str, Any] = {**tiny_values()["method"], "warmup": 20, "student_every": 4}
    found = kinds(build_method(section, "exact"), 100, 8, 1.5, 4)
    shares = {tuple(sorted(kind.plain)): kind.share for kind in found}
    # 20 of warm-up; then one in four has the teacher's score and the fake's too
    assert shares == pytest.approx(
        {("teacher",): 0.2, ("fake", "student", "teacher"): 0.2, ("student",): 0.6}
    )


@pytest.mark.parametrize("name", OF_FAMILIES)
def test_every_family_can_be_rehearsed(name: str) -> None:
    facts = read_published(ROOT)[name]
    values = tiny_values()
    values["method"] = preset("scm")["method"]
    shape = [facts["shape"][0], 1, 8, 8]
    values["teacher"] |= {"source": name, "family": facts["family"], "mini": None, "shape": shape}
    params = params_of(values, workers=2, precision="bfloat16", checkpointing="blocks")
    model = model_of(params.teacher, ROOT).cut(2)
    if "num_single_layers" in model.config:
        model = model._replace(config={**model.config, "num_single_layers": 1})
    found = rehearsed(model, params, 1)
    weights = 4 * model.parameters() / 2
    assert weights <= found.held["weights: student"] <= 1.05 * weights
    assert {"student: tangent pass", "student: backward"} <= {
        p.name for take in found.takes for p in take.phases
    }
