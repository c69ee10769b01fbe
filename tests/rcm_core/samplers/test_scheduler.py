"""The scheduler inside a stock diffusers pipeline, saved and loaded, agrees with our sampler."""

import json
import math

import pytest
import torch
from diffusers import DiffusionPipeline, WanPipeline
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from rcm_core.diffusion.parameterisation import RectifiedFlow
from rcm_core.errors import InputError
from rcm_core.pipelines.mini import build_network
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


def drawn(pipeline, prompts, steps, **given):
    side = 4 * pipeline.vae_scale_factor_spatial
    return pipeline(
        prompts, num_inference_steps=steps, guidance_scale=1.0, height=side, width=side, num_frames=1,
        output_type="latent", max_sequence_length=LENGTH, **given,
    ).frames  # fmt: skip


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_the_pipeline_s_generator_fixes_the_sample(loaded):
    loaded.scheduler.set_generator(None)
    first, again = (drawn(loaded, "a seven", 4, generator=seeded(0)[0]) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, drawn(loaded, "a seven", 4, generator=seeded(1)[0]))
    torch.manual_seed(5)
    first = drawn(loaded, "a seven", 2)
    torch.manual_seed(5)
    assert torch.equal(first, drawn(loaded, "a seven", 2))


def test_a_list_of_generators_fixes_each_sample_whatever_is_beside_it(loaded):
    loaded.scheduler.set_generator(None)
    both = drawn(loaded, ["a seven", "a"], 4, generator=seeded(3, 4))
    alone = drawn(loaded, ["a"], 4, generator=seeded(4))
    torch.testing.assert_close(both[1:], alone, atol=1e-5, rtol=1e-5)
    twice = drawn(loaded, "a", 4, generator=seeded(4, 7), num_videos_per_prompt=2)
    torch.testing.assert_close(twice[:1], alone, atol=1e-5, rtol=1e-5)
    assert not torch.equal(twice[0], twice[1])


def test_noise_that_no_generator_gives_is_new_at_every_step_and_in_every_sample():
    scheduler = FewStepScheduler("renoise", [ANGLES])
    state = torch.randn(2, 1, 1, 64, 64, generator=seeded(0)[0])
    noise = [state]
    for i, time in enumerate(scheduler.timesteps[:-1]):
        scheduled = scheduler.step(torch.zeros_like(state), time, torch.zeros_like(state) if i else state)
        kept = (1 - scheduler.sigmas[i + 1]) * state if i == 0 else 0
        noise.append((scheduled.prev_sample - kept) / scheduler.sigmas[i + 1])
    every = torch.cat(noise).flatten(1)
    # 4,096 numbers: correlations of independent noise are below 0.08 at five deviations
    assert (torch.corrcoef(every) - torch.eye(8)).abs().max() < 0.08
    torch.testing.assert_close(every.std(1), torch.ones(8), atol=0.06, rtol=0)


def test_generators_that_step_is_given_come_first():
    scheduler = FewStepScheduler("renoise", TIMES)
    scheduler.set_timesteps(2)
    scheduler.set_generator(seeded(8)[0])
    state = torch.zeros(2, 1, 1, 2, 2)
    found = scheduler.step(state, scheduler.timesteps[0], state, generator=seeded(3, 4)).prev_sample
    expected = torch.cat([torch.randn(1, 1, 1, 2, 2, generator=rng) for rng in seeded(3, 4)])
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
