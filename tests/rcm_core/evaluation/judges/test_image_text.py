"""The judge for arbitrary prompts, with a small CLIP trained on four colours."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_clip import COLOURS, build_clip, flat

from rcm_core.config.sections import JudgeSection
from rcm_core.errors import InputError
from rcm_core.evaluation.bootstrap import Bootstrap
from rcm_core.evaluation.judges.build import judge_of
from rcm_core.evaluation.judges.image_text import OpenJudge, Preparation
from rcm_core.evaluation.metrics.subject_consistency import subject_consistency
from rcm_core.evaluation.scores import score

EACH = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def judge(folder: Path) -> OpenJudge:
    found = judge_of(JudgeSection(network=str(folder)), "open", Path(), Path("cache"), "cpu")
    assert isinstance(found, OpenJudge)
    return found


def prompts(each: int) -> list[str]:
    return [f"a {colour} picture" for colour in COLOURS for _ in range(each)]


def pictures(each: int, frames: int = 1) -> torch.Tensor:
    return torch.cat([flat(colour, each, frames) for colour in COLOURS])


def test_a_sample_is_right_if_its_own_prompt_is_the_likeliest(judge: OpenJudge) -> None:
    looked, asked = judge.look(pictures(EACH)), prompts(EACH)
    assert judge.correct(looked, asked).all()
    assert not judge.correct(looked, asked[EACH:] + asked[:EACH]).any()
    right = judge.observe(looked, asked)["similarity"]
    wrong = judge.observe(looked, asked[EACH:] + asked[:EACH])["similarity"]
    assert right.min() > wrong.max()
    assert right.min() >= 0
    assert right.max() <= 1


def test_what_it_keeps_of_a_sample_does_not_depend_on_the_others(judge: OpenJudge) -> None:
    whole = judge.look(pictures(EACH, 3))
    assert whole.shape == (4 * EACH, 3, 8)
    # another batch may take another matrix kernel: equal to float32 rounding
    torch.testing.assert_close(judge.look(pictures(EACH, 3)[5:9]), whole[5:9], rtol=1e-4, atol=1e-5)


def test_of_long_clips_eight_frames_are_seen_the_first_and_the_last_among_them(judge: OpenJudge) -> None:
    clip = torch.cat([flat("red", 1, 20), flat("blue", 1, 1)], dim=2)
    looked = judge.look(clip)
    assert looked.shape[1] == 8
    torch.testing.assert_close(looked[:, -1:], judge.look(clip[:, :, -1:]), rtol=1e-4, atol=1e-5)
    still = judge.observe(judge.look(flat("red", 1, 21)), ["a red picture"])["subjects"]
    changing = judge.observe(looked, ["a red picture"])["subjects"]
    assert subject_consistency(changing) < subject_consistency(still)


def test_its_row_has_what_needs_no_real_images(judge: OpenJudge) -> None:
    looked = judge.look(pictures(EACH))
    other = judge.features(judge.look(pictures(EACH).flip(-1)))
    groups = looked.reshape(4, EACH, *looked.shape[1:])
    row = score(looked, prompts(EACH), judge, judge.real_features("test"), other, groups, Bootstrap(20, 0))
    assert set(row) == {"frechet_teacher", "accuracy", "text_similarity", "diversity"}
    assert row["accuracy"]["value"] == 1
    far = score(looked, prompts(EACH), judge, None, other[:EACH], groups, Bootstrap(20, 0))
    assert far["frechet_teacher"]["value"] > row["frechet_teacher"]["high"]


def test_pictures_are_prepared_as_transformers_own_processor_does(folder: Path) -> None:
    from transformers import CLIPImageProcessorPil

    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, (6, 9, 3), dtype=np.uint8))
    image = coarse.resize((90, 60), Image.Resampling.BICUBIC)
    wanted = CLIPImageProcessorPil.from_pretrained(folder)(image, return_tensors="pt")["pixel_values"]
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    found = Preparation.read(folder)(pixels)
    assert found.shape == wanted.shape
    # theirs rounds to 8 bits after resizing: one level is 2 / 255 here
    assert (found - wanted).abs().max() < 2.1 / 255


def test_siglip_s_squares_are_not_cropped(folder: Path, tmp_path: Path) -> None:
    config = {"size": {"height": 16, "width": 16}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    left = torch.zeros(1, 3, 20, 40)
    left[..., :20] = 1
    found = Preparation.read(tmp_path)(left)
    assert found.shape == (1, 3, 16, 16)
    assert found[..., 0].min() > 0.9
    assert found[..., -1].max() < -0.9


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("tokenizer_config.json", r"has no tokenizer_config\.json; give a CLIP or SigLIP"),
        ("text", "holds a clip, which is not an image-text network; give a CLIP or SigLIP"),
        ("nowhere", "is not an existing folder; give a folder or s3:// prefix"),
    ],
)
def test_what_is_no_judge_is_refused(folder: Path, tmp_path: Path, change: str, said: str) -> None:
    place = tmp_path / "judge"
    if change != "nowhere":
        shutil.copytree(folder, place)
    if change == "text":
        config = json.loads((place / "config.json").read_text())
        del config["vision_config"]
        (place / "config.json").write_text(json.dumps(config))
    elif change != "nowhere":
        (place / change).unlink()
    with pytest.raises(InputError, match=said):
        judge_of(JudgeSection(network="judge"), "open", tmp_path, tmp_path / "cache", "cpu")


def test_samples_that_are_no_pixels_are_refused(judge: OpenJudge) -> None:
    with pytest.raises(InputError, match="outside"):
        judge.look(2 * pictures(1))
    with pytest.raises(InputError, match="samples have 1 channels, but the judge needs RGB"):
        judge.look(pictures(1)[:, :1])
