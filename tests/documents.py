"""Code blocks and links of Markdown files, to be checked by tests."""

import re
from pathlib import Path
from typing import NamedTuple


ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    language: str
    code: str
    line: int


def code_blocks(text: str) -> list[Block]:
    """The fenced blocks of a text, with their languages and the lines they begin at."""
    return [Block(found[1], found[2], text.count("\n", 0, found.start()) + 2) for found in BLOCK.finditer(text)]


def shell_lines(code: str) -> list[str]:
    """The commands of a shell block, without comments; one that goes on after a backslash is one line."""
    joined = re.sub(r"\s*\\\n\s*", " ", code)
    return [line for line in (line.split("  #")[0].strip() for line in joined.splitlines()) if line]


def run_python(code: str, path: Path, line: int, scope: dict) -> None:
    """Run a block as if it stood in the document's file, so that an error tells the line."""
    exec(compile("\n" * (line - 1) + code, path, "exec"), scope)


def anchors(text: str) -> set[str]:
    """The names under which GitHub links to the headings of a text."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(text: str) -> list[str]:
    """The targets of links and pictures that are no addresses."""
    found = re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", text))
    return [target for target in found if "://" not in target]
