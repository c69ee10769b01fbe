"""An external Ray that grows: Ray's own autoscaler with its provider of local nodes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from projects import free_port
from workspaces import PATIENCE, wait_for

from infra.prefect.processes import end_tree
from infra.ray.capacity import LARGEST, capacity
from infra.ray.executor import RayExecutor
from rcm_core.errors import InputError

pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*"),
]

HEAD = "f" * 51 + "00000"
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
WORK = '''
import os
import place


def gpu(number):
    """The GPU that Ray gave, and whose modules are imported."""
    return os.environ["CUDA_VISIBLE_DEVICES"], place.NAME
'''


def configuration(address: str) -> dict[str, object]:
    """Return a head without GPUs and at most one node with a GPU, which stops after three idle seconds."""
    empty = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    return {
        "cluster_name": "grows",
        "max_workers": 1,
        "idle_timeout_minutes": 0.05,
        "upscaling_speed": 1.0,
        "provider": {
            "type": "external",
            "module": PROVIDER,
            "gcs_address": address,
            "head_node_id": HEAD,
            "launch_multiple": True,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
            "gpu": {"resources": {"CPU": 1, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 1},
        },
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        **{f"{name}_commands": [] for name in empty},
        "cluster_synced_files": [],
    }


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the cluster's address; its machines have another project's modules on their path."""
    from ray.util import get_node_ip_address

    folder = Path(tempfile.mkdtemp(prefix="rcm"))  # sockets need a short path
    address = f"{get_node_ip_address()}:{free_port()}"
    (folder / "cluster.json").write_text(json.dumps(configuration(address)))
    (folder / "kernels").mkdir()
    (folder / "kernels/place.py").write_text("NAME = 'the machine'\n")
    env = os.environ | {
        "PYTHONPATH": f"{folder}{os.pathsep}{folder / 'kernels'}",
        "RAY_TMPDIR": str(folder),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_raylet_start_wait_time_s": str(PATIENCE),
    }
    command = [
        str(Path(sys.executable).parent / "ray"),
        "start",
        "--head",
        "--block",
        "--port",
        address.split(":")[1],
    ]
    command += ["--autoscaling-config", str(folder / "cluster.json"), "--num-cpus", "1", "--num-gpus", "0"]
    command += ["--object-store-memory", str(100 * 2**20), "--include-dashboard", "false"]
    text = folder / "log"
    with (
        text.open("w") as log,
        subprocess.Popen(command, env=env, stdout=log, stderr=log) as process,
    ):
        try:
            wait_for("Ray", lambda: "block forever" in text.read_text(), text, process, every=0.2)
            yield address
        finally:
            if process.poll() is None:
                end_tree(psutil.Process(process.pid))
            for left in psutil.process_iter(["cmdline"]):
                if any(str(folder) in word for word in left.info["cmdline"] or ()):
                    left.kill()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def executor(cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RayExecutor]:
    """Yield the executor of a workspace with its own modules."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels/place.py").write_text("NAME = 'the workspace'\n")
    (tmp_path / "grown.py").write_text(WORK)
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    for folder in (tmp_path, tmp_path / "kernels"):
        monkeypatch.syspath_prepend(folder)
    executor = RayExecutor(tmp_path, cluster)
    yield executor
    executor.close()


def test_a_stage_brings_the_gpu_that_it_needs_and_it_goes_when_idle(
    executor: RayExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    from grown import gpu

    with pytest.raises(InputError, match="device cuda was asked for"):
        next(executor.map(gpu, [1], "first", device="cuda"))
    monkeypatch.setenv(LARGEST, "CPU=2,GPU=1")
    assert capacity() == {"CPU": 2, "GPU": 1}
    assert "GPU" not in ray.cluster_resources()
    # on a machine with another project's modules, the workspace's are imported
    assert list(executor.map(gpu, [1, 2], "both", device="cuda")) == [("0", "the workspace")] * 2
    executor.workers.release()  # as at the end of the stage, until when its workers keep their networks
    wait_for("machine that leaves", lambda: "GPU" not in ray.cluster_resources(), every=0.5)


@pytest.mark.parametrize("text", ["64", "GPU=many", "CPU=8;GPU=1", "TPU=4"])
def test_a_capacity_that_is_none_is_refused(
    executor: RayExecutor, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv(LARGEST, text)
    with pytest.raises(InputError, match=f"{LARGEST} = '{text}': expected the cluster's maximum size"):
        capacity()
