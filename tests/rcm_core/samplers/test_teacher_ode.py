import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from gaussians import Gaussian

from rcm_core.diffusion.parameterisation import RectifiedFlow
from rcm_core.diffusion.trigflow import angle_from_flow_time, per_sample, predict_x0
from rcm_core.errors import InputError
from rcm_core.samplers.teacher_ode import sample_route, sample_teacher

GAUSSIAN = Gaussian(torch.tensor([0.5, -0.7], dtype=torch.float64), 0.4)
NOISE = torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
EXACT = GAUSSIAN.flow(
    NOISE, torch.full((16,), torch.pi / 2, dtype=torch.float64), torch.zeros(16, dtype=torch.float64)
)


def error(solver: str, steps: int, grid: str = "scheduler") -> float:
    found = sample_teacher(GAUSSIAN.velocity, NOISE, {}, steps=steps, shift=3.0, solver=solver, grid=grid)
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


def test_e14_dpm_solver_is_of_second_order():
    # measured 2.6e-2 and 7.7e-3; with more steps its first time, 0.9997, and its last step, of first order, prevail
    assert error("dpmsolver++", 50) < error("dpmsolver++", 25) / 3
    assert error("dpmsolver++", 50) < error("euler", 50) / 5


def test_e14_dpm_solver_is_diffusers_own_loop():
    """The reference is the loop of SanaPipeline, with its published scheduler, on the same network."""
    scheduler = DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint", lower_order_final=True,
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0,
    )  # fmt: skip
    scheduler.set_timesteps(20)
    state, flow = NOISE, RectifiedFlow()
    for tau, time in zip(scheduler.sigmas.double(), scheduler.timesteps):
        t = angle_from_flow_time(tau).expand(len(NOISE))
        x = per_sample(t.cos() + t.sin(), state) * state
        output = flow.output(x, t, GAUSSIAN.velocity(x, t))
        state = scheduler.step(output, time, state, return_dict=False)[0]
    found = sample_teacher(GAUSSIAN.velocity, NOISE, {}, steps=20, shift=3.0, solver="dpmsolver++")
    torch.testing.assert_close(found, state, atol=1e-6, rtol=0)


@pytest.mark.parametrize("grid", ["linear", "karras"])
def test_e14_the_other_grids_converge_at_first_order(grid):
    errors = [error("euler", steps, grid) for steps in (50, 100)]
    assert 1.7 < errors[0] / errors[1] < 2.3


def test_a_grid_is_euler_s_alone():
    with pytest.raises(InputError, match="grid = 'linear' needs the solver 'euler'"):
        error("unipc", 2, "linear")
    with pytest.raises(InputError, match="unknown grid 'cosine'; choose scheduler or linear or karras"):
        error("euler", 2, "cosine")


@pytest.mark.parametrize("solver", ["euler", "unipc", "dpmsolver++"])
def test_route_is_the_same_solution_seen_from_trigflow(solver):
    options = {"steps": 8, "shift": 5.0, "solver": solver}
    route = sample_route(GAUSSIAN.velocity, NOISE, {}, **options)
    assert torch.equal(route.end, sample_teacher(GAUSSIAN.velocity, NOISE, {}, **options))
    assert route.x.shape == route.F.shape == (8, 16, 2)
    assert (route.t.diff() < 0).all()
    # UniPC's first flow time is 1 - 1e-6, DPM-Solver++'s 1 - 2e-4
    torch.testing.assert_close(route.x[0], NOISE, atol=5e-4 if solver == "dpmsolver++" else 2e-5, rtol=0)
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
    with pytest.raises(InputError, match=r"choose euler or unipc or dpmsolver\+\+"):
        sample_teacher(GAUSSIAN.velocity, NOISE, {}, steps=1, shift=1.0, solver="heun")
