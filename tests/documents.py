"""Code blocks of Markdown files, to be run by tests."""

import re
from pathlib import Path
from typing import NamedTuple


BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    language: str
    code: str
    line: int


def code_blocks(text: str) -> list[Block]:
    """The fenced blocks of a text, with their languages and the lines they begin at."""
    return [Block(found[1], found[2], text.count("\n", 0, found.start()) + 2) for found in BLOCK.finditer(text)]


def run_python(code: str, path: Path, line: int, scope: dict) -> None:
    """Run a block as if it stood in the document's file, so that an error tells the line."""
    exec(compile("\n" * (line - 1) + code, path, "exec"), scope)
