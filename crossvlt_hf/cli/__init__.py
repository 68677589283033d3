"""The command `crossvlt`."""

import argparse
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from types import FrameType

from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils.logging import set_verbosity_error as set_hub_verbosity_error
from transformers.utils import logging

from ..system import in_one_line
from . import benchmark, convert, demo, evaluate, export, predict, publish, refer, refshapes, segment, train


def build_parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    parser = argparse.ArgumentParser(prog="crossvlt", description="Referring image segmentation with CrossVLT.")
    parser.add_argument("--version", action="version", version=f"crossvlt_hf {version('crossvlt_hf')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (segment, predict, demo, train, evaluate, convert, export, publish, refer, refshapes, benchmark):
        module.add_command(commands)
    return parser


@contextmanager
def _orderly_end() -> Iterator[None]:
    """Let a request to end, as `kill` sends it, undo what is unfinished as an exception does."""
    if threading.current_thread() is not threading.main_thread():  # which alone may ask for signals
        yield
        return

    def end(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; wrong input is told in one line, with exit code 2; Ctrl-C with 130."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    settings = [entry for entry in rest if "=" in entry and not entry.startswith("-")]  # behind an option of `train`
    if len(settings) < len(rest) or (rest and not hasattr(arguments, "settings")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.settings += rest
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    set_hub_verbosity_error()
    try:
        with _orderly_end():
            return arguments.run(arguments) or 0
    except (OSError, ValueError, StrictDataclassError) as error:
        print(f"crossvlt: {in_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("crossvlt: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
