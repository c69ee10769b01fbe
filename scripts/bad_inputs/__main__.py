"""Write docs/results/bad_inputs.json: ``python -m scripts.bad_inputs``; exit status 1 if an input is not refused."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from scripts.bad_inputs.cases import cases
from scripts.bad_inputs.project import Project

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs/results/bad_inputs.json"


def main() -> int:
    """Totals, and a line for each input."""
    with tempfile.TemporaryDirectory() as folder:
        project = Project(Path(folder))
        project.make()
        inputs = [project.run(case) for case in cases(project.root)]
    refused = sum(found["refused"] for found in inputs)
    totals = {"inputs": len(inputs), "one sentence and exit status 2": refused}
    RESULTS.write_text(json.dumps({"totals": totals, "inputs": inputs}, indent=1, ensure_ascii=False) + "\n")
    for found in inputs:
        if not found["refused"]:
            print(f"NOT REFUSED: {found}")
    print(totals)
    return int(refused < len(inputs))


if __name__ == "__main__":
    sys.exit(main())
