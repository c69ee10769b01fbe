"""``python -m experiments.comparison.page`` writes docs/results.md."""

from experiments.comparison.page.page import write
from experiments.comparison.workspaces import ROOT

if __name__ == "__main__":
    write(ROOT / "docs")
