"""The plan: valid parameters, equal budgets, and a command that refuses unplanned runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.comparison.__main__ import main
from experiments.comparison.plan import PLANS, TIME, UPDATES, iterations_for, updates_in
from experiments.comparison.workspaces import Home, compose_variants, settle_run
from rcm_core.config.load import load_params
from rcm_core.training.distill import build_method


@pytest.mark.parametrize("teacher", PLANS)
def test_plans_compose_and_every_update_sees_as_many_points(tmp_path: Path, teacher: str) -> None:
    plan = PLANS[teacher]
    found = compose_variants(plan, Home(tmp_path, tmp_path))
    assert {p.trajectories.model_dump_json() for p in found.values()} == {
        found["rcm"].trajectories.model_dump_json()
    }
    assert found["rcm"].trajectories.keep_trajectories == (teacher == "mini")  # kd
    assert found["rcm"].trajectories.real
    for name, params in found.items():
        method = build_method(params.method, params.train.tangent)
        iterations = iterations_for(method, plan.updates)
        assert updates_in(method, iterations) == plan.updates
        assert updates_in(method, iterations - 1) == plan.updates - 1
        assert params.train.batch * params.method.get("pairs", 1) == plan.points, name
        settled_params = settle_run(params, 1, iterations)
        assert settled_params.train.candidate_every * 2 >= iterations
    assert [v.name for v in plan.variants][:6] == ["scm", "rcm", "dmd2", "tbcm", "cdm", "sana_sprint"]
    assert 1 + found["cdm"].method["alpha"] == found["cdm"].teacher.guidance  # the effective scale
    assert load_params(tmp_path / teacher / "compose/params.yaml")


def test_the_command_says_what_is_to_do_and_refuses_what_is_not_planned(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert (
        main(["--teacher", "mini", "--only", "scm,rcm", "--seeds", "0", "--budget", UPDATES, "--list"]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.rsplit(":", 1)[0] for line in lines] == ["mini updates scm 0", "mini updates rcm 0"]
    assert main(["--teacher", "maxi"]) == 2
    assert "no comparison is planned on 'maxi'" in capsys.readouterr().err
    assert main(["--teacher", "mini", "--only", "smc"]) == 2
    assert "unknown run 'smc'" in capsys.readouterr().err
    assert main(["--teacher", "mini", "--only", "ladd", "--budget", TIME]) == 2
    assert "ladd is not planned at equal time" in capsys.readouterr().err
    assert main(["--teacher", "mini", "--seeds", "one"]) == 2
    assert "expected integers" in capsys.readouterr().err
