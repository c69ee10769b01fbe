"""Check the Markdown files: links lead to files and headings, prose is wrapped, and its words are of today.

Comments and docstrings of Python files are checked for their words, too.
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"```.*?```|`[^`]*`", re.DOTALL)
WIDTH = 100
"""Characters of a line of prose; tables, code, headings and a single long word may be longer."""
OLD_WORDS = re.compile(
    r"\b(mend(s|ed|ing)?|anew|but for|held against|dealt|laid over|(carry|carries|carried) on"
    r"|(go|goes|going|gone|went) on|speaks? of|that there (is|are)|so many)\b"
)
"""Words that the project's English avoids; each has a plainer one (repair, again, except, compared with, continue)."""
MARKER = re.compile(r"(\s*)([-*+]|\d+\.) ")


def anchor(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(path: Path) -> set[str]:
    """Return all anchors of a Markdown file."""
    return {anchor(m.group(1)) for m in re.finditer(r"^#+\s+(.*)$", path.read_text(), re.MULTILINE)}


def find_broken_links(path: Path) -> list[str]:
    """Return the links in ``path`` that lead nowhere."""
    found = []
    for target in LINK.findall(FENCE.sub("", path.read_text())):
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, fragment = target.partition("#")
        goal = (path.parent / name).resolve() if name else path
        missing = not goal.exists() or (fragment and goal.suffix == ".md" and fragment not in anchors(goal))
        if missing:
            found.append(f"{target} leads nowhere; correct the link")
    return found


def text_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a Markdown text outside code blocks, with their numbers from 1."""
    fenced = code = False
    blank, indent = True, 0  # of the line before; of the list item that the line belongs to
    for number, line in enumerate(text.split("\n"), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
            continue
        if fenced:
            continue
        if not line.strip():
            blank = True
            continue
        start, item = len(line) - len(line.lstrip()), MARKER.match(line)
        if start < indent and not (item and start):
            indent = 0
        code = start >= indent + 4 and (blank or code) and not (indent and item)
        blank = False
        if code:
            continue
        if item:
            indent = item.end()
        yield number, line


def find_long_lines(text: str) -> list[str]:
    """Return the lines of prose that are longer than ``WIDTH`` and can be wrapped."""
    return [
        f"line {number} has {len(line)} characters; wrap prose at {WIDTH}"
        for number, line in text_lines(text)
        if len(line) > WIDTH
        and not re.match(r"\s*(\||#|!\[|<!--)", line)
        and len(MARKER.sub("", line, count=1).split()) > 1
    ]


def find_old_words(text: str) -> list[str]:
    """Return the words of ``OLD_WORDS`` outside code, also where a line ends between them."""
    prose = " ".join(FENCE.sub("", "\n".join(line for _, line in text_lines(text))).split())
    return [f'"{found.group()}" is old English; use a plainer word' for found in OLD_WORDS.finditer(prose)]


def documentation(source: str) -> str:
    """Return the comments and docstrings (of modules, classes, functions and attributes) of Python code."""
    strings = [
        inspect.cleandoc(node.value.value)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ]
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = [token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT]
    return "\n\n".join([*strings, *comments])


def check(path: Path) -> list[str]:
    """Return one line for each problem of a Markdown or Python file."""
    text = path.read_text()
    if path.suffix == ".py":
        problems = find_old_words(documentation(text))
    else:
        problems = [*find_broken_links(path), *find_long_lines(text), *find_old_words(text)]
    return [f"{path.relative_to(ROOT)}: {problem}" for problem in problems]


def main() -> int:
    """Print the problems of all tracked Markdown and Python files; return 1 if there are any."""
    listed = subprocess.run(
        ["git", "ls-files", "*.md", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    names = listed.stdout.split()
    problems = [line for name in names for line in check(ROOT / name)]
    print(
        "\n".join(problems) or f"{len(names)} Markdown and Python files: links, wrapping and words are right"
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
