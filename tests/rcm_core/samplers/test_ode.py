import pytest
import torch
from gaussians import Gaussian

from rcm_core.errors import InputError
from rcm_core.samplers.ode import sample_route, sample_teacher
from rcm_core.trigflow import predict_x0

GAUSSIAN = Gaussian(torch.tensor([0.5, -0.7], dtype=torch.float64), 0.4)
NOISE = torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
EXACT = GAUSSIAN.flow(
    NOISE, torch.full((16,), torch.pi / 2, dtype=torch.float64), torch.zeros(16, dtype=torch.float64)
)


def error(solver: str, steps: int) -> float:
    found = sample_teacher(GAUSSIAN.velocity, NOISE, {}, steps=steps, shift=3.0, solver=solver)
    return float((found - EXACT).abs().max())


def test_e14_euler_converges_to_the_exact_solution_at_first_order():
    errors = [error("euler", steps) for steps in (50, 100, 200)]
    # first order: the error halves when the steps double
    assert 1.8 < errors[0] / errors[1] < 2.2
    assert 1.8 < errors[1] / errors[2] < 2.2
    assert errors[2] < 0.02


def test_e14_unipc_is_of_higher_order():
    # measured 1.8e-3, of which most is its first sigma, 1 - 1e-6, and its last step, of first order
    assert error("unipc", 50) < 3e-3
    assert error("unipc", 50) < error("euler", 200) / 5


@pytest.mark.parametrize("solver", ["euler", "unipc"])
def test_route_is_the_same_solution_seen_from_trigflow(solver):
    options = {"steps": 8, "shift": 5.0, "solver": solver}
    route = sample_route(GAUSSIAN.velocity, NOISE, {}, **options)
    assert torch.equal(route.x0, sample_teacher(GAUSSIAN.velocity, NOISE, {}, **options))
    assert route.x.shape == route.F.shape == (8, 16, 2)
    assert (route.t.diff() < 0).all()
    # UniPC's first flow time is 1 - 1e-6
    torch.testing.assert_close(route.x[0], NOISE, atol=2e-5, rtol=0)
    for x, t, F in zip(route.x, route.t, route.F):
        assert torch.equal(F, GAUSSIAN.velocity(x, t.expand(16)))


def test_one_euler_step_is_the_clean_prediction():
    t = torch.full((16,), torch.pi / 2, dtype=torch.float64)
    found = sample_teacher(GAUSSIAN.velocity, NOISE, {}, steps=1, shift=3.0)
    # the scheduler adds in float32
    torch.testing.assert_close(found, predict_x0(NOISE, t, GAUSSIAN.velocity(NOISE, t)), atol=1e-6, rtol=0)


def test_samples_do_not_depend_on_their_batch():
    whole = sample_teacher(GAUSSIAN.velocity, NOISE, {}, steps=4, shift=3.0, solver="unipc")
    alone = sample_teacher(GAUSSIAN.velocity, NOISE[3:4], {}, steps=4, shift=3.0, solver="unipc")
    torch.testing.assert_close(alone, whole[3:4], atol=1e-6, rtol=0)


def test_unknown_solver():
    with pytest.raises(InputError, match="choose euler or unipc"):
        sample_teacher(GAUSSIAN.velocity, NOISE, {}, steps=1, shift=1.0, solver="heun")
