"""The command that measures a whole iteration on a GPU, rehearsed on a small network."""

from __future__ import annotations

import pytest
import torch
from tiny import ROOT

from experiments.engine.full_step import OVERRIDES, TEACHER, main, measure, small
from infra.commands.plan import compose_planned
from rcm_core.preflight.teacher_spec import model_of

# diffusers returns a view; nothing changes it in place
pytestmark = pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")


def test_every_kind_of_iteration_is_taken_apart_into_all_of_its_passes() -> None:
    params = compose_planned(ROOT, OVERRIDES, TEACHER, 1)
    assert tuple(params.teacher.shape) == (16, 21, 60, 104)
    assert params.train.parallel.checkpointing == "blocks"
    found = measure(params, small(model_of(params.teacher, ROOT)), torch.device("cpu"))
    passes = {name for each in found["iterations"] for name in each["parts"]}
    assert passes == {
        "student, tangent",  # rCM's consistency
        "student, gradient",
        "student, plain",  # backward simulation
        "teacher, plain",
        "fake, plain",  # the score of DMD
        "fake, gradient",
        "optimisers and averages",
        "losses and backward passes",
    }
    assert sum(each["share"] for each in found["iterations"]) == pytest.approx(1)
    for each in found["iterations"]:
        assert all(spent > 0 for spent in each["parts"].values())
        assert sum(each["parts"].values()) == pytest.approx(each["milliseconds"])
    assert found["tangent_times_plain"] > 1
    assert {"weights: student", "weights: fake", "weights: teacher", "optimiser", "averages"} == set(
        found["held_mebibytes"]
    )
    assert sum(found["held_mebibytes"].values()) < found["predicted"]["peak_mebibytes"]


def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("experiments.engine.full_step.resolve_device", lambda _: torch.device("cpu"))
    assert main([]) == 2
    assert "--rehearse" in capsys.readouterr().err
