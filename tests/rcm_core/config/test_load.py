"""Errors of users in params.yaml."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from presets import preset
from workspaces import change

from rcm_core.config.load import load_params
from rcm_core.config.workers import worlds
from rcm_core.errors import InputError
from rcm_core.training.distill import settings_of


def preset_method(name: str) -> dict[str, Any]:
    """Return the changes that select a preset's method in the tiny values."""
    own = preset(name)
    rates = own["train"]["lr"]
    return {"method": own["method"], "sampler": own["sampler"], "train.lr": rates}


def load(folder: Path, values: dict[str, Any]) -> Any:
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(values))
    return load_params(path)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("method.name", "rmc", r"unknown method 'rmc' \(did you mean 'rcm'\?\); available: .*rcm, .*scm"),
        ("method.name", "dmd", r"unknown method 'dmd' \(did you mean 'dmd2'\?\)"),
        ("method.name", None, r"method\.name = None; name one of .*rcm, .*scm"),
        ("method.name", 3, r"method\.name = 3; name one of"),
        ("method.name", "../rcm", "unknown method '../rcm'"),
        ("teacher.family", "wam", r"unknown family 'wam' \(did you mean 'wan'\?\); available: cosmos, .*wan"),
        ("teacher.family", "mini", "unknown family 'mini'"),
        (
            "teacher.data",
            "digit",
            r"unknown data set 'digit' \(did you mean 'digits'\?\); available: digits, mov",
        ),
        ("method.warmup", "long", r"method: warmup = 'long': input should be a valid integer"),
        ("method.warm_up", 3, r"method: unknown key 'warm_up' \(did you mean 'warmup'\?\)"),
        ("method", None, "method = None: input should be an object"),
        ("train.batch", 9, r"train\.batch 9 does not divide into 2 workers x 2 accumulation steps"),
        ("teacher.mini.workers", 3, r"teacher\.mini\.batch 16 does not divide into 3 workers"),
        (
            "train.lr_decay_from",
            10,
            r"train\.lr_decay_from = 10 \(inverse square root\) both decay the learning rate; set train\.lr_decay to",
        ),
        ("train.lr_decay_from", 0, r"train\.lr_decay_from = 0: input should be greater than or equal to 1"),
        (
            "select.steps",
            [1, 5],
            r"yaml: select\.steps: 5 steps asked for, but sampler\.times has lists for 1, 2, 3, 4; ask for one",
        ),
        ("evaluate.steps", [8], r"yaml: evaluate\.steps: 8 steps asked for, but sampler\.times has"),
        (
            "sampler.times",
            [[0.6, 1.0, 1.3]],
            r"yaml: sampler\.times has \[0.6, 1.0, 1.3\]; expected angles that descend",
        ),
        ("sampler.times", [[1.3, 1.3]], r"yaml: sampler\.times has \[1.3, 1.3\]; expected"),
        ("sampler.times", [], r"yaml: sampler\.times is empty"),
        ("sampler.times", [[1.5708]], r"yaml: select\.steps: 2 steps asked for"),
        ("sampler.times", [1.5708, 1.3], r"yaml: sampler\.times\.0 = 1.5708: input should be a valid array"),
        (
            "sampler.kind",
            "euler",
            r"method\.simulation = 'renoise', but sampler\.kind = 'euler': .*; set both to the same",
        ),
        ("method.simulation", "euler", r"method\.simulation = 'euler', but sampler\.kind = 'renoise'"),
        (
            "method.student_every",
            1,
            r"student_every = 1 leaves no iteration for the fake score; set student_every to 2 or",
        ),
        (
            "train.health.probe_samples",
            4000,
            r"probe_samples = 4000 is more than half of trajectories\.samples = \d+; lower it, raise traj",
        ),
        (
            "method.matching_time_min",
            0.02,
            r"only one of matching_time_min and matching_time_max is set; set both or neither",
        ),
        ("method.simulation_start", 1.6, r"simulation_start = 1\.6: .*at most pi/2, written 1\.5708"),
        ("train.parallel.replicas", 3, r"2 workers do not divide by train\.parallel\.replicas = 3; change"),
        ("train.min_workers", 3, r"train\.min_workers = 3 is more than train\.workers = 2; lower it, or set"),
        ("train.parallel.context", 4, r"2 workers do not divide by train\.parallel\.context = 4; change"),
        ("train.parallel.precision", "fp8", r"precision = 'fp8': input should be 'float32' or 'bfloat16'"),
        (
            "train.parallel.offload",
            ["student"],
            r"offload\.0 = 'student': input should be 'teacher' or 'fake'",
        ),
        ("train.parallel.checkpointing", "all", r"input should be 'none', 'blocks' or 'matmuls'"),
        (
            "trajectories.source",
            {"folder": "mine", "fsp": 16},
            r"unknown key 'trajectories\.source\.fsp' \(did you mean 'fps'\?\); known here: folder, endpoint, fps",
        ),
        ("trajectories.source", "mine", r"trajectories\.source = 'mine': input should be an object"),
        (
            "trajectories.source",
            {"folder": "mine", "fps": 0},
            r"source\.fps = 0: input should be greater than 0",
        ),
        ("sampler.kind", "ddim", r"yaml: sampler\.kind = 'ddim': input should be 'renoise' or 'euler'"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    tmp_path: Path, values: dict[str, Any], path: str, value: Any, said: str
) -> None:
    values["train"] |= {"workers": 2, "accumulate": 2}
    assert load(tmp_path, copy.deepcopy(values))
    *sections, key = path.split(".")
    section = values
    for name in sections:
        section = section[name]
    section[key] = value
    with pytest.raises(InputError, match=said) as caught:
        load(tmp_path, values)
    assert "\n" not in str(caught.value)


def test_only_networks_that_are_there_and_not_the_student_lie_in_the_machines_memory(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    values["train"]["parallel"]["offload"] = ["teacher", "fake"]
    assert load(tmp_path, values)
    scm = {"method": preset("scm")["method"], "sampler": preset("scm")["sampler"]}
    with pytest.raises(InputError, match=r"offload names fake, which the method does not have; remove it"):
        load(tmp_path, change(copy.deepcopy(values), scm))
    cdm = {"method": preset("cdm")["method"], "sampler": preset("cdm")["sampler"]}
    with pytest.raises(
        InputError, match=r"offload names fake, which the method moves towards another network"
    ):
        load(tmp_path, change(copy.deepcopy(values), cdm))
    values["train"]["lora"] = {"rank": 4, "alpha": 4, "targets": None}
    with pytest.raises(
        InputError, match=r"names teacher, fake, whose weights train\.lora shares with the student"
    ):
        load(tmp_path, values)


def test_a_method_with_steps_of_its_own_is_sampled_by_them(tmp_path: Path, values: dict[str, Any]) -> None:
    cdm = {"method": preset("cdm")["method"], "sampler": preset("cdm")["sampler"]}
    change(values, copy.deepcopy(cdm))
    assert load(tmp_path, copy.deepcopy(values))
    values["sampler"]["kind"] = "renoise"
    with pytest.raises(
        InputError,
        match=r"the method simulates by 'euler', but sampler\.kind = 'renoise': .* to euler$",
    ):
        load(tmp_path, values)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"train.candidate_every": 13},
            r"train\.iterations = 12 ends before train\.candidate_every = 13 can take effect; train longer, or"
            r" also give -S train\.candidate_every=12$",
        ),
        (
            {"train.lr_decay": False, "train.lr_decay_from": 13},
            r"lr_decay_from = 13 .* -S train\.lr_decay_from=2$",
        ),
        ({"method.warmup": 13}, r"method\.warmup = 13 .* -S method\.warmup=2$"),
        ({"train.candidate_every": 13, "method.warmup": 12}, r"every=12 -S method\.warmup=2$"),
        (
            {"train.candidate_every": 140, "method.warmup": 100},
            r"before train\.candidate_every = 140, method\.warmup = 100 can .*"
            r" -S train\.candidate_every=12 -S method\.warmup=2$",
        ),
        (preset_method("ect"), r"method\.stage_every = 75 .* -S method\.stage_every=2$"),
        (
            preset_method("tbcm") | {"method.tangent_anneal_start": 13, "method.warmup": 2},
            r"-S method\.tangent_anneal_start=2$",
        ),
    ],
)
def test_a_training_that_ends_before_a_setting_takes_effect_is_told_what_else_to_set(
    tmp_path: Path, values: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said) as caught:
        load(tmp_path, change(copy.deepcopy(values), changes))
    overrides = str(caught.value).split(" also give ")[1].replace("-S ", "").split()
    fitting = {key: int(value) for key, _, value in (override.partition("=") for override in overrides)}
    assert load(tmp_path, change(copy.deepcopy(values), changes | fitting))


def test_what_the_last_iteration_does_anyway_may_be_further_apart(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    """Checkpoints, log lines, probes; warm-ups may end with the training, that of the rate later."""
    late = {
        "method.warmup": 12,
        "train.checkpoint_every": 100,
        "train.log_every": 100,
        "train.health.probe_every": 100,
    }
    assert load(tmp_path, change(values, late | {"train.lr_warmup": 100}))


def test_a_loss_that_mixes_samples_sees_two_at_once(tmp_path: Path, values: dict[str, Any]) -> None:
    own = preset("sana_sprint")
    change(values, copy.deepcopy({k: own[k] for k in ("method", "sampler")}))
    values["method"] |= {"blocks": [0, 1], "warmup": 4}
    values["trajectories"]["real"] = True
    values["train"]["lr"] = {"student": 1e-3, "heads": 1e-3}
    values["train"] |= {"workers": 2, "batch": 8, "accumulate": 2}
    assert load(tmp_path, copy.deepcopy(values))
    values["train"]["accumulate"] = 4
    with pytest.raises(InputError, match=r"train\.batch = 8 in 8 parts .* is 1 sample each, but .* mixes 2"):
        load(tmp_path, copy.deepcopy(values))
    values["method"]["misaligned"] = False
    assert load(tmp_path, values)


def test_routes_and_real_data_of_a_source(tmp_path: Path, values: dict[str, Any]) -> None:
    """Only the teacher generates routes. The user states whether a source is real data, and its number of samples."""
    values["trajectories"] |= {"source": {"folder": "mine"}, "samples": 1}
    assert load(tmp_path, values)
    with pytest.raises(
        InputError,
        match=r"trajectories\.keep_trajectories is true, but the samples of trajectories\.source have no",
    ):
        load(tmp_path, change(copy.deepcopy(values), {"trajectories.keep_trajectories": True}))
    own = change(
        copy.deepcopy(values), {"method": preset("tbcm")["method"], "sampler": preset("tbcm")["sampler"]}
    )
    with pytest.raises(
        InputError, match=r"the method needs routes, which the samples of trajectories\.source do not"
    ):
        load(tmp_path, change(own, {"method.trajectories": "recorded", "train.lr": {"student": 1e-4}}))
    gan = {"method": preset("sana_sprint")["method"], "train.lr": {"student": 1e-4, "heads": 1e-4}}
    gan |= {"method.blocks": [0, 1], "method.warmup": 4, "sampler": preset("sana_sprint")["sampler"]}
    with pytest.raises(
        InputError, match=r"needs real, but .* provides condition, x0; set trajectories\.real to true"
    ):
        load(tmp_path, change(copy.deepcopy(values), gan))
    assert load(tmp_path, change(copy.deepcopy(values), gan | {"trajectories.real": True}))


def test_a_training_goes_on_with_fewer_workers_if_they_divide_its_parts(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    values["train"] |= {"workers": 4, "accumulate": 2, "min_workers": 2}
    with pytest.raises(
        InputError, match=r"yaml: 3 workers, which train\.min_workers allows, do not divide the 4 x 2"
    ):
        load(tmp_path, values)
    values["train"] |= {"batch": 24, "accumulate": 3}
    train = load(tmp_path, values).train
    assert [settings_of(train, world).accumulate for world in worlds(train, "")] == [6, 4, 3]
    assert {settings_of(train, world).per_rank(world) for world in worlds(train, "")} == {2}


def test_a_missing_method_key_is_named(tmp_path: Path, values: dict[str, Any]) -> None:
    del values["method"]["dmd_weight"]
    with pytest.raises(InputError, match="method: key 'dmd_weight' is missing"):
        load(tmp_path, values)


def test_the_file_is_missing_or_no_yaml_or_empty(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    with pytest.raises(InputError, match=r"params\.yaml does not exist; run from the project root"):
        load_params(path)
    path.write_text("train: [1, 2\nselect: 3")
    with pytest.raises(InputError, match=r"params\.yaml is not YAML"):
        load_params(path)
    path.write_text("")
    with pytest.raises(InputError, match="expected keys and values, got NoneType"):
        load_params(path)
    path.write_bytes(b"\xff\xfe\x00broken")
    with pytest.raises(InputError, match=r"params\.yaml is not"):
        load_params(path)
