"""What a run prints: lines that leave its bar whole, and no bars of others."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm
from transformers.utils import logging


def say(line: str) -> None:
    """Write a line to stderr, above the bar if one is shown."""
    tqdm.write(line, file=sys.stderr)


@contextmanager
def without_bars() -> Iterator[None]:
    """Hide the bars that Transformers draws for loading and saving."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
