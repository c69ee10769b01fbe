"""Write docs/results/bad_inputs.json: ``python -m scripts.bad_inputs [WHERE ...]``; exit status 1 if an input of those
places (none named: of all) is neither refused nor taken for a stated reason. Rows of other places stay as they are.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from scripts.bad_inputs.cases import cases
from scripts.bad_inputs.project import Project, is_right

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs/results/bad_inputs.json"


def main(places: Sequence[str]) -> int:
    """Totals, and a line for each input."""
    with tempfile.TemporaryDirectory() as folder:
        project = Project(Path(folder))
        project.make()
        every = list(cases(project.root))
        chosen = [case for case in every if not places or case.where in places]
        found = {(case.where, case.what): project.run(case) for case in chosen}
    wrong = [row for row in found.values() if not is_right(row)]
    if places:
        before = {(row["where"], row["what"]): row for row in json.loads(RESULTS.read_text())["inputs"]}
        found = before | found
    inputs = [found[case.where, case.what] for case in every if (case.where, case.what) in found]
    totals = {
        "inputs": len(inputs),
        "one sentence and exit status 2": sum(row["refused"] for row in inputs),
        "accepted, for a stated reason": sum(row.get("taken", False) for row in inputs),
    }
    RESULTS.write_text(json.dumps({"totals": totals, "inputs": inputs}, indent=1, ensure_ascii=False) + "\n")
    for row in wrong:
        print(f"NOT AS IT SHOULD BE: {row}")
    print(totals)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
