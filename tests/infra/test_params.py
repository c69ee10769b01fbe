"""params.yaml is composed as by DVC, and bad overrides do not change it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from presets import PRESETS, PUBLISHED, preset

from infra.params import compose, load, teacher_overrides
from rcm_core.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    shutil.copy2(ROOT / "params.yaml", tmp_path / "params.yaml")
    return tmp_path


def test_the_committed_params_are_conf_without_overrides(project: Path) -> None:
    committed = load(project)
    assert compose(project, []) == committed


def test_overrides_change_what_they_name(project: Path) -> None:
    params = compose(
        project, ["method=scm", "train.iterations=7", "train.candidate_every=7", "method.warmup=1"]
    )
    assert (params.method["name"], params.train.iterations) == ("scm", 7)
    assert load(project) == params


def test_a_source_of_samples_is_given_on_the_line(project: Path) -> None:
    """The commands are those of docs/data.md."""
    assert load(project).trajectories.source is None
    source = "trajectories.source={folder: s3://bucket/clips, endpoint: https://s3.example.org, fps: 16}"
    method = ["method=scm", "method.learn_from=data", "trajectories.real=true"]
    found = compose(project, [source, *method]).trajectories
    assert found.source is not None
    assert found.source.model_dump() == {
        "folder": "s3://bucket/clips",
        "endpoint": "https://s3.example.org",
        "fps": 16,
    }
    pictures = "trajectories.source={folder: /data/my pictures}"
    given = ["teacher=sana-1.6b", "teacher.source=/models/sana", "judge.network=/models/siglip"]
    found = compose(project, [*given, pictures, "method=sana_sprint-1.6b"]).trajectories
    assert (found.source is not None, found.real) == (True, True)
    given = ["teacher=wan-1.3b", "teacher.source=/models/wan", "judge.network=/models/clip"]
    latents = "trajectories.source={folder: s3://bucket/latents}"
    assert compose(project, [*given, latents, "method=rcm-wan-1.3b"]).trajectories.source is not None


@pytest.mark.parametrize("name", PRESETS)
def test_what_a_preset_says_is_composed(project: Path, name: str) -> None:
    """Nothing that conf/config.yaml says for all methods overrides a method's own; the whole passes every check that
    is made before any work: data, rates, sampler."""
    said = {key: value for key, value in _leaves(preset(name)) if not key.startswith("train.lr.")}
    whole = [] if name not in PUBLISHED else ["teacher=folder", "teacher.source=/teacher"]
    params = compose(project, [*whole, f"method={name}"])
    composed = dict(_leaves(params.model_dump(mode="json")))
    assert said == {key: composed[key] for key in said}
    assert params.train.iterations >= params.train.candidate_every


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@pytest.mark.parametrize("method", ["dmd2", "rcm", "scm"])
def test_a_sampler_comes_with_the_method_and_its_lists_can_be_overridden(project: Path, method: str) -> None:
    given = compose(project, [f"method={method}"]).sampler
    pure = 1.5708
    assert given.times == ((pure,), (pure, 1.3), (pure, 1.3, 1.0), (pure, 1.3, 1.0, 0.6))
    steps = ["select.steps=[1,2]", "evaluate.steps=[2]"]
    times = "sampler.times=[[1.5708],[1.5708,1.1]]"
    simulated = [] if method == "scm" else ["method.simulation=euler"]  # as the student is sampled
    params = compose(project, [f"method={method}", times, "sampler.kind=euler", *simulated, *steps])
    assert (params.sampler.kind, params.sampler.times) == ("euler", ((1.5708,), (1.5708, 1.1)))
    assert load(project) == params


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("method=smc", r"unknown method 'smc' \(did you mean 'scm'\?\); available: .*rcm"),
        ("teacher=minni", r"unknown teacher 'minni' \(did you mean 'mini'\?\)"),
        ("train.iterations=many", "train.iterations = 'many'"),
        ("train.iteration=7", "do not fit conf/"),
        ("sampler.times=[[1.5708],[1.0,1.3]]", r"sampler\.times has \[1\.0, 1\.3\]; expected angles that"),
        ("sampler.times=[[1.5708]]", r"select\.steps: 2 steps asked for, but sampler\.times has lists for 1"),
        ("select.angles=[1.3]", "do not fit conf/"),
        (
            "sampler.kind=euler",
            r"method\.simulation = 'renoise', but sampler\.kind = 'euler'.*; set both to the same",
        ),
        ("nonsense", "override 'nonsense': expected key=value"),
        (
            "method=sana_sprint method.blocks=[]",
            "blocks is empty; name blocks of the teacher, or set adversarial_w",
        ),
        (
            "teacher=mini-train method=sana_sprint method.blocks=[1,40]",
            r"needs blocks \[1, 40\], but the teacher has 4 \(from 0\)",
        ),
        (
            "teacher=mini-train method=dmd2-gan method.gan_blocks=[9]",
            r"needs blocks \[9\], but the teacher has 4",
        ),
        (
            "method=scm method.guidance=[4,5] method.guidance_at=50",
            "guidance_at = 50 is outside the trained scales",
        ),
        (
            "method=tbcm method.trajectories=recorded method.pairs=200 trajectories.keep_trajectories=true",
            r"needs 201 points of a recorded trajectory, but trajectories have teacher\.steps = 50; lower method",
        ),
    ],
)
def test_a_bad_override_is_one_sentence_and_writes_nothing(
    project: Path, override: str, sentence: str
) -> None:
    before = (project / "params.yaml").read_bytes()
    with pytest.raises(InputError, match=sentence) as caught:
        compose(project, override.split())
    assert "\n" not in str(caught.value)
    assert (project / "params.yaml").read_bytes() == before
    assert sorted(p.name for p in project.iterdir()) == ["conf", "params.yaml"]


def test_a_teacher_is_a_name_or_a_place(project: Path) -> None:
    place, endpoint = "s3://bucket/t", "http://127.0.0.1:9000"
    assert teacher_overrides(project, "mini", None) == ["teacher=mini"]
    assert teacher_overrides(project, place, endpoint)[-1] == "teacher.hash=null"  # of the shipped one
    compose(project, ["teacher=mini-train"])
    assert teacher_overrides(project, "mini", None) == ["teacher=mini"]
    assert teacher_overrides(project, place, None) == [f"teacher.source={place}"]
    assert teacher_overrides(project, place, endpoint) == [
        f"teacher.source={place}",
        f"teacher.endpoint={endpoint}",
    ]


def test_the_teacher_that_params_name_changes_nothing(project: Path) -> None:
    place, endpoint = "s3://bucket/t", "http://127.0.0.1:9000"
    assert teacher_overrides(project, None, None) == []
    compose(project, teacher_overrides(project, place, endpoint))
    assert teacher_overrides(project, place, endpoint) == []
    assert teacher_overrides(project, place, "") == []
    assert teacher_overrides(project, place, "http://127.0.0.1:9001") != []


@pytest.mark.parametrize(
    ("override", "new"),
    [
        ("method.calm_start=5", "method.tangent_anneal_start"),
        ("+method.merge=0.9", "method.fake_score_ema_rate"),
        ("trajectories.routes=true", "trajectories.keep_trajectories"),
        ("merge=1", "method.fake_score_ema_rate"),
    ],
)
def test_an_old_key_in_an_override_is_answered_with_the_new_one(
    project: Path, override: str, new: str
) -> None:
    before = (project / "params.yaml").read_bytes()
    with pytest.raises(InputError, match=rf"is now called {re.escape(new)}; rename it$"):
        compose(project, [override])
    assert (project / "params.yaml").read_bytes() == before


def test_a_preset_of_one_s_own_is_named_in_the_sentence(project: Path) -> None:
    group = project / "conf/method"
    (group / "old.yaml").write_text("# @package _global_\ndefaults: [cdm, _self_]\nmethod:\n  merge: 0.1\n")
    with pytest.raises(
        InputError, match=r"^conf/ with the overrides: method: unknown key 'merge'.*'fake_score_ema_rate'"
    ):
        compose(project, ["method=old"])
    (group / "orphan.yaml").write_text("# @package _global_\ndefaults: [rcm-nope, _self_]\n")
    with pytest.raises(
        InputError,
        match=r"conf/method/orphan\.yaml inherits from unknown method 'rcm-nope' \(did you mean 'rcm-mini'\?\)",
    ):
        compose(project, ["method=orphan"])
    (group / "loop.yaml").write_text("# @package _global_\ndefaults: [orphan, _self_]\n")
    (group / "orphan.yaml").write_text("# @package _global_\ndefaults: [loop, _self_]\n")
    with pytest.raises(
        InputError, match=r"conf/method/loop\.yaml inherits from 'orphan', which inherits from it"
    ):
        compose(project, ["method=orphan"])
