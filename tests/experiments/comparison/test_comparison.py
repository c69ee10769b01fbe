"""A tiny comparison with real networks: results, skipped runs, repeated runs, the page."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import pytest
from PIL import Image
from tiny_plan import TINY
from workspaces import wait_for

from experiments.comparison.page.page import write
from experiments.comparison.plan import BUDGETS, TIME, UPDATES, Variant
from experiments.comparison.rekey import proven, rekey
from experiments.comparison.runner import RUNNING, Job, Runner, in_process, in_subprocess
from experiments.comparison.studies import balance, mixture
from experiments.comparison.studies.warm_start import Study, study_results
from experiments.comparison.tiny_rows import digests
from experiments.comparison.workspaces import Home
from rcm_core.config.load import load_params
from rcm_core.errors import InputError

RUNS = [(budget, variant.name) for budget in BUDGETS for variant in TINY.variants]


@dataclass
class Place:
    """Folders of a comparison of the tiny plan."""

    docs: Path
    home: Home

    def result(self, budget: str, name: str) -> dict:
        return json.loads(self.home.result(TINY, budget, name, 0).read_text())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("compare")
    made = Place(folder / "docs", Home(folder / "work", folder / "docs/results/compare"))
    runner = Runner(TINY, made.home, in_process, rounds=1)
    runner.run(TINY.variants, TINY.seeds, BUDGETS)
    assert runner.failed == []
    return made


def started(place: Place, plan=TINY, variants=TINY.variants) -> list[str]:
    """Return the jobs that another invocation would start, without running them."""
    jobs: list[str] = []

    def note(job: Job, path: Path) -> None:
        jobs.append(path.parent.name if path.parent.parent.name == "runs" else "calibration")

    Runner(plan, place.home, note, rounds=1).run(variants, plan.seeds, BUDGETS)
    return jobs


def test_every_run_leaves_its_result(place: Place) -> None:
    for budget, name in RUNS:
        found = place.result(budget, name)
        assert (found["budget"], found["name"], found["seed"]) == (budget, name, 0)
        assert sorted(found["rows"]) == ["student_1", "student_2", "student_4"]
        assert {"frechet", "accuracy", "precision", "recall", "diversity"} <= set(found["rows"]["student_1"])
        assert found["training"]["seconds"] > 0
        assert found["points_per_update"] == 8
        assert found["machine"]["torch"]
        text = json.dumps(found)
        assert str(place.docs.parent) not in text  # no path of this machine
    assert len({place.result(*run)["protocol"] for run in RUNS}) == 1
    assert len({place.result(*run)["teacher_hash"] for run in RUNS}) == 1


def test_budgets_are_equal(place: Place) -> None:
    assert {place.result(UPDATES, v.name)["student_updates"] for v in TINY.variants} == {TINY.updates}
    times = {v.name: place.result(TIME, v.name) for v in TINY.variants}
    assert times["rcm"]["iterations"] == place.result(UPDATES, "rcm")["iterations"]
    # kd has neither tangents nor a second network: in the same time it makes more iterations
    assert times["kd"]["iterations"] > times["rcm"]["iterations"]


def test_samples_through_networks_are_counted(place: Place) -> None:
    found = place.result(UPDATES, "tbcm")["training"]["forward_per_iteration"]
    # 2 prompts x 5 steps of a guided route; 2 x 4 points with a tangent pass and a pass with gradient each
    assert found == {"teacher.plain": 20.0, "student.tangent": 8.0, "student.gradient": 8.0}
    assert set(place.result(UPDATES, "kd")["training"]["forward_per_iteration"]) == {"student.gradient"}


def test_what_is_finished_is_skipped(place: Place) -> None:
    assert started(place) == []


def test_what_is_missing_or_was_made_otherwise_is_made_again(place: Place) -> None:
    result = place.home.result(TINY, UPDATES, "kd", 0)
    kept = result.read_text()
    result.unlink()
    assert started(place) == ["kd-0-6"]
    result.write_text(json.dumps(json.loads(kept) | {"key": "of other code"}))
    assert started(place) == ["kd-0-6"]
    result.write_text(kept)
    changed = replace(TINY.variant("kd"), overrides=("train.batch=4",))
    plan = replace(TINY, variants=tuple(changed if v.name == "kd" else v for v in TINY.variants))
    asked = started(place, plan)
    assert asked[:2] == ["kd-0-6", "calibration"]
    assert all(job.startswith("kd-0-") for job in asked[2:])


def test_results_whose_code_only_reads_otherwise_get_the_keys_of_today(place: Place, tmp_path: Path) -> None:
    results = tmp_path / "results"
    shutil.copytree(place.home.results, results)
    made = {path: path.read_text() for path in results.rglob("*.json")}
    for path, text in made.items():
        if "-0" in path.stem:
            path.write_text(json.dumps(json.loads(text) | {"key": "of other code", "params": "others"}))
    place_of_costs = results / "mini/calibration.json"
    costs = json.loads(place_of_costs.read_text())
    costs["entries"]["kd"]["key"] = "of other code"
    place_of_costs.write_text(json.dumps(costs))
    assert rekey(TINY, Home(tmp_path / "work", results), ["kd"]) == 3
    for path, text in made.items():
        ours = path.stem == "kd-0" or "-0" not in path.stem
        assert (json.loads(path.read_text()) == json.loads(text)) is ours, path
    assert rekey(TINY, Home(tmp_path / "work", results), ["kd"]) == 0


def test_a_proof_names_the_rows_that_differ(place: Place, tmp_path: Path) -> None:
    run = place.home.run(TINY, "kd", 0, place.result(UPDATES, "kd")["iterations"])
    row = dict(digests(run / "runs"))
    folders = ("train/candidates/", "select/transformer/", "evaluate/samples/")
    kinds = (*folders, "curves loss", "selection.json", "quality.json")
    assert all(any(key.startswith(kind) for key in row) for kind in kinds)
    changed = next(iter(row))
    rows = {"kd": row, "rcm": row, "gone": row}
    (tmp_path / "then.json").write_text(json.dumps(rows))
    now = {"kd": {**row, "a new number": "1"}, "rcm": {**row, changed: "other"}}
    (tmp_path / "now.json").write_text(json.dumps(now))
    equal, different = proven(tmp_path / "then.json", tmp_path / "now.json")
    assert equal == ["kd"]
    assert different == {"rcm": [changed], "gone": list(row)}


def test_a_run_that_cannot_be_trained_does_not_stop_the_others(place: Place, tmp_path: Path) -> None:
    def refuse(job: Job, path: Path) -> None:
        raise InputError("the gradient of the student is not finite")

    runner = Runner(TINY, Home(place.home.work, tmp_path), refuse)
    runner.run(TINY.variants, TINY.seeds, (UPDATES,))
    assert len(runner.failed) == len(TINY.variants)
    assert "mini updates kd seed 0: the gradient of the student is not finite" in runner.failed
    docs = tmp_path / "docs"
    shutil.copytree(place.docs / "results", docs / "results")
    shutil.copytree(tmp_path / "mini/updates/failed", docs / "results/compare/mini/updates/failed")
    write(docs)
    said = "`kd` of seed 0 has no result: the gradient of the student is not finite."
    assert said in (docs / "results.md").read_text()
    # after a successful training it is a normal result
    runner = Runner(TINY, Home(place.home.work, tmp_path), in_process)
    runner.run([TINY.variant("kd")], (0,), (UPDATES,))
    assert not list(tmp_path.glob("mini/updates/failed/kd*"))
    assert (tmp_path / "mini/updates/kd-0.json").is_file()


def test_the_page_is_made_of_json_and_pictures_alone(place: Place, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    shutil.copytree(place.docs / "results", docs / "results")
    write(docs)
    text = (docs / "results.md").read_text()
    for steps in ("1 step", "2 steps", "4 steps"):
        assert f"### `mini`, equal student updates: {steps}" in text
    assert "| `tbcm` |" in text
    pictures = sorted((docs / "images/compare").iterdir())
    assert [p.name for p in pictures] == [
        "mini-time-samples.png", "mini-time.png", "mini-updates-samples.png", "mini-updates.png",
    ]  # fmt: skip
    before = {p.name: p.read_bytes() for p in pictures}
    with Image.open(docs / "images/compare/mini-updates-samples.png") as picture:
        assert picture.height > 7 * 32  # the teacher, and each method at 1 and at 4 steps
    write(docs)
    assert (docs / "results.md").read_text() == text
    assert {p.name: p.read_bytes() for p in pictures} == before


def test_the_page_says_which_seconds_were_measured_in_turn(place: Place, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    shutil.copytree(place.docs / "results", docs / "results")
    calibration = docs / "results/compare/mini/calibration.json"
    known = json.loads(calibration.read_text())
    known["entries"]["tbcm"]["cost"] = {"warmup": 0, "warm": 0.25, "steady": 0.25}
    del known["entries"]["kd"]
    calibration.write_text(json.dumps(known))
    write(docs)
    text = (docs / "results.md").read_text()
    costs = text.split("equal student updates: what training took")[1].split("###")[0]
    rows = {line.split("`")[1]: line.split(" | ") for line in costs.splitlines() if line.startswith("| `")}
    assert rows["tbcm"][6:8] == ["2", "0.250"]  # 6 iterations
    wall = place.result(UPDATES, "kd")["training"]["seconds_per_iteration"]
    assert rows["kd"][7] == f"~{wall:.3f}"


def test_a_result_of_another_teacher_is_left_out(place: Place, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    shutil.copytree(place.docs / "results", docs / "results")
    result = docs / "results/compare/mini/updates/kd-0.json"
    result.write_text(json.dumps(json.loads(result.read_text()) | {"teacher_hash": "another"}))
    write(docs)
    updates = (
        (docs / "results.md").read_text().split("## `mini`, equal student updates")[1].split("## `mini`")[0]
    )
    assert "| `kd` |" not in updates
    (left_out,) = (block for block in updates.split("\n\n") if block.startswith("Not run yet"))
    assert "`kd`" in left_out
    assert "`tbcm`" not in left_out


def test_a_warm_start_is_measured(place: Place) -> None:
    study = Study(TINY, "rcm", refined=4, samples=80, candidates=2, shares=(0.5,))
    study_results(study, place.home, in_process, (0,))
    found = json.loads((place.docs / "results/warm-start/rcm-4-0.1.json").read_text())
    (seed,) = found["seeds"]
    assert seed["cold"]["updates"] == TINY.updates
    assert [run["updates"] for run in seed["warm"]] == [3]
    assert 0 < found["change"] < 1
    assert {c["updates"] for c in seed["cold"]["curve"]} == {4, 6}
    cold, warm = (
        load_params(place.home.work / f"mini/warm-start-4/{name}/params.yaml").train
        for name in ("rcm-cold-0", "rcm-warm-0-0.5-0.1")
    )
    assert warm.lr.student == pytest.approx(0.1 * cold.lr.student)
    assert (warm.lr.fake, warm.batch) == (cold.lr.fake, cold.batch)
    write(place.docs)
    assert "## Warm start after an update of the teacher" in (place.docs / "results.md").read_text()


def test_what_matching_matches_is_measured_together_and_apart(place: Place) -> None:
    single = Variant("single", "dmd2", ("train.batch=8", "method.simulation_steps=1"))
    plan = replace(TINY, variants=(*TINY.variants, single, Variant("cdm", "cdm", ("train.batch=8",))))
    mixture.study_results(plan, place.home, ("rcm", "single", "cdm"), in_process, each=40, most=200)
    found = json.loads((place.docs / "results/mixture.json").read_text())["runs"]
    parts = {name: [row["part"] for row in run["parts"]] for name, run in found.items()}
    assert parts["rcm"][0] == parts["cdm"][0] == "all together"
    assert {"from pure noise", "below 0.8"} < set(parts["rcm"])
    assert len(parts["cdm"]) > 2
    # with one step all states are pure noise, so the first 40 are the same 40
    together, noise = found["single"]["parts"]
    assert noise["frechet_teacher"] == together["frechet_teacher"]
    for run in found.values():
        assert {row["accuracy"]["n"] for row in run["parts"]} == {40}
        assert [set(c["scores"]) for c in run["candidates"]] == [{"1", "2", "4"}] * 2
    write(place.docs)
    assert "| `single` |" in (place.docs / "results.md").read_text()


def test_the_balance_of_two_gradients_is_the_curves(place: Place) -> None:
    found = balance.balance(TINY, place.home, in_process)
    (curves,) = place.home.work.glob("mini/runs/rcm-0-*/runs/train/curves.csv")
    with curves.open() as file:
        mean = fmean(float(row["dmd_gradient"]) for row in csv.DictReader(file) if row["dmd_gradient"])
    # the preset's weights: 1 of matching, 100 of consistency
    assert found["share"] == pytest.approx(mean / 100, rel=1e-6)  # the file has eight digits
    assert found["matching"] == pytest.approx(2 * mean, rel=1e-6)
    assert found["consistency"] == 200


def test_processes_at_once_come_to_the_same_and_end_with_the_command(place: Place, tmp_path: Path) -> None:
    home = Home(place.home.work, tmp_path)
    runs = [TINY.variant("kd"), TINY.variant("tbcm")]
    for variant in runs:
        shutil.rmtree(home.run(TINY, variant.name, 0, 6))
    began: list[str] = []

    def stopped(job: Job, path: Path) -> None:
        began.append(path.parent.name)
        if path.parent.name == "kd-0-6":
            in_subprocess(job, path)
        wait_for("the other run", lambda: RUNNING)
        raise KeyboardInterrupt

    runner = Runner(TINY, home, stopped, jobs=2)
    with pytest.raises(KeyboardInterrupt):
        runner.run(runs, (0,), (UPDATES,))
    assert sorted(began) == ["kd-0-6", "tbcm-0-6"]
    assert not RUNNING  # all have ended
    assert not list(tmp_path.rglob("*.json"))
    runner = Runner(TINY, home, in_subprocess, jobs=2)
    runner.run(runs, (0,), (UPDATES,))
    assert runner.failed == []
    timed = {"seconds_per_sample"}
    for variant in runs:
        first = place.result(UPDATES, variant.name)
        again = json.loads(home.result(TINY, UPDATES, variant.name, 0).read_text())
        assert again["key"] == first["key"]
        for name, row in first["rows"].items():
            assert row.keys() == again["rows"][name].keys()
            assert all(again["rows"][name][key] == row[key] for key in row.keys() - timed)
        # kd: 58 MiB here, and 197 if the networks' code, imported late, counted as a part of the training
        assert again["training"]["memory_bytes"] < 120 * 2**20
