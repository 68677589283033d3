"""Calibration of scores: how close scores are to the IoU of the masks, and how to calibrate them.

Without a `score_calibration`, the score of a processor is the mean probability of the object over the mask. It is too
high, as it ignores pixels that the mask misses, and masks of wrong objects. With one, it is the expected IoU.
Fit it with `fit_score` on data that the model was not trained on, and measure it on other data.
"""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..configuration_crossvlt import write_file
from ..processing_crossvlt import check_calibration


BINS = 10
LEAST_SAMPLES = 50  # for a fit
KNOTS = 20  # the most points of a calibration


def reliability(scores: Sequence[float], values: Sequence[float], bins: int = BINS) -> list[dict[str, float | int]]:
    """Compare scores with true values, in bins of equal width.

    Args:
        scores: from 0 to 1.
        values: from 0 to 1: IoUs, or for probabilities whether it was so.
        bins: number of bins.

    Returns:
        For each bin with samples its bounds "low" and "high", "samples", and the mean "score" and "value".

    Raises:
        ValueError: if the numbers of scores and values differ, or some are not from 0 to 1.
    """
    score, value = _shares(scores, "scores"), _shares(values, "values")
    if len(score) != len(value):
        raise ValueError(f"There must be as many scores as values, got {len(score)} and {len(value)}.")
    place = np.minimum((score * bins).astype(int), bins - 1)
    return [
        {
            "low": number / bins,
            "high": (number + 1) / bins,
            "samples": int((place == number).sum()),
            "score": float(score[place == number].mean()),
            "value": float(value[place == number].mean()),
        }
        for number in np.unique(place).tolist()
    ]


def calibration_error(scores: Sequence[float], values: Sequence[float], bins: int = BINS) -> float | None:
    """The expected calibration error: the mean difference of score and value over bins, weighted by their samples.

    Args:
        scores: see `reliability`.
        values: see `reliability`.
        bins: number of bins.

    Returns:
        0 to 1; None without samples.
    """
    rows = reliability(scores, values, bins)
    total = sum(row["samples"] for row in rows)
    return math.fsum(row["samples"] * abs(row["score"] - row["value"]) for row in rows) / total if total else None


def fit_score(estimates: Sequence[float], ious: Sequence[float], knots: int = KNOTS) -> list[list[float]]:
    """Fit a score calibration: an increasing, piecewise linear map from estimates to IoUs.

    The points are the means of groups of equal size, sorted by estimate, after pooling adjacent violators (Barlow et
    al., 1972).

    Args:
        estimates: for masks that are not empty: `estimate_iou`, times the presence.
        ious: of the same masks; 0 without a target.
        knots: the most points.

    Returns:
        [estimate, expected IoU] points for `CrossVLTProcessor.score_calibration`.

    Raises:
        ValueError: if there are fewer than 50 samples, or some are not from 0 to 1.
    """
    estimate, iou = _shares(estimates, "estimates"), _shares(ious, "IoUs")
    if len(estimate) != len(iou) or len(iou) < LEAST_SAMPLES:
        raise ValueError(
            f"There must be as many estimates as IoUs, at least {LEAST_SAMPLES}, got {len(estimate)} and {len(iou)}."
        )
    order = np.argsort(estimate, kind="stable")
    groups = np.array_split(order, min(knots, len(iou) // (LEAST_SAMPLES // 2)))
    blocks: list[tuple[float, float, int]] = []  # mean estimate, mean IoU, samples
    for group in groups:
        blocks.append((float(estimate[group].mean()), float(iou[group].mean()), len(group)))
        while len(blocks) > 1 and (blocks[-2][1] >= blocks[-1][1] or blocks[-2][0] >= blocks[-1][0]):
            blocks[-2:] = [_pool(*blocks[-2:])]
    points = [[round(x, 6), round(y, 6)] for x, y, _ in blocks]
    return [point for number, point in enumerate(points) if number == 0 or point[0] > points[number - 1][0]]


def _pool(first: tuple[float, float, int], second: tuple[float, float, int]) -> tuple[float, float, int]:
    count = first[2] + second[2]
    x, y = ((a * first[2] + b * second[2]) / count for a, b in zip(first[:2], second[:2], strict=True))
    return x, y, count


def _shares(values: Sequence[float], name: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not ((array >= 0) & (array <= 1)).all():
        raise ValueError(f"The {name} must be numbers from 0 to 1, got {values!r:.200}.")
    return array


def calibration_report(samples: Iterable[Any], calibrated: bool) -> dict[str, Any]:
    """Measure the calibration of the scores of an evaluation.

    Args:
        samples: `crossvlt_hf.metrics.Sample` of `evaluate`, with scores.
        calibrated: whether the processor has a `score_calibration`.

    Returns:
        "calibrated"; "score": "expected_calibration_error" and "bins" (see `reliability`) of the scores and IoUs of
        all masks that are not empty; with a presence head "presence": the same for the probability of a target, over
        all expressions. {} without samples.
    """
    samples = list(samples)
    answered = [sample for sample in samples if sample.score is not None and sample.predicted > 0]
    judged = [sample for sample in samples if sample.presence is not None]
    report: dict[str, Any] = {"calibrated": calibrated}
    for name, pairs in (
        ("score", [(sample.score, sample.iou) for sample in answered]),
        ("presence", [(sample.presence, float(sample.has_target)) for sample in judged]),
    ):
        if pairs:
            scores, values = zip(*pairs, strict=True)
            error = calibration_error(scores, values)
            report[name] = {"expected_calibration_error": error, "bins": reliability(scores, values)}
    return report if len(report) > 1 else {}


def save_calibration(folder: str | Path, points: Sequence[Sequence[float]] | None) -> None:
    """Save a score calibration in the `processor_config.json` of a checkpoint folder.

    Args:
        folder: of the checkpoint.
        points: from `fit_score`; None removes the calibration.

    Raises:
        OSError: if the folder has no `processor_config.json`.
        ValueError: if the points are not valid.
    """
    path = Path(folder) / "processor_config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["score_calibration"] = check_calibration(points)
    write_file(path, (json.dumps(values, indent=2, sort_keys=True) + "\n").encode())
