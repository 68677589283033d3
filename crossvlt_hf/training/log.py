"""What a run tells while it goes: `log.jsonl`, a line of JSON for every logged step and evaluation; its console."""

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
from ..processing_crossvlt import counted


SCORE = "validation/overall_iou"
# What an evaluation prints, under which name
PRINTED = {
    "overall IoU": "overall_iou",
    "mean IoU": "mean_iou",
    "P@0.5": "precision@0.5",
    "right object": "right_object_rate",
    "no target": "no_target_accuracy",
}


def evaluation_line(step: int, steps: int, metrics: dict[str, Any]) -> str:
    """An evaluation as a line, aligned with those of the run's other evaluations."""
    shares = [f"{name} {metrics[key]:.4f}" for name, key in PRINTED.items() if metrics.get(key) is not None]
    return (
        f"step {step:>{len(str(steps))}}/{steps}  {'  '.join(shares)}  ({counted(metrics['samples'], 'expression')})"
    )


def read_log(path: Path) -> list[dict[str, Any]]:
    """The entries of a log; a line that an interruption cut off is left out."""
    entries = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return entries


def rewind(path: Path, step: int) -> None:
    """Leave out what was logged after a step, to which the run goes back."""
    if path.is_file():
        kept = [json.dumps(entry) + "\n" for entry in read_log(path) if entry["step"] <= step]
        write_file(path, "".join(kept).encode())


def append(path: Path, entry: dict[str, Any]) -> None:
    """Add an entry."""
    try:
        with path.open("a") as log:
            log.write(json.dumps(entry) + "\n")
    except OSError as error:
        raise OSError(f"{path} could not be written ({error}). Checkpoints are as they were.") from error


def best_score(path: Path) -> float:
    """The best overall IoU so far; minus infinity without any."""
    return max((entry[SCORE] or 0.0 for entry in read_log(path) if SCORE in entry), default=-math.inf)


def is_evaluated(path: Path, step: int) -> bool:
    """Whether an evaluation of that step was logged."""
    return any(SCORE in entry and entry["step"] == step for entry in read_log(path))


# ---- the console


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
