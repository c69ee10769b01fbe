"""RayExecutor on a real local Ray: lost workers, bad input, too few resources, a killed driver."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from faulty_proxy import Fault, faulty_proxy
from object_store import BUCKET, CREDENTIALS, authorise, object_store
from workspaces import wait_for

from infra.ray.cluster import shared_cluster
from infra.ray.executor import RayExecutor
from infra.ray.lifeline import CLUSTER, Lifeline
from rcm_core.errors import InputError, OutageError
from rcm_core.execution import TrainJob
from rcm_core.samplers.jobs import Job, Teacher
from rcm_core.storage.s3 import filesystem

pytestmark = [
    pytest.mark.system,
    # Ray's own modules deprecate each other as they are imported.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*"),
]

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def cluster(toys: Path) -> Iterator[str]:
    """One Ray for all tests of this file, as a flow run shares one; it sees no GPU."""
    paths = os.pathsep.join([str(toys), str(ROOT), str(ROOT / "kernels")])
    env = os.environ | CREDENTIALS | {"PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""}
    env.pop("RAY_ADDRESS", None)
    with shared_cluster(toys, env) as given:
        line = Lifeline(given[CLUSTER])
        yield line.address()
        line.close()


@pytest.fixture(scope="module")
def executor(toys: Path, cluster: str) -> Iterator[RayExecutor]:
    executor = RayExecutor(toys, cluster)
    yield executor
    executor.close()


def train(executor: RayExecutor, loop: str, spec: dict[str, object], state: Path, workers: int = 2) -> None:
    import toys

    chosen = vars(toys)[loop]
    executor.train(
        TrainJob(chosen, spec, state=state, workers=workers, threads=1, device="auto", max_failures=2)
    )


def test_map_gives_every_result_on_one_thread_in_the_workspace(executor: RayExecutor, toys: Path) -> None:
    from toys import square

    assert sorted(executor.map(square, range(5), "squares")) == [(n * n, 1, str(toys)) for n in range(5)]


def test_map_retries_the_item_of_a_killed_worker(executor: RayExecutor, tmp_path: Path) -> None:
    from toys import dies_once

    jobs = [(str(tmp_path / "died"), n) for n in range(6)]
    assert sorted(executor.map(dies_once, jobs, "jobs")) == list(range(6))
    assert (tmp_path / "died").exists()


def test_an_item_that_ends_every_worker_ends_the_stage(executor: RayExecutor, tmp_path: Path) -> None:
    from toys import dies

    with pytest.raises(
        RuntimeError, match=r"^jobs: a worker died 4 times on the same item \(out of memory\?\)$"
    ):
        list(executor.map(dies, [str(tmp_path / "died")], "jobs"))
    assert (tmp_path / "died").read_text() == "....", "once, and thrice again"


def test_map_raises_the_function_s_own_exception(executor: RayExecutor) -> None:
    from toys import refuses

    with pytest.raises(InputError, match=r"^no 1; give another$"):
        list(executor.map(refuses, [1], "refusals"))


def test_a_worker_loads_each_network_once_and_holds_one_teacher_and_one_student(
    executor: RayExecutor, tmp_path: Path
) -> None:
    from toys import loads

    folder = ROOT / "data/mini/teacher/pipeline"
    teacher = Teacher(str(folder), "wan", (1, 1, 8, 8), 2.0, 2, 3.0, "euler", "")
    whole = Job(teacher, ("the digit 7",), (0,), seed=0, steps=2)
    for number in range(3):
        shutil.copytree(folder / "transformer", tmp_path / f"{number}/transformer")
    students = [replace(whole, steps=1, network=str(tmp_path / f"{n}/transformer")) for n in range(3)]
    jobs = [job for student in students for job in (whole, student, replace(student, seed=1))]
    found = dict(sorted(executor.map(loads, jobs, "jobs"), key=lambda row: len(row[1])))
    again = executor.map(loads, [whole], "more jobs of the stage")
    found |= dict(again)
    for loaded in found.values():
        folders = [folder for folder, _ in loaded]
        assert len(set(folders)) == len(folders) <= 4
        assert all(held <= 1 for _, held in loaded)
    assert {folder for loaded in found.values() for folder, _ in loaded} == {
        str(folder), *(str(tmp_path / str(n)) for n in range(3)),
    }  # fmt: skip


def test_training_resumes_after_a_worker_is_killed(
    executor: RayExecutor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from toys import square

    assert len(list(executor.map(square, range(2), "workers that the training ends"))) == 2
    spec = {"steps": 17, "kill": [1, 13, str(tmp_path / "died")], "out": str(tmp_path / "sum")}
    train(executor, "count", spec, tmp_path / "state")
    assert not executor.workers._idle
    said = capsys.readouterr().out
    assert (tmp_path / "died").exists()
    starts = [line for line in said.splitlines() if line.startswith("from step")]
    # Ray counts a checkpoint from its controller's next look on: the one of step 10 may not be counted yet
    assert starts[0] == "from step 0 on 2 ranks, 1 threads"
    assert starts[1:] in (["from step 5 on 2 ranks, 1 threads"], ["from step 10 on 2 ranks, 1 threads"])
    assert "continuing from the newest checkpoint" in said
    assert (tmp_path / "sum").read_text() == str(2 * sum(range(1, 18)))


def test_checkpoints_may_lie_in_s3_until_the_state_is_gone(
    executor: RayExecutor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    authorise(monkeypatch)
    state, spec = tmp_path / "state", {"steps": 12, "out": str(tmp_path / "sum")}
    with object_store() as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        monkeypatch.setenv("RCM_CHECKPOINTS", f"s3://{BUCKET}/live")
        system, root = filesystem(f"s3://{BUCKET}/live", endpoint)
        train(executor, "count", spec, state)
        system.invalidate_cache()
        assert sorted(p.split("/")[-1] for p in system.glob(f"{root}/state/step_*")) == [
            "step_00000005",
            "step_00000010",
        ]
        assert not list(state.glob("step_*"))
        train(executor, "count", spec | {"steps": 17}, state)
        assert "from step 10 on 2 ranks" in capsys.readouterr().out
        assert (tmp_path / "sum").read_text() == str(2 * sum(range(1, 18)))
        executor.checkpoints.drop()
        assert system.exists(f"{root}/state")
        shutil.rmtree(state)  # a stage does this when its outs are complete
        executor.checkpoints.drop()
        system.invalidate_cache()
        assert not system.exists(f"{root}/state")


def test_checkpoints_survive_a_bad_day_of_s3(
    executor: RayExecutor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Transient faults pass unnoticed; an outage ends the training with OutageError, and the next one continues."""
    authorise(monkeypatch)
    state, spec = tmp_path / "state", {"steps": 17, "out": str(tmp_path / "sum")}
    with object_store() as endpoint, faulty_proxy(endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setenv("RCM_CHECKPOINTS", f"s3://{BUCKET}/live")

        def outage(fault: Fault) -> str:
            proxy.faults[:] = [Fault(503, "PUT", "step_00000005", times=2), fault]
            with pytest.raises(OutageError) as ended:
                train(executor, "count", spec, state)
            assert f"s3://{BUCKET}/live" in str(ended.value)
            lines = capsys.readouterr().out.splitlines()
            return next((line for line in lines if line.startswith("from step")), "")

        assert outage(Fault(503, "PUT", "step_00000010", times=-1)).startswith("from step 0 on")
        assert outage(Fault("reset", "PUT", "step_00000015", times=-1)).startswith("from step 5 on")
        assert (
            outage(Fault("reset", "GET", "step_00000010", times=-1)) == ""
        )  # Ray looks at it before it begins
        proxy.faults.clear()
        train(executor, "count", spec, state)
        assert "from step 10 on 2 ranks" in capsys.readouterr().out
    assert (tmp_path / "sum").read_text() == str(2 * sum(range(1, 18)))


def test_bad_input_in_training_is_raised_as_it_is_and_not_tried_again(
    executor: RayExecutor, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"^the shard is corrupt; make it again$"):
        train(executor, "refusing_loop", {"attempts": str(tmp_path / "a")}, tmp_path / "state", workers=1)
    assert (tmp_path / "a").read_text() == "0\n"


def test_too_few_cpus_is_one_sentence_at_once(executor: RayExecutor, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"training with 999 x 1 threads needs 999 CPUs and the Ray at .* has"
    ):
        train(executor, "count", {}, tmp_path / "state", workers=999)


def test_an_absent_gpu_is_refused(executor: RayExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    from toys import square

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match="device cuda was asked for"):
        list(executor.map(square, [1], "squares", device="cuda"))


def test_a_state_in_use_is_refused(executor: RayExecutor, tmp_path: Path) -> None:
    from infra.state import hold

    with hold(tmp_path / "state"), pytest.raises(InputError, match=f"in use by process {os.getpid()}"):
        train(executor, "count", {"steps": 1, "out": str(tmp_path / "sum")}, tmp_path / "state", workers=1)


def test_a_run_whose_driver_was_killed_continues(
    executor: RayExecutor, cluster: str, toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, ready = tmp_path / "state", tmp_path / "ready"
    script = f"""
from pathlib import Path
from infra.ray.capacity import capacity
from infra.ray.executor import RayExecutor
import toys
from rcm_core.execution import TrainJob
executor = RayExecutor(Path({str(toys)!r}), {cluster!r})
spec = dict(ready={str(ready)!r})
executor.train(TrainJob(toys.hangs, spec, state=Path({str(state)!r}), workers=2, threads=1, device="cpu"))
"""
    driver = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=toys,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(toys), str(ROOT), str(ROOT / "kernels")])},
    )
    wait_for("checkpoint", ready.exists, process=driver)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    train(executor, "count", {"steps": 12, "out": str(tmp_path / "sum")}, state)
    assert "from step 5 on 2 ranks" in capsys.readouterr().out
    # the first five steps were summed on one rank (15), the other seven on two
    assert (tmp_path / "sum").read_text() == str(15 + 2 * sum(range(6, 13)))


def test_nobody_answers_at_the_given_address(toys: Path) -> None:
    with pytest.raises(InputError, match=r"RAY_ADDRESS = 127\.0\.0\.1:1: no Ray answers there"):
        RayExecutor(toys, "127.0.0.1:1")
