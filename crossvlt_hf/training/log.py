"""The log of a run, `log.jsonl`, a line per logged step and evaluation; and its output on the console."""

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers.utils import logging

from ..configuration_crossvlt import write_file
from ..metrics import percent
from ..processing_crossvlt import counted


SCORE = "validation/overall_iou"
# Metrics that an evaluation prints, by their names there
PRINTED = {
    "overall IoU": "overall_iou",
    "mean IoU": "mean_iou",
    "P@0.5": "precision@0.5",
    "right object": "right_object_rate",
    "no target": "no_target_accuracy",
}


def evaluation_line(step: int, steps: int, metrics: dict[str, Any]) -> str:
    """A line about an evaluation in percent with four digits, aligned with those of other evaluations."""
    shares = [
        f"{name} {percent(metrics[key], 2):>6} %" for name, key in PRINTED.items() if metrics.get(key) is not None
    ]
    return (
        f"step {step:>{len(str(steps))}}/{steps}  {'  '.join(shares)}  ({counted(metrics['samples'], 'expression')})"
    )


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read the entries of a log, without incomplete lines."""
    entries = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return entries


def rewind(path: Path, step: int) -> None:
    """Remove the entries after a step, from which the run is resumed."""
    if path.is_file():
        kept = [json.dumps(entry) + "\n" for entry in read_log(path) if entry["step"] <= step]
        write_file(path, "".join(kept).encode())


def append(path: Path, entry: dict[str, Any]) -> None:
    """Append an entry."""
    try:
        with path.open("a") as log:
            log.write(json.dumps(entry) + "\n")
    except OSError as error:
        raise OSError(f"{path} could not be written ({error}). Checkpoints are intact.") from error


def best_score(path: Path) -> float:
    """The best overall IoU so far, or minus infinity."""
    return max((entry[SCORE] or 0.0 for entry in read_log(path) if SCORE in entry), default=-math.inf)


def is_evaluated(path: Path, step: int) -> bool:
    """Whether an evaluation of a step was logged."""
    return any(SCORE in entry and entry["step"] == step for entry in read_log(path))


# ---- the console


def say(line: str) -> None:
    """Print a line on stderr, above the progress bar."""
    tqdm.write(line, file=sys.stderr)


@contextmanager
def without_bars() -> Iterator[None]:
    """Hide the progress bars of Transformers."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
