"""``rcm check-model``: its output, and a failure of every check."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import build

from infra import cli

HEAD = """
from rcm_core.models import wan
from rcm_core.models.wan import *
from rcm_core.diffusion.parameterisation import RectifiedFlow
"""
# mistake of a user -> the check that reports it, and its message
WRONG = {
    "sharding units": ('blocks = ("Block",)', "no Block in the network"),
    "parameterisation": (
        "class Wrong(RectifiedFlow):\n    def output(self, x, t, F):\n        return -super().output(x, t, F)\n"
        "def parameterisation(folder):\n    return Wrong(1000.0)",
        "the velocity of the output of F is off by",
    ),
    "velocity": (
        "def call(network, x, time, condition):\n    return wan.call(network, x, time, condition)[:, :, :1]",
        "the network's output is [2, 2, 1, 4, 4]",
    ),
    "batch": (
        "def call(network, x, time, condition):\n    return wan.call(network, x - x.mean(0), time, condition)",
        "alone a sample differs",
    ),
    "condition": (
        "def call(network, x, time, condition):\n"
        "    return wan.call(network, x, time, {'text': 0 * condition['text']})",
        "text changes nothing",
    ),
    "guidance": (
        "import torch\ndef call(network, x, time, condition):\n"
        "    return wan.call(network, x, time, condition) + len(x)",
        "at scale 1 it is off by",
    ),
    "value beside a tangent": (
        "from torch.autograd.forward_ad import unpack_dual\n"
        "def call(network, x, time, condition):\n    inside = unpack_dual(time).tangent is not None\n"
        "    return wan.call(network, x, time, condition) * (2 if inside else 1)",
        "differs from the plain pass",
    ),
    "tangent": (
        "def call(network, x, time, condition):\n    return wan.call(network, x.detach(), time, condition)",
        "in the state it is off by",
    ),
    "time in float32": (
        "def call(network, x, time, condition):\n    return wan.call(network, x, time.to(x.dtype), condition)",
        "it is torch.bfloat16",
    ),
    "text and pixels": (
        "def load_codec(folder):\n    codec = wan.load_codec(folder)\n    codec.decode = lambda latents: latents\n"
        "    return codec",
        "decoded",
    ),
    "save and load": (
        "def load_network(folder):\n    network = wan.load_network(folder)\n    import torch\n"
        "    torch.nn.init.normal_(network.proj_out.bias)\n    return network",
        "1 tensors come back otherwise, first: proj_out.bias",
    ),
}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wan") / "pipeline"
    build("wan", folder)
    return folder


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object
) -> tuple[int, str, str]:
    """Return exit status, stdout and stderr."""
    monkeypatch.setattr("sys.argv", ["rcm", "check-model", *map(str, words)])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def test_a_whole_pipeline_passes_with_a_readable_table(pipeline, monkeypatch, capsys):
    status, out, err = run(monkeypatch, capsys, pipeline, "--blocks", 1)
    assert (status, err) == (0, "")
    lines = [line.strip() for line in out.splitlines()[1:]]
    assert len(lines) == 12
    assert all(line.startswith("ok") for line in lines)
    assert "2 units (WanTransformerBlock)" in out


@pytest.mark.parametrize("check", WRONG)
def test_what_is_wrong_is_named(check, pipeline, tmp_path, monkeypatch, capsys):
    code, words = WRONG[check]
    adapter = tmp_path / "mine.py"
    adapter.write_text(f"{HEAD}{code}\n")
    torch.manual_seed(0)
    status, out, err = run(monkeypatch, capsys, adapter, "--pipeline", pipeline)
    failed = {
        line.split("  ")[1].strip(): line for line in out.splitlines() if line.strip().startswith("FAILED")
    }
    assert status == 1
    assert check in failed
    assert words in failed[check]
    assert "checks failed" in err


def test_a_folder_that_is_not_whole_is_one_sentence(pipeline, tmp_path, monkeypatch, capsys):
    import shutil

    shutil.copytree(pipeline, tmp_path / "pipeline")
    shutil.rmtree(tmp_path / "pipeline/vae")
    status, out, err = run(monkeypatch, capsys, tmp_path / "pipeline")
    assert (status, out) == (2, "")
    assert "lacks vae; expected a complete pipeline" in err
    assert len(err.splitlines()) == 1


def test_bad_input_is_one_sentence(pipeline, tmp_path, monkeypatch, capsys):
    adapter = tmp_path / "mine.py"
    adapter.write_text("blocks = ()\n")
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0\n")
    several = tmp_path / "several.py"
    several.write_text("raise ValueError('two\\nlines')\n")
    exits = tmp_path / "exits.py"
    exits.write_text("raise SystemExit(7)\n")
    number = tmp_path / "number.py"
    number.write_text(f"{HEAD}call = 3\n")
    names = tmp_path / "names.py"
    names.write_text(f"{HEAD}blocks = 'WanTransformerBlock'\n")
    for words, said in (
        ((exits, "--pipeline", pipeline), "cannot be imported: SystemExit: 7"),
        ((number, "--pipeline", pipeline), "has call = 3, expected a function"),
        (
            (names, "--pipeline", pipeline),
            "has blocks = 'WanTransformerBlock', expected a tuple of class names",
        ),
        ((adapter, "--pipeline", pipeline), "lacks call, check_folder, empty_network, example"),
        ((adapter,), "--pipeline is missing"),
        ((broken, "--pipeline", pipeline), "cannot be imported: ZeroDivisionError"),
        ((several, "--pipeline", pipeline), "ValueError: two lines"),
        ((tmp_path / "nothing",), "neither a pipeline folder nor an existing adapter file"),
        ((pipeline, "--pipeline", pipeline), "is a folder, but --pipeline requires"),
        ((tmp_path,), "holds no transformer/config.json"),
    ):
        status, out, err = run(monkeypatch, capsys, *words)
        assert (status, out) == (2, "")
        assert said in err
        assert len(err.splitlines()) == 1
