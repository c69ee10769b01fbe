"""The scheduler inside a stock diffusers pipeline, saved and loaded, against the sampler it stands for."""

import json
import math

import pytest
import torch
from diffusers import DiffusionPipeline, WanPipeline
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from rcm_core.errors import InputError
from rcm_core.mini import build_network
from rcm_core.parameterisation import RectifiedFlow
from rcm_core.samplers.few_step import Sampler, sample_student
from rcm_core.samplers.scheduler import FewStepScheduler

ANGLES = [math.pi / 2, 1.3, 1.0, 0.6]
TIMES = [[1.5], [math.pi / 2, 1.3], ANGLES, [1.4, 1.3, 0.2]]
LENGTH = 8


def tiny_pipeline(kind: str) -> WanPipeline:
    torch.manual_seed(0)
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "seven": 4}
    raw = Tokenizer(WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = Whitespace()
    config = UMT5Config(
        vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    transformer = build_network(channels=1, heads=2, head_dim=12, layers=1, ffn_dim=16, text_dim=8)
    return WanPipeline(
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
        ),
        text_encoder=UMT5EncoderModel(config).eval(),
        transformer=transformer.eval(),
        vae=None,
        scheduler=FewStepScheduler(kind, TIMES),
    )


@pytest.fixture(scope="module", params=["renoise", "euler"])
def loaded(request, tmp_path_factory) -> WanPipeline:
    folder = tmp_path_factory.mktemp("pipeline")
    tiny_pipeline(request.param).save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    assert index["scheduler"] == ["rcm_core.samplers.scheduler", "FewStepScheduler"]
    pipeline = DiffusionPipeline.from_pretrained(folder, vae=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_e28_loaded_pipeline_samples_exactly_like_sample_student(loaded, steps):
    prompts = ["a seven", "a"]
    source = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 1, 1, 4, 4, generator=source)
    loaded.scheduler.set_generator(source)
    found = loaded(
        prompts,
        latents=latents,
        num_inference_steps=steps,
        guidance_scale=1.0,
        height=4 * loaded.vae_scale_factor_spatial,
        width=4 * loaded.vae_scale_factor_spatial,
        num_frames=1,
        output_type="latent",
        max_sequence_length=LENGTH,
    ).frames
    text, _ = loaded.encode_prompt(prompts, do_classifier_free_guidance=False, max_sequence_length=LENGTH)
    flow = RectifiedFlow()

    def velocity(x, t, condition):
        state, time = flow.to_network(x, t)
        output = loaded.transformer(state, time, condition["text"], return_dict=False)[0]
        return flow.velocity(x, t, output)

    stepwise = torch.Generator().manual_seed(1)
    kind, angles = loaded.scheduler.config.kind, next(a for a in TIMES if len(a) == steps)
    draws = Sampler.of(kind, TIMES).draws(steps)
    noise = torch.stack([torch.randn(2, 1, 1, 4, 4, generator=stepwise) for _ in range(draws)])
    expected = sample_student(velocity, noise, {"text": text}, angles, kind)
    # the same arithmetic in another order: float32 rounding through one small transformer per step
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


def test_without_a_generator_the_global_stream_is_used():
    scheduler = FewStepScheduler("renoise", TIMES)
    scheduler.set_timesteps(2)
    state = torch.zeros(1, 1, 1, 2, 2)
    torch.manual_seed(3)
    expected = torch.randn(1, 1, 1, 2, 2)
    torch.manual_seed(3)
    found = scheduler.step(torch.zeros_like(state), scheduler.timesteps[0], state).prev_sample
    tau = math.sin(1.3) / (math.sin(1.3) + math.cos(1.3))
    torch.testing.assert_close(found, tau * expected)


def test_timesteps_are_the_network_times_of_the_angles():
    scheduler = FewStepScheduler("renoise", TIMES)
    angles = torch.tensor(ANGLES, dtype=torch.float64)
    _, times = RectifiedFlow().to_network(torch.zeros(4, 1), angles)
    assert torch.equal(scheduler.timesteps, times.float())
    assert scheduler.sigmas[0] == 1
    assert scheduler.sigmas[-1] == 0
    assert scheduler.order == 1
    assert scheduler.init_noise_sigma == 1


def test_configuration_survives_saving(tmp_path):
    FewStepScheduler("euler", TIMES).save_pretrained(tmp_path)
    config = FewStepScheduler.from_pretrained(tmp_path).config
    assert (config.kind, [list(angles) for angles in config.times]) == ("euler", TIMES)


@pytest.mark.parametrize(
    ("kind", "times", "message"),
    [
        ("renoise", (), "times is empty"),
        ("renoise", [[math.pi / 2, 1.0, 1.2]], "descend"),
        ("heun", TIMES, "expected renoise or euler"),
    ],
)
def test_bad_times_are_refused(kind, times, message):
    with pytest.raises(InputError, match=message):
        FewStepScheduler(kind, times)


@pytest.mark.parametrize("steps", [0, 5])
def test_steps_without_times_are_refused(steps):
    with pytest.raises(InputError, match=rf"{steps} steps asked for, .* has lists for 1, 2, 3, 4"):
        FewStepScheduler("renoise", TIMES).set_timesteps(steps)
