"""The commands of docs/scale.md and of the manifests exist with their options, and so do the files they name."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from manifests import AUTOSCALER, CLUSTER, JOB, ROOT

from infra.params import compose

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*")

PAGE = (ROOT / "docs/scale.md").read_text()
OURS = ("rcm", "dvc", "prefect", "ray")


def commands() -> Iterator[list[str]]:
    """Yield the words of every command in the page's shell blocks; ``head X`` is X."""
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL):
        lexer = shlex.shlex(block, posix=True, punctuation_chars=";&")
        lexer.whitespace = " \t\r"
        lexer.whitespace_split = True
        words: list[str] = []
        for word in lexer:
            parts = word.split("\n") if not word.startswith("overrides=") else [word]
            for number, part in enumerate(parts):
                if number or part in (";", "&", "&&"):
                    yield words
                    words = []
                if part and part not in (";", "&", "&&"):
                    words.append(part)
        yield words


WORDS = [words[1:] if words[0] == "head" else words for words in commands() if words]


def resolve(words: list[str]) -> None:
    """Raise unless the command line parses: rcm's and Ray's by click, DVC's and Prefect's by their own parsers."""
    import ray.scripts.scripts
    import typer.main
    from dvc.cli.parser import get_main_parser
    from prefect.cli._app import _app

    import infra.cli

    program, *rest = words
    if program == "dvc":
        get_main_parser().parse_args(rest)
    elif program == "prefect":
        _app.parse_args([w for w in rest if w != "--no-prompt"], exit_on_error=False, print_error=False)
    else:
        root = typer.main.get_command(infra.cli.app) if program == "rcm" else ray.scripts.scripts.cli
        command = root.commands[rest[0]]  # type: ignore[attr-defined]
        command.make_context(rest[0], rest[1:])


def in_manifests() -> list[list[str]]:
    """Return the commands of pods and machines."""
    head = CLUSTER["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["args"][0]
    lines = [JOB["spec"]["entrypoint"], *AUTOSCALER["head_start_ray_commands"], *head.splitlines()]
    lines += AUTOSCALER["worker_start_ray_commands"]
    found = re.findall(rf"(?<![\w/])(?:{'|'.join(OURS)}) [a-z-][^;&>\n]*", "\n".join(lines))
    return [shlex.split(text) for text in found]


def test_there_are_commands_to_look_at() -> None:
    programs = {words[0] for words in WORDS}
    assert {*OURS, "docker", "helm", "kubectl", "aws", "hf"} <= programs
    assert {words[0] for words in in_manifests()} == {"dvc", "prefect", "ray"}


@pytest.mark.parametrize("words", [*(w for w in WORDS if w[0] in OURS), *in_manifests()], ids=" ".join)
def test_our_commands_parse(words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "teacher").mkdir()
    for name in ("infra", "prefect.yaml"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    resolve(words)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("rcm docter", "docter"),
        ("rcm check-model teacher --no-codecs", "--no-codecs"),
        ("dvc rerpo", "parser error"),
        ("prefect worker start --pol rcm-pool", "--pol"),
        ("ray start --heads", "--heads"),
        ("ray health", "health"),
    ],
)
def test_a_misspelt_command_does_not_parse(line: str, said: str) -> None:
    with pytest.raises(Exception, match=said):
        resolve(line.split())


def test_files_that_commands_name_are_there() -> None:
    named = {w for words in WORDS for w in words if re.match(r"infra/|docs/|conf/", w) and "*" not in w}
    assert len(named) >= 5
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_the_run_s_overrides_compose_to_complete_parameters(tmp_path: Path) -> None:
    (text,) = (w for words in WORDS for w in words if w.startswith("overrides="))
    overrides = json.loads(text.removeprefix("overrides="))
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    params = compose(tmp_path, overrides)
    train = params.train
    assert params.teacher.shape == tuple(json.loads((ROOT / "data/models/wan-14b.json").read_text())["shape"])
    limits = CLUSTER["spec"]["workerGroupSpecs"][0]
    gpus = limits["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    assert train.workers == limits["maxReplicas"] * int(gpus)
    assert train.batch == train.workers // train.parallel.context * train.accumulate
    assert train.iterations % train.candidate_every == 0


def test_what_the_page_computes_is_what_it_says() -> None:
    """The page's arithmetic from the network's own numbers; 2 % is its rounding."""
    facts = json.loads((ROOT / "data/models/wan-14b.json").read_text())
    config = facts["config"]
    width, layers = config["num_attention_heads"] * config["attention_head_dim"], config["num_layers"]
    tokens = facts["shape"][1] * facts["shape"][2] * facts["shape"][3] // 4
    met = layers * (6 * width**2 + 2 * width * config["ffn_dim"])
    matrices, attention = 2 * met * tokens, 4 * tokens**2 * width * layers
    call = 450 / 100
    exact = (matrices + attention) / (0.6 * 67e12)
    said = {
        "14.29e9 parameters": facts["parameters"] / 14.29e9,
        "12.0e9; 81": met / 12.0e9,
        "32,760 tokens": tokens / 32760,
        "= 0.78e15 FLOPs": matrices / 0.78e15,
        "= 0.88e15 in attention": attention / 0.88e15,
        "**4.5 s a call**, which is 38 %": (matrices + attention) / call / 989e12 / 0.38,
        "a call would take 42 s": exact / 42,
        "| 512 | 8 hours |": 4096 * 100 * call / 3600 / 512,
        "| 11 | 38 minutes": 10 * 128 * 7 * call / 3600 / 11.2,
        "| 44 | 1.2 hours |": ((256 + 64) * 109 + 408) * call / 3600 / 44,
        "| 5,200 | 3.4 days |": 10_000 * 64 * 6.5 * call / 3600 / 5200,
        "14.29e9 / 64 | 8.9 |": 40 * facts["parameters"] / 64 / 8.9e9,
        "| 19.6 |": layers * tokens / 8 * (9 * width + config["ffn_dim"]) * 2 / 19.6e9,
    }
    words = " ".join(PAGE.split())
    for text, ratio in said.items():
        assert text in words, text
        assert ratio == pytest.approx(1, rel=0.02), text
