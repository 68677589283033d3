"""`crossvlt train` under its old name."""

import sys
from collections.abc import Sequence

from ..cli import main as crossvlt


def main(argv: Sequence[str] | None = None) -> int:
    """Train, with the arguments of `crossvlt train`."""
    return crossvlt(["train", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
