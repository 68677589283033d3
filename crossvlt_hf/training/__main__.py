"""The old name of `crossvlt train`."""

import sys
from collections.abc import Sequence

from ..cli import main as crossvlt


def main(argv: Sequence[str] | None = None) -> int:
    """Run `crossvlt train` with the same arguments."""
    return crossvlt(["train", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
