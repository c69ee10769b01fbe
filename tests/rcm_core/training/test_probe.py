"""Probes: their values, and that they do not change the networks."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from loops import CPU, QUIET, equal, healthy, probe, trainer, weights
from processes import on_ranks
from ranks import probe_on

from rcm_core.data.loaders import TrajectorySource
from rcm_core.data.trajectory_store import Store
from rcm_core.errors import InputError
from rcm_core.networks.denoiser import load_denoiser
from rcm_core.registry import find_family
from rcm_core.rng import generator
from rcm_core.training import probe as probing
from rcm_core.training.ema import PowerEMA
from rcm_core.training.probe import Probe, drift, score


def normal(count: int, *address: object, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(count, 1, 1, 1, 1, generator=generator(*address), dtype=torch.float64) + shift  # type: ignore[arg-type]


def mean_distance(shift: float) -> float:
    """Return E|X - Y| of N(0, 1) and N(shift, 1): the mean of a folded normal."""
    return 2 / math.sqrt(math.pi) * math.exp(-(shift**2) / 4) + shift * math.erf(shift / 2)


@pytest.mark.parametrize("shift", [0.0, 0.3, 2.0])
def test_e70_the_score_is_the_energy_distance_of_two_normals(shift: float) -> None:
    expected = 2 * (mean_distance(shift) - mean_distance(0)) / mean_distance(0)
    found = [score(normal(16, "x", i, shift=shift), normal(16, "y", i)) for i in range(600)]
    values = torch.tensor(found, dtype=torch.float64)
    # the denominator's own noise, relative variance about 1/n, biases a single ratio by up to a tenth of its value
    assert abs(float(values.mean()) - expected) < 0.1 * expected + 4 * float(values.std()) / math.sqrt(
        len(values)
    )
    if not shift:
        assert (
            float(values.min()) < 0 < float(values.max())
        )  # unbiased: of either sign where both are the same


def test_e70_is_zero_for_equal_samples_and_knows_no_unit_or_order() -> None:
    x, y = (torch.randn(12, 2, 1, 3, 3, generator=generator(name)) for name in "xy")
    assert score(x, x) == 0.0
    order = torch.randperm(12, generator=generator("order"))
    # float64 sums in another order
    assert score(x[order], y[order]) == pytest.approx(score(x, y), rel=1e-12)
    assert score(8 * x + 4, 8 * y + 4) == pytest.approx(score(x, y), rel=1e-6)  # float32 inputs
    assert score(x, y) != score(y, x)  # the unit is the reference's


def test_e70_takes_long_latents_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = (torch.randn(6, 2, 1, 5, 5, generator=generator(name)) for name in "xy")
    whole = score(x, y)
    monkeypatch.setattr(probing, "BLOCK", 7)
    assert score(x, y) == pytest.approx(whole, rel=1e-12)


def test_e71_is_in_units_of_the_teacher_s_contrast() -> None:
    held = 3 * torch.randn(64, 1, 1, 8, 8, generator=generator("held"))
    unit = float(held.double().std())
    brighter, stronger, size = drift(held + 1.5, held)
    assert brighter == pytest.approx(1.5 / unit, rel=1e-5)  # float32 inputs
    assert stronger == pytest.approx(0, abs=1e-6)
    assert size == brighter
    brighter, stronger, size = drift(0.5 * (held - held.mean()) + held.mean(), held)
    assert brighter == pytest.approx(0, abs=1e-6)
    assert stronger == pytest.approx(-0.5, rel=1e-5)
    assert size == -stronger
    assert drift(held, held) == (0, 0, 0)


def test_e71_channels_that_change_against_each_other_do_not_cancel() -> None:
    held = torch.randn(64, 2, 1, 8, 8, generator=generator("held"))
    shift = torch.tensor([1.0, -1.0]).view(1, 2, 1, 1, 1)
    brighter, _, size = drift(held + shift, held)
    assert brighter == pytest.approx(0, abs=0.01)  # the channels' means differ a little from each other
    assert size == pytest.approx(1, abs=0.05)  # in units of a sample deviation


def test_a_reading_is_a_function_of_weights_and_seed(folder: Path) -> None:
    student = load_denoiser(folder, find_family("wan")).train()
    ema = PowerEMA(student, (0.05, 0.1))
    before = {k: v.clone() for k, v in student.state_dict().items()}
    streams = torch.get_rng_state()
    one, two = (probe().read(4, student, ema) for _ in range(2))
    assert one == two
    assert torch.equal(streams, torch.get_rng_state())  # nothing is drawn from a global generator
    assert student.training
    assert equal(before, student.state_dict())
    other = Probe(probe().held, 1, 2, CPU, 1).read(4, student, ema)
    assert other.score != one.score


def test_it_is_the_shortest_average_that_is_probed(folder: Path) -> None:
    student = load_denoiser(folder, find_family("wan"))
    ema = PowerEMA(student, (0.1, 0.05))
    at_first = probe().read(0, student, ema)
    with torch.no_grad():
        for p in student.parameters():
            p.mul_(1.5)
        assert probe().read(0, student, ema) == at_first  # not the raw weights
        for name, p in student.named_parameters():
            ema.weights(0.1)[name].copy_(p)
        assert probe().read(0, student, ema) == at_first
        for name, p in student.named_parameters():
            ema.weights(0.05)[name].copy_(p)
    assert probe().read(0, student, ema) != at_first


def test_calls_of_any_size_give_the_same_samples(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = load_denoiser(folder, find_family("wan"))
    whole = probe().samples(student)
    monkeypatch.setattr(probing, "CELLS", 3 * 64)
    # a batch of another size may take another matrix kernel: float32 rounding
    torch.testing.assert_close(probe().samples(student), whole, rtol=1e-4, atol=1e-5)
    assert torch.equal(probe().samples(student), probe().samples(student))


def test_samples_that_are_not_finite_give_no_number(folder: Path) -> None:
    student = load_denoiser(folder, find_family("wan"))
    with torch.no_grad():
        student.network.proj_out.bias.fill_(math.nan)
    reading = probe().read(7, student, PowerEMA(student, (0.1,)))
    assert reading == (7, None, None, None, None)
    assert reading.scalars() == {}


@pytest.mark.usefixtures("group")
def test_probing_changes_no_weight_and_no_moment(folder: Path, tmp_path: Path) -> None:
    looked = trainer(folder, tmp_path / "a", healthy, probe=probe(1), health=QUIET)
    blind = trainer(folder, tmp_path / "b", healthy)
    looked.run()
    blind.run()
    assert len(looked.health.readings) == 7  # before the first step and after each of six
    assert len({r.score for r in looked.health.readings}) > 1
    for role in ("student", "fake"):
        assert equal(weights(looked, role), weights(blind, role))
        for a, b in zip(*(t.optimisers[role].state.values() for t in (looked, blind))):
            assert equal(a, b)
    assert equal(looked.ema.weights(0.1), blind.ema.weights(0.1))
    without = [{k: v for k, v in row.items() if k != "spikes"} for row in looked.curves.rows]
    assert without[-1].items() >= {k: v for k, v in blind.curves.rows[-1].items() if k != "spikes"}.items()


def test_what_is_held_back_is_in_no_batch(tiny_run: Path, tmp_path: Path) -> None:
    store = Store(tiny_run / "runs/trajectories", tmp_path)
    source = TrajectorySource(store, 8, 0, CPU, frozenset(), held=8)
    held = source.held_back()
    assert (len(held.x0), len(held.condition["text"])) == (8, 8)
    for i in range(8):
        assert torch.equal(held.x0[i], store.sample(32 + i)["x0"])
        assert torch.equal(held.condition["text"][i], store.sample(32 + i)["condition.text"])
    trained = torch.cat([source.batch(step, 0, 8).x0 for step in range(4)])  # one epoch
    assert len({x.numpy().tobytes() for x in trained}) == 32
    assert not {x.numpy().tobytes() for x in trained} & {x.numpy().tobytes() for x in held.x0}


def test_no_more_than_half_is_held_back(tiny_run: Path, tmp_path: Path) -> None:
    store = Store(tiny_run / "runs/trajectories", tmp_path)
    TrajectorySource(store, 8, 0, CPU, frozenset(), held=20)
    with pytest.raises(InputError, match=r"probe_samples 21 of 40 trajectories would be held back.*lower it"):
        TrajectorySource(store, 8, 0, CPU, frozenset(), held=21)


def test_a_student_that_embeds_its_guidance_is_probed_at_its_scale(folder: Path) -> None:
    """The scale is folded into the candidate, so it and the probed student give the same samples."""
    student = load_denoiser(folder, find_family("wan"), ["guidance"])
    with torch.no_grad():
        for p in student.extras.parameters():
            p.normal_(0, 0.1, generator=generator("extras"))
    asked = Probe(probe().held, 0, 2, CPU, 1, guidance=3.0).samples(student)
    folded = load_denoiser(folder, find_family("wan"))
    plain = student.plain(dict(student.named_parameters()), 3.0)
    folded.network.load_state_dict(plain)
    # the same sum in another order
    torch.testing.assert_close(asked, probe().samples(folded), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(asked, probe().samples(student), atol=1e-3)


@pytest.mark.system
def test_two_ranks_read_what_one_reads_to_the_bit(folder: Path, tmp_path: Path) -> None:
    """This holds before the first step and after EMA updates; the shards are unchanged, and target networks follow."""
    on_ranks(probe_on, (2, folder, tmp_path), 2)
    torch.set_num_threads(1)
    (tmp_path / "one").mkdir()
    probe_on(0, 1, folder, tmp_path / "one")
    two, alone = (torch.load(p / "readings.pt", weights_only=True) for p in (tmp_path, tmp_path / "one"))
    assert two["readings"] == alone["readings"]
    assert len({r[1] for r in two["readings"]}) == 2
    assert two["kept"]
    assert torch.equal(two["own"], alone["own"])  # the next call uses its own weights, not the EMA's
    assert torch.equal(two["followed"], alone["followed"])
    assert not torch.equal(*two["followed"])
