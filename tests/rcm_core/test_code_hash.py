"""A stage depends on exactly the modules that Python imports for it."""

from __future__ import annotations

import hashlib
import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from rcm_core import code_hash as hashing
from rcm_core import normal_form
from rcm_core.code_hash import closure, code_hash, code_hashes
from rcm_core.registry import available

ROOT = Path(__file__).parents[2]

CHOICES = {"methods": "rcm", "models": "wan", "benchmarks": "digits"}
LOADED = """
import importlib, sys
importlib.import_module(sys.argv[1])
print(*(m for m in sys.modules if m.split(".")[0] in ("rcm_core", "rcm_kernels")))
"""


def modules(stage: str, **choices: str) -> set[str]:
    return set(closure(f"rcm_core.stages.{stage}", CHOICES | choices))


def test_the_closure_holds_everything_that_an_import_loads() -> None:
    """Lazy imports and selected modules are added."""
    command = [sys.executable, "-c", LOADED, "rcm_core.stages.train"]
    loaded = set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert loaded
    assert loaded <= modules("train")


def test_a_choice_is_part_of_the_closure_and_the_others_are_not() -> None:
    found = modules("train")
    assert {"rcm_core.methods.rcm", "rcm_core.models.wan", "rcm_core.jvp.tangent"} <= found
    assert not {"rcm_core.methods.scm", "rcm_core.methods.dmd2"} & found
    assert "rcm_core.methods.scm" in modules("train", methods="scm")
    assert "rcm_core.benchmarks.moving_digits" in modules("teacher", benchmarks="moving_digits")


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
    """Importing diffusers and its dependencies takes seconds of processor time in every process of every stage."""
    program = (
        "import sys; from rcm_core.code_hash import code_hash;"
        f"code_hash('rcm_core.stages.train', {CHOICES!r});"
        "print(*(m for m in sys.modules if m.startswith('rcm_core.')));"
        "import rcm_core.stages.trajectories, rcm_core.stages.train, rcm_core.stages.select, rcm_core.stages.evaluate;"
        "print('diffusers' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["rcm_core.normal_form", "rcm_core.code_hash", "False"]


TOY = {
    "toy/__init__.py": '"""The package."""\n',
    "toy/stage.py": '''
"""A stage."""

from __future__ import annotations

import math
from pathlib import Path

from toy import rates
from toy.parts.middle import scaled
from toy.parts.other import scaled as otherwise


class Setting:
    size: int = 3
    """Its size."""


def run(path: Path, size: int = 4) -> float:
    """Run it."""
    # a comment
    if not path.name:
        raise ValueError("no 'name'")
    return scaled(size, math.pi) + otherwise(size, 1.0) * rates.RATE
''',
    "toy/rates.py": "RATE = 0.5\n",
    "toy/parts/__init__.py": "",
    "toy/parts/middle.py": "from toy.parts.deep import add\n\n\ndef scaled(x, y):\n    return add(x, 2 * y)\n",
    "toy/parts/other.py": "from toy.parts.deep import add\n\n\ndef scaled(x, y):\n    return add(x, 3 * y)\n",
    "toy/parts/deep.py": "def add(x, y):\n    return x + y\n",
    "toy/unrelated.py": "X = 1\n",
}
STAGE, DEEP = "toy/stage.py", "toy/parts/deep.py"
Files = Mapping[str, str]
Key = Callable[[Files], str]


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Key:
    """Return a function that computes the hash of ``toy.stage`` in a project with the given files."""
    monkeypatch.setattr(normal_form, "ROOTS", ("toy",))
    monkeypatch.setattr(hashing, "ROOTS", ("toy",))
    places = iter(range(100))

    def hash_of(files: Files) -> str:
        place = tmp_path / str(next(places))
        for name, text in files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(text)
        with monkeypatch.context() as there:
            there.syspath_prepend(place)
            importlib.invalidate_caches()
            for cached in (hashing.source_of, hashing.form_of, hashing.content_of):
                cached.cache_clear()
            stage = next(n for n in files if n.endswith("stage.py")).removesuffix(".py").replace("/", ".")
            return code_hash(stage, {})

    return hash_of


def edited(name: str, old: str, new: str, files: Files = TOY) -> dict[str, str]:
    assert old in files[name]
    return {**files, name: files[name].replace(old, new)}


def moved(old: str, new: str) -> dict[str, str]:
    """Return TOY with a moved module and adapted imports."""
    path = [f"{place.replace('.', '/')}.py" for place in (old, new)]
    (package, name), (to, called) = old.rsplit(".", 1), new.rsplit(".", 1)
    files = {}
    for file, text in TOY.items():
        text = text.replace(f"from {old} import", f"from {new} import")
        text = text.replace(f"from {package} import {name}\n", f"from {to} import {called}\n")
        files[file] = text.replace(f"{name}.", f"{called}.") if f"import {called}\n" in text else text
    files[path[1]] = files.pop(path[0])
    return {f"{to.replace('.', '/')}/__init__.py": '"""What lives here."""\n', **files}


SAME = {
    "docstring of the module": edited(STAGE, "A stage", "Another sentence"),
    "docstring of a function": edited(STAGE, '    """Run it."""\n', ""),
    "docstring of an attribute": edited(STAGE, "Its size", "The size"),
    "docstring in a transitive import": edited(DEEP, "y):\n", "y):\n    \"\"\"Sum.\"\"\"\n"),
    "comment": edited(STAGE, "# a comment", "# better"),
    "comment behind code": edited(DEEP, "x + y", "x + y  # why"),
    "blank lines": edited(STAGE, "\n\n", "\n\n\n"),
    "line breaks": edited(STAGE, "scaled(size, math.pi) +", "(scaled(\n        size,\n        math.pi,\n    )) +"),
    "quotes": edited(STAGE, "\"no 'name'\"", "'no \\'name\\''"),
    "a string in pieces": edited(STAGE, "\"no 'name'\"", "\"no \" \"'name'\""),
    "a number in another notation": edited("toy/rates.py", "0.5", ".50"),
    "order of imports": edited(
        STAGE, "import math\nfrom pathlib import Path\n", "from pathlib import Path\nimport math\n"
    ),
    "order of imports from the project": edited(
        STAGE, "from toy import rates\nfrom toy.parts.middle import scaled\n",
        "from toy.parts.middle import scaled\nfrom toy import rates\n",
    ),
    "an import in the function": edited(
        STAGE, '    """Run it."""\n', "    import math\n", edited(STAGE, "import math\n", "")
    ),
    "a local name of an import": edited(
        STAGE, "rates\n", "rates as r\n", edited(STAGE, "rates.RATE", "r.RATE")
    ),
    "a relative import": edited(STAGE, "from toy.parts.middle", "from .parts.middle"),
    "pass beside other statements": edited(STAGE, "    # a comment\n", "    pass\n"),
    "a module in another folder": moved("toy.parts.deep", "toy.lower.deep"),
    "a module under another name": moved("toy.parts.middle", "toy.parts.centre"),
    "a module that is used by its name, elsewhere under another one": moved("toy.rates", "toy.lower.speeds"),
    "the stage itself in another folder": {
        "toy/stages/__init__.py": "",
        **{n.replace("toy/stage.py", "toy/stages/stage.py"): text for n, text in TOY.items()},
    },
    "a module that nothing imports": edited("toy/unrelated.py", "1", "2"),
}  # fmt: skip
OTHER = {
    "a number": edited("toy/rates.py", "0.5", "0.25"),
    "a number in a transitive import": edited("toy/parts/middle.py", "2 * y", "2.0 * y"),
    "a default": edited(STAGE, "int = 4", "int = 5"),
    "a field": edited(STAGE, "int = 3", "int = 5"),
    "a string": edited(STAGE, "no 'name'", "no name"),
    "an operator": edited(DEEP, "x + y", "x - y"),
    "a statement in a transitive import": edited(DEEP, "    return", "    x = abs(x)\n    return"),
    "a name": edited(DEEP, "def add(x, y):\n    return x + y", "def add(y, x):\n    return x + y\n"),
    "a condition turned round": edited(STAGE, "if not", "if"),
    "the order of statements": edited(
        "toy/rates.py", "RATE = 0.5\n", "RATE = 2\nRATE = 0.5\n",
    ),
    "the same name from another module": edited(
        STAGE, "from toy.parts.other import scaled as", "from toy.parts.middle import scaled as"
    ),
    "two imports exchanged": edited(
        STAGE, "from toy.parts.middle import scaled\nfrom toy.parts.other import scaled as otherwise",
        "from toy.parts.other import scaled\nfrom toy.parts.middle import scaled as otherwise",
    ),
    "an import from outside": edited(STAGE, "import math", "import cmath as math"),
    "a further import": edited(STAGE, "import math", "import math\n\nimport toy.unrelated"),
    "data of a package": {**TOY, "toy/parts/table.json": "{}"},
}  # fmt: skip


@pytest.mark.parametrize("what", SAME)
def test_what_python_does_not_run_and_where_it_lies_are_no_code(key: Key, what: str) -> None:
    assert SAME[what] != TOY
    assert key(SAME[what]) == key(TOY)


@pytest.mark.parametrize("what", OTHER)
def test_what_python_runs_is_code(key: Key, what: str) -> None:
    assert OTHER[what] != TOY
    assert key(OTHER[what]) != key(TOY)


def test_all_changes_of_code_differ_from_each_other(key: Key) -> None:
    assert len({key(files) for files in OTHER.values()}) == len(OTHER)


def test_a_name_that_is_imported_twice_with_two_meanings_keeps_both(key: Key) -> None:
    """In this case an import is an ordinary statement: the function that contains it counts."""
    one = "def f():\n    from toy.parts.middle import scaled\n    return scaled\n"
    two = "def g():\n    from toy.parts.other import scaled\n    return scaled\n"
    swapped = (one + two).replace("middle", "x").replace("other", "middle").replace("x", "other")
    assert key({**TOY, STAGE: one + two}) != key({**TOY, STAGE: swapped})


def test_a_name_that_shadows_an_import_is_not_taken_for_it(key: Key) -> None:
    shadowed = edited(STAGE, "size: int = 4", "rates: int = 4")
    assert key(shadowed) != key(TOY)
    assert key(shadowed) == key(edited(STAGE, '"""Run it."""', '"""Run."""', shadowed))


def test_data_beside_the_code_counts() -> None:
    table = ROOT / "kernels/rcm_kernels/attention_jvp/tuned.json"
    found = code_hashes("rcm_core.stages.train", CHOICES)
    assert found["rcm_kernels.attention_jvp/tuned.json"] == hashlib.sha256(table.read_bytes()).hexdigest()
    kinds = {
        path.suffix
        for place in ("rcm_core", "kernels/rcm_kernels")
        for path in (ROOT / place).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert kinds <= {".py", ".md", hashing.DATA}


PROGRAM = """
import json, sys
sys.path[:0] = sys.argv[1:]
from rcm_core.code_hash import code_hashes
choices = {"methods": "rcm", "models": "wan", "benchmarks": "digits"}
print(json.dumps(code_hashes("rcm_core.stages.train", choices)))
"""


@pytest.mark.parametrize("minor", [11, 12, 13])
def test_every_version_of_python_gives_the_same(minor: int) -> None:
    """The test needs the version's interpreter, but no package."""
    command = [f"python3.{minor}", "-I", "-S", "-c", PROGRAM, str(ROOT), str(ROOT / "kernels")]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        pytest.skip(f"Python 3.{minor} does not run here: {error}")
    assert json.loads(answer.stdout) == code_hashes("rcm_core.stages.train", CHOICES)
