"""What a stage depends on is what Python imports for it."""

from __future__ import annotations

import subprocess
import sys

from rcm_core.closure import closure, code_hash
from rcm_core.registry import available

CHOICES = {"methods": "rcm", "models": "wan", "data": "digits"}
LOADED = """
import importlib, sys
importlib.import_module(sys.argv[1])
print(*(m for m in sys.modules if m.split(".")[0] in ("rcm_core", "rcm_kernels")))
"""


def modules(stage: str, **choices: str) -> set[str]:
    return set(closure(f"rcm_core.stages.{stage}", CHOICES | choices))


def test_the_closure_holds_everything_that_an_import_loads() -> None:
    """Lazy imports and what is chosen come on top."""
    command = [sys.executable, "-c", LOADED, "rcm_core.stages.train"]
    loaded = set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert loaded
    assert loaded <= modules("train")


def test_a_choice_is_part_of_the_closure_and_the_others_are_not() -> None:
    found = modules("train")
    assert {"rcm_core.methods.rcm", "rcm_core.models.wan", "rcm_core.jvp.tangent"} <= found
    assert not {"rcm_core.methods.scm", "rcm_core.methods.dmd2"} & found
    assert "rcm_core.methods.scm" in modules("train", methods="scm")
    assert "rcm_core.data.moving_digits" in modules("teacher", data="moving_digits")


def test_stages_do_not_depend_on_each_other() -> None:
    for stage in available("stages"):
        others = {f"rcm_core.stages.{s}" for s in available("stages") if s != stage}
        assert not others & modules(stage)


def test_the_method_and_what_trains_it_are_no_business_of_evaluate() -> None:
    assert not [m for m in modules("evaluate") if ".methods" in m or ".training" in m or ".losses" in m]


def test_every_file_of_the_closure_exists_and_counts() -> None:
    found = closure("rcm_core.stages.train", CHOICES)
    assert all(path.is_file() for path in found.values())
    assert len({code_hash("rcm_core.stages.train", CHOICES | {"methods": m}) for m in ("rcm", "scm")}) == 2
    assert code_hash("rcm_core.stages.train", CHOICES) == code_hash("rcm_core.stages.train", dict(CHOICES))


def test_a_module_that_does_not_exist_has_no_closure() -> None:
    assert closure("rcm_core.stages.nothing", CHOICES) == {}


def test_a_closure_imports_nothing_and_stages_that_hand_out_work_import_no_networks() -> None:
    """diffusers with all that it brings is seconds of processor time, in every process of every stage."""
    program = (
        "import sys; from rcm_core.closure import code_hash;"
        f"code_hash('rcm_core.stages.train', {CHOICES!r});"
        "print(*(m for m in sys.modules if m.startswith('rcm_core.')));"
        "import rcm_core.stages.trajectories, rcm_core.stages.train, rcm_core.stages.select, rcm_core.stages.evaluate;"
        "print('diffusers' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["rcm_core.closure", "False"]
