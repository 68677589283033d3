"""The command `crossvlt`."""

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version

from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils.logging import set_verbosity_error as set_hub_verbosity_error
from transformers.utils import logging

from . import benchmark, convert, demo, evaluate, export, publish, refshapes, segment


def build_parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    parser = argparse.ArgumentParser(prog="crossvlt", description="Referring image segmentation with CrossVLT.")
    parser.add_argument("--version", action="version", version=f"crossvlt_hf {version('crossvlt_hf')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (segment, demo, evaluate, convert, export, publish, refshapes, benchmark):
        module.add_command(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; wrong input is told in one line, with exit code 2."""
    arguments = build_parser().parse_args(argv)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    set_hub_verbosity_error()
    try:
        arguments.run(arguments)
    except (OSError, ValueError, StrictDataclassError) as error:
        print(f"crossvlt: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0
