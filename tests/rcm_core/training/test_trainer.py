"""The loop with test methods: its handling of non-finite samples and gradients."""

from __future__ import annotations

import errno
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from loops import Pull, equal, healthy, trainer, weights
from torch import Tensor
from workspaces import wait_for

from infra.executors.local import LocalContext
from rcm_core.errors import InputError
from rcm_core.protocols import TargetUpdate
from rcm_core.storage.files import sha256
from rcm_core.training.checkpointing.async_writer import Writer

pytestmark = pytest.mark.usefixtures("group")


def test_only_the_role_of_a_step_moves_and_ema_counts_student_steps(folder: Path, tmp_path: Path) -> None:
    made = trainer(folder, tmp_path, healthy)
    for step in range(4):
        before = {role: weights(made, role) for role in made.modules}
        made.train_step(step)
        moved = {role for role in made.modules if not equal(before[role], weights(made, role))}
        assert moved == {"student" if step % 2 == 0 else "fake"}
    assert made.student_updates == int(made.ema.updates) == 2


def test_the_gradient_is_the_mean_over_parts(folder: Path, tmp_path: Path) -> None:
    """Parts 0 and 1 pull towards 0 and 1; the first step of two parts is that of their mean."""
    made = trainer(folder, tmp_path, healthy, accumulate=2)
    bias = made.modules["student"].network.proj_out.bias
    gradients: list[Tensor] = []
    bias.register_post_accumulate_grad_hook(lambda p: gradients.append(p.grad.clone()))
    start = bias.detach().clone()
    made.train_step(0)
    expected = 2 * (start - 0.5) / start.numel()
    # two float32 additions
    torch.testing.assert_close(gradients[-1], expected, rtol=1e-6, atol=1e-7)


def test_too_many_bad_samples_stop_the_run_with_the_reason(folder: Path, tmp_path: Path) -> None:
    made = trainer(folder, tmp_path, lambda t: Pull(t, lambda _, step: 3.0 if step == 4 else 0.0))
    with pytest.raises(InputError, match=r"step 4: 3 samples of the last 5 steps are not finite"):
        made.run()
    assert (tmp_path / "step_00000004").is_dir()  # earlier progress is kept


def test_or_they_step_down_the_ladder_if_the_params_allow(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:

    def method(tangent: str) -> Pull:
        return Pull(tangent, lambda kind, step: 3.0 if (kind, step) in {("exact", 1), ("semi", 2)} else 0.0)

    made = trainer(folder, tmp_path, method, tangent_fallback=True, iterations=4, checkpoint_every=4)
    made.run()
    said = capsys.readouterr().out
    assert "stepping down from exact to semi" in said
    assert "stepping down from semi to discrete" in said
    assert made.tangent == made.method.tangent == "discrete"  # type: ignore[attr-defined]
    resumed = trainer(folder, tmp_path, method, tangent_fallback=True)
    assert (resumed.step, resumed.tangent, resumed.method.tangent) == (4, "discrete", "discrete")  # type: ignore[attr-defined]


def test_the_ladder_has_an_end(folder: Path, tmp_path: Path) -> None:
    made = trainer(folder, tmp_path, lambda t: Pull(t, lambda *_: 3.0), tangent_fallback=True)
    with pytest.raises(InputError, match="not finite"):
        made.run()
    assert made.tangent == "discrete"


def test_a_method_without_a_tangent_has_no_ladder(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Tangentless(Pull):
        def __eq__(self, other: object) -> bool:
            return isinstance(other, Tangentless)

        __hash__ = None  # type: ignore[assignment]

    made = trainer(folder, tmp_path, lambda t: Tangentless(t, lambda *_: 3.0), tangent_fallback=True)
    with pytest.raises(InputError, match="step 0: 3 samples"):
        made.run()
    assert made.tangent == "exact"
    assert "stepping down" not in capsys.readouterr().out


def test_a_sample_that_becomes_many_rows_is_allowed_as_many_bad_ones(folder: Path, tmp_path: Path) -> None:
    class Rows(Pull):
        """A method with five training points per sample of the batch."""

        def __init__(self, bad: float) -> None:
            super().__init__("exact", lambda _, step: bad if step == 1 else 0.0)
            self.requirements = self.requirements._replace(points_per_sample=5)

    made = trainer(folder, tmp_path / "a", lambda _: Rows(10.0))
    made.run()
    assert made.health.lost == 10
    # 0.005 of 100 steps of 4 x 5
    with pytest.raises(InputError, match=r"11 samples .* train\.max_nonfinite = 0\.005 allows 10"):
        trainer(folder, tmp_path / "b", lambda _: Rows(11.0)).run()


def test_a_gradient_that_is_not_finite_changes_no_weight(folder: Path, tmp_path: Path) -> None:
    made = trainer(folder, tmp_path, lambda t: Pull(t, scale=lambda step: torch.inf if step == 2 else 1.0))
    made.train_step(0)
    made.train_step(1)
    before = weights(made)
    with pytest.raises(
        InputError, match=r"step 2: the gradient of the student is not finite\. No weight was"
    ):
        made.train_step(2)
    assert equal(before, weights(made))


@pytest.mark.parametrize("done", [2, 4])
def test_resumed_is_uninterrupted_to_the_bit(folder: Path, tmp_path: Path, done: int) -> None:
    whole = trainer(folder, tmp_path / "whole", healthy)
    whole.run()
    trainer(folder, tmp_path / "cut", healthy, iterations=done).run()
    rest = trainer(folder, tmp_path / "cut", healthy)
    assert rest.step == done
    rest.run()
    for role in ("student", "fake"):
        assert equal(weights(whole, role), weights(rest, role))
        for a, b in zip(*(t.optimisers[role].state.values() for t in (whole, rest))):
            assert equal(a, b)
    assert equal(whole.ema.weights(0.1), rest.ema.weights(0.1))
    assert whole.student_updates == rest.student_updates == 3


def test_saving_changes_nothing(folder: Path, tmp_path: Path) -> None:
    """This also holds before a role's first step: the optimiser state that torch initialises for saving is dropped."""
    often = trainer(folder, tmp_path / "often", healthy, checkpoint_every=1)
    never = trainer(folder, tmp_path / "never", healthy, checkpoint_every=100)
    often.run()
    never.run()
    for role in ("student", "fake"):
        assert equal(weights(often, role), weights(never, role))


def test_training_goes_on_while_a_checkpoint_is_written(folder: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    class Slow(LocalContext):
        def report(self, scalars: Mapping[str, float], checkpoint: Path | None, step: int) -> None:
            wait_for("next step", lambda: made.step > step or step >= 6)
            seen.append((step, made.step))
            super().report(scalars, checkpoint, step)

    whole = trainer(folder, tmp_path / "whole", healthy)
    whole.run()
    made = trainer(folder, tmp_path / "slow", healthy)
    made.context = Slow(tmp_path / "slow")
    made.run()
    assert [at for at, _ in seen] == [2, 4, 6]  # one at a time, and all before run returns
    assert all(step > at for at, step in seen[:2])
    # the checkpoint has the state of its step, not of later steps
    for at in (4, 6):
        for name in (f"step_{at:08d}/{file}" for file in ("__0_0.distcp", "progress.json")):
            assert sha256(tmp_path / "slow" / name) == sha256(tmp_path / "whole" / name)


def test_a_checkpoint_that_cannot_be_written_ends_the_training(folder: Path, tmp_path: Path) -> None:
    class Full(LocalContext):
        def report(self, scalars: Mapping[str, float], checkpoint: Path | None, step: int) -> None:
            if step == 4:
                raise OSError(errno.ENOSPC, "No space left on device")
            super().report(scalars, checkpoint, step)

    made = trainer(folder, tmp_path, healthy, iterations=50)
    made.context = Full(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        made.run()
    assert 4 <= made.step <= 6  # at the next checkpoint at the latest
    assert [p.name for p in tmp_path.glob("step_*")] == ["step_00000002"]
    assert not list(tmp_path.glob("writing-*"))


def test_told_to_leave_it_ends_at_a_checkpoint_and_goes_on_to_the_bit(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = trainer(folder, tmp_path / "whole", healthy)
    whole.run()
    told = threading.Event()

    def telling(tangent: str, step: int) -> float:
        if step == 2:
            told.set()
        return 0.0

    made = trainer(folder, tmp_path / "cut", lambda t: Pull(t, telling))
    made.context = LocalContext(tmp_path / "cut", told=told)
    with pytest.raises(SystemExit, match="143"):
        made.run()
    assert "preemption notice: checkpoint at step 3;" in capsys.readouterr().out
    rest = trainer(folder, tmp_path / "cut", healthy)
    assert rest.step == 3
    rest.run()
    assert equal(weights(whole), weights(rest))


def test_a_large_gradient_is_clipped_and_its_norm_is_told(folder: Path, tmp_path: Path) -> None:
    free, bound = (trainer(folder, tmp_path / str(c), healthy, clip=c) for c in ({}, {"student": 1e-3}))
    told = [made.train_step(0)["gradient_norm"] for made in (free, bound)]
    assert told[0] == told[1] > 1e-3  # as it was, not as it was made
    # AdamW's first step is blind to scale; its first moment holds 0.1 of the gradient that was used
    moments = [
        torch.cat([s["exp_avg"].flatten() for s in made.optimisers["student"].state.values()])
        for made in (free, bound)
    ]
    torch.testing.assert_close(moments[1].norm(), torch.tensor(1e-4), rtol=1e-4, atol=0)
    torch.testing.assert_close(moments[1], moments[0] * 1e-3 / told[0])


def test_a_follower_moves_after_the_updates_it_follows_and_is_resumed(folder: Path, tmp_path: Path) -> None:
    def method(tangent: str) -> Pull:
        follow = TargetUpdate("target", "student", 0.25, "student")
        return Pull(tangent, follows=(follow,))

    made = trainer(folder, tmp_path, method)
    for step in range(2):
        before, student = weights(made, "target"), weights(made)
        made.train_step(step)
        moved = weights(made)
        for name, now in weights(made, "target").items():
            leader = moved[name] if step == 0 else student[name]
            expected = before[name].lerp(leader, 0.25) if step == 0 else before[name]
            torch.testing.assert_close(now, expected)
    made.step = 2
    with Writer(made.context, tmp_path) as writer:
        made.save(writer)
    assert equal(weights(trainer(folder, tmp_path, method), "target"), weights(made, "target"))


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", "progress.json"])
@pytest.mark.parametrize("content", [None, b"", b"not a checkpoint", bytes(1000)])
def test_a_damaged_checkpoint_is_named_in_one_sentence(
    folder: Path, tmp_path: Path, name: str, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    trainer(folder, tmp_path, healthy, iterations=2).run()
    place = tmp_path / "step_00000002" / name
    place.unlink()
    if content is not None:
        place.write_bytes(content)
    with pytest.raises(InputError, match=r"step_00000002.* remove .*step_00000002 to resume") as caught:
        trainer(folder, tmp_path, healthy)
    assert "Traceback" not in str(caught.value)
    assert [
        record for record in caplog.records if "NullHandler" not in record.name
    ] == []  # shown to the user


def test_a_checkpoint_of_other_ema_lengths_or_networks_is_not_loaded(folder: Path, tmp_path: Path) -> None:
    trainer(folder, tmp_path, healthy, iterations=2).run()
    with pytest.raises(
        InputError, match=r"checkpoint .*step_00000002 cannot be read .*remove .* to resume"
    ) as caught:
        trainer(folder, tmp_path, healthy, ema_lengths=(0.05,))
    assert "Traceback" not in str(caught.value)
