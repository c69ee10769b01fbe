"""Every relative link in the Markdown files leads to a file, and every ``#anchor`` to a heading."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"```.*?```|`[^`]*`", re.DOTALL)


def anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(path: Path) -> set[str]:
    """All anchors of a Markdown file."""
    return {anchor(m.group(1)) for m in re.finditer(r"^#+\s+(.*)$", path.read_text(), re.MULTILINE)}


def find_broken(path: Path) -> list[str]:
    """Links in ``path`` that lead nowhere."""
    found = []
    for target in LINK.findall(FENCE.sub("", path.read_text())):
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, fragment = target.partition("#")
        goal = (path.parent / name).resolve() if name else path
        missing = not goal.exists() or (fragment and goal.suffix == ".md" and fragment not in anchors(goal))
        if missing:
            found.append(f"{path.relative_to(ROOT)}: {target}")
    return found


def main() -> int:
    """Prints the broken links; 1 if there are any."""
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    problems = [line for name in listed.stdout.split() for line in find_broken(ROOT / name)]
    print("\n".join(problems) or f"{len(listed.stdout.split())} Markdown files, all links lead somewhere")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
