"""Metrics of referring image segmentation, from a few areas per sample, so results do not depend on sharding.

For an expression, I and U are the areas of intersection and union of the predicted mask and the ground truth:

overall IoU (oIoU, cIoU)   sum of all I over sum of all U
mean IoU (mIoU, gIoU)      mean of I / U over the expressions
P@X                        share of the expressions with I / U >= X
right-object rate          share of the expressions whose prediction has a larger I / U with its target than with
                           another object of the same image (also reported: the mean I / U with that object)
N-acc, T-acc               share of the expressions without a target whose prediction is empty, and of those with one
                           whose prediction is not (GRES: Liu et al., CVPR 2023)
Pr@F                       share of the expressions with an F1 of 1 between predicted and true instances, matched at a
                           box IoU of 0.5 (GREC: He et al., 2023); instances are the connected parts of the masks,
                           since records only have the union of all targets

If both masks are empty, I / U is 1 for an expression without a target (GRES) and 0 otherwise (the paper's protocol,
where this happens only if resizing removes a mask).

With `transformers.Trainer`, keeping three numbers per prediction instead of masks, which are empty below a presence of
0.5 as in `evaluate`:

    Trainer(
        ...,
        args=TrainingArguments(..., batch_eval_metrics=True),
        preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        compute_metrics=RunningMetrics(),
    )

Without `batch_eval_metrics`, use the function `compute_metrics`: the results are the same, but Trainer keeps all
labels in memory, 1.8 MB for each of 480x480 pixels. `dataloader_drop_last` drops rows.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .modeling_crossvlt import IGNORE_INDEX
from .processing_crossvlt import PRESENCE_THRESHOLD, check_not_nan, counted
from .system import old_names


if TYPE_CHECKING:
    from transformers import EvalPrediction  # imports PEFT where that is installed, which takes seconds


THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


def mask_areas(predictions: Tensor, labels: Tensor) -> Tensor:
    """Intersection, union, and predicted area of each sample.

    Args:
        predictions: (B, H, W) bool, or (B, 2, H, W) logits.
        labels: (B, H, W) bool or integers: 1 on the object, 0 off it, 255 ignored.

    Returns:
        (B, 3) int64, in pixels.

    Raises:
        ValueError: if the shapes differ, or logits are NaN.
    """
    if predictions.ndim == 4 and (predictions.shape[1] != 2 or not predictions.is_floating_point()):
        raise ValueError(
            "Predictions must be logits (B, 2, H, W) or bool (B, H, W), got shape "
            f"{tuple(predictions.shape)} and dtype {predictions.dtype}."
        )
    if predictions.ndim == 4:
        predictions = check_not_nan(predictions).argmax(dim=1)
    if predictions.shape != labels.shape or labels.ndim != 3:
        raise ValueError(
            "Predictions and labels must have the same (batch, height, width), got "
            f"{tuple(predictions.shape)} and {tuple(labels.shape)}."
        )
    valid = labels != IGNORE_INDEX
    predicted, target = predictions.bool() & valid, (labels == 1) & valid
    return torch.stack([x.flatten(1).sum(1) for x in (predicted & target, predicted | target, predicted)], dim=1)


@dataclass(frozen=True)
class Sample:
    """The numbers that an evaluation keeps of one prediction.

    Args:
        intersection: of prediction and target, in pixels.
        union: of prediction and target, in pixels.
        predicted: area of the prediction, in pixels.
        has_target: whether the expression has a target.
        group: family of the expression.
        distractor: intersection and union of the prediction with another object of the image, if compared.
        score: of the prediction, from the processor.
        estimate: input of a score calibration: `estimate_iou`, times the presence.
        presence: the probability of a target, from a presence head.
        instances_found: whether predicted and true instances match, if compared.
        parts: connected parts of the prediction, if only the largest was kept.
    """

    intersection: int
    union: int
    predicted: int
    has_target: bool = True
    group: str = ""
    distractor: tuple[int, int] | None = None
    # Not used to compare samples
    score: float | None = field(default=None, compare=False)
    estimate: float | None = field(default=None, compare=False)
    presence: float | None = field(default=None, compare=False)
    instances_found: bool | None = field(default=None, compare=False)
    parts: int | None = field(default=None, compare=False)

    @property
    def iou(self) -> float:
        """I / U; if U is 0, 1 without a target and 0 with one."""
        return self.intersection / self.union if self.union else float(not self.has_target)


def _share(flags: Sequence[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None


def summarise(samples: Sequence[Sample]) -> dict[str, float | int | None]:
    """All metrics over samples, from 0 to 1; None if undefined.

    P@X is over the samples with a target, as in GRES. The right-object rate compares with one other object, so chance
    is 50 %. Also returns the numbers of "samples", of "no_target_samples" among them, and of "right_object_samples",
    which had another object to compare with; if only the largest part of each mask was kept, "mean_parts", the mean
    number of parts of masks that are not empty.

    Sums are exact (of integers, or by `math.fsum`), so the order of the samples does not matter.
    """
    ious = [sample.iou for sample in samples]
    union = sum(sample.union for sample in samples)
    targeted = [sample for sample in samples if sample.has_target]
    untargeted = [sample for sample in samples if not sample.has_target]
    return {
        "overall_iou": sum(sample.intersection for sample in samples) / union if union else None,
        "mean_iou": math.fsum(ious) / len(ious) if ious else None,
        **{f"precision@{x}": _share([sample.iou >= x for sample in targeted]) for x in THRESHOLDS},
        "no_target_accuracy": _share([sample.predicted == 0 for sample in untargeted]),
        "target_accuracy": _share([sample.predicted > 0 for sample in targeted]),
        "samples": len(samples),
        "no_target_samples": len(untargeted),
        **_optional_metrics(samples),
    }


def _optional_metrics(samples: Sequence[Sample]) -> dict[str, float | int | None]:
    """Metrics of optional comparisons."""
    metrics: dict[str, float | int | None] = {}
    if compared := [
        (sample.iou, sample.distractor[0] / max(sample.distractor[1], 1)) for sample in samples if sample.distractor
    ]:
        metrics["distractor_iou"] = math.fsum(other for _, other in compared) / len(compared)
        metrics["right_object_rate"] = _share([own > other for own, other in compared])
        metrics["right_object_samples"] = len(compared)
    if matched := [sample.instances_found for sample in samples if sample.instances_found is not None]:
        metrics["instance_accuracy"] = _share(matched)
    if parts := [sample.parts for sample in samples if sample.parts]:
        metrics["mean_parts"] = sum(parts) / len(parts)
    return metrics


def box_iou(first: Sequence[int], second: Sequence[int]) -> float:
    """IoU of two boxes [x_min, y_min, x_max, y_max], the maxima exclusive."""
    sides = (min(first[axis + 2], second[axis + 2]) - max(first[axis], second[axis]) for axis in (0, 1))
    intersection = math.prod(max(0, side) for side in sides)
    areas = ((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return intersection / (sum(areas) - intersection)


def match_instances(found: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]], least: float = 0.5) -> bool:
    """Whether boxes match one to one, by augmenting paths.

    Args:
        found: predicted boxes, as in `box_iou`.
        wanted: true boxes, as in `box_iou`.
        least: the box IoU from which two boxes match.
    """
    if len(found) != len(wanted):
        return False
    near = [[number for number, other in enumerate(found) if box_iou(box, other) >= least] for box in wanted]
    owner: dict[int, int] = {}  # the true box of a predicted one

    def place(box: int, tried: set[int]) -> bool:
        """Match a true box, moving others if necessary."""
        for number in near[box]:
            if number not in tried:
                tried.add(number)
                if number not in owner or place(owner[number], tried):
                    owner[number] = box
                    return True
        return False

    return all(place(box, set()) for box in range(len(wanted)))


@dataclass
class ReferringSegmentationMetric:
    """Collect samples, and compute metrics over all of them and over each group.

    Every process adds its own samples; `merge` adds those of another process.
    """

    samples: list[Sample] = field(default_factory=list)

    def update(
        self,
        predictions: Tensor,
        labels: Tensor,
        *,
        has_target: Sequence[bool] | None = None,
        groups: Sequence[str] | None = None,
    ) -> None:
        """Add a batch.

        Args:
            predictions: as in `mask_areas`.
            labels: as in `mask_areas`.
            has_target: whether each expression has a target; None if all have one.
            groups: the family of each expression.

        Raises:
            ValueError: if the shapes or lengths differ.
        """
        areas = mask_areas(predictions, labels).tolist()
        flags = [True] * len(areas) if has_target is None else list(has_target)
        names = [""] * len(areas) if groups is None else list(groups)
        if not len(areas) == len(flags) == len(names):
            raise ValueError(
                f"`has_target` and `groups` must have one entry per sample, got {counted(len(areas), 'sample')}, "
                f"{counted(len(flags), 'flag')} and {counted(len(names), 'group')}."
            )
        for (intersection, union, predicted), flag, name in zip(areas, flags, names, strict=True):
            self.samples.append(Sample(intersection, union, predicted, bool(flag), name))

    def merge(self, other: "ReferringSegmentationMetric") -> None:
        """Add the samples of another process."""
        self.samples += other.samples

    def compute(self) -> dict[str, float | int | None]:
        """The metrics over all samples: see `summarise`."""
        return summarise(self.samples)

    def compute_groups(self) -> dict[str, dict[str, float | int | None]]:
        """The metrics of each group, by name."""
        groups: dict[str, list[Sample]] = {}
        for sample in self.samples:
            groups.setdefault(sample.group, []).append(sample)
        return {name: summarise(groups[name]) for name in sorted(groups)}


# Headings of tables
COLUMNS = {
    "oIoU": "overall_iou",
    "mIoU": "mean_iou",
    **{f"P@{x}": f"precision@{x}" for x in (0.5, 0.6, 0.7, 0.8, 0.9)},
}
NO_TARGET_COLUMNS = {"N-acc": "no_target_accuracy", "T-acc": "target_accuracy"}
OF_ALL_SAMPLES = ("overall_iou", "mean_iou", "instance_accuracy")
DISTRACTOR_COLUMNS = {"right object": "right_object_rate", "Pr@F": "instance_accuracy"}


def percent(share: float, decimals: int = 1) -> str:
    """A share from 0 to 1 in percent, without the sign."""
    return f"{100 * share:.{decimals}f}"


def _cell(row: Mapping[str, Any], key: str) -> str:
    """A metric of a row in percent, with its number of samples if that differs from the row's."""
    samples, untargeted = row.get("samples"), row.get("no_target_samples")
    count = samples
    if key == "right_object_rate":
        count = row.get("right_object_samples")
    elif key == "no_target_accuracy":
        count = untargeted
    elif samples is not None and untargeted is not None and key not in OF_ALL_SAMPLES:
        count = samples - untargeted
    shown = count is not None and (count != samples or key == "right_object_rate")
    return percent(row[key]) + (f" (of {count})" if shown else "")


def markdown_table(rows: Mapping[str, Mapping[str, Any]], heading: str) -> str:
    """Format metrics in percent as a Markdown table.

    Args:
        rows: results of `summarise`, or parts of them, by row name.
        heading: of the first column.

    Returns:
        The table, without columns that have no values; metrics over a part of the samples have their number.
    """
    columns = dict(COLUMNS)
    if any(row.get("no_target_accuracy") is not None for row in rows.values()):
        columns |= NO_TARGET_COLUMNS
    columns |= DISTRACTOR_COLUMNS
    known = {title: key for title, key in columns.items() if any(row.get(key) is not None for row in rows.values())}
    counted = any("samples" in row for row in rows.values())
    titles = [heading, *(["samples"] if counted else []), *known]
    lines = [f"| {' | '.join(titles)} |", f"|---|{'---:|' * (len(titles) - 1)}"]
    for name, row in rows.items():
        cells = [str(row.get("samples", "-"))] if counted else []
        cells += ["-" if row.get(key) is None else _cell(row, key) for key in known.values()]
        escaped = name.replace("|", "\\|")
        lines.append(f"| {escaped} | {' | '.join(cells)} |")
    return "\n".join(lines)


def preprocess_logits_for_metrics(logits: Tensor | tuple[Tensor, ...], labels: Tensor) -> Tensor:
    """Reduce a batch to what Trainer keeps: (B, 3) int64, see `mask_areas`.

    Args:
        logits: (B, 2, H, W), or a tuple of these and, of a model with a presence head, (B,) presence logits. Masks are
            empty below a presence of 0.5, as in `evaluate`.
        labels: (B, H, W), as in `mask_areas`.
    """
    logits, *others = logits if isinstance(logits, tuple) else (logits,)
    presence = next((other for other in others if isinstance(other, Tensor) and other.ndim == 1), None)
    if presence is None:
        return mask_areas(logits, labels)
    present = check_not_nan(presence).sigmoid() >= PRESENCE_THRESHOLD
    return mask_areas(check_not_nan(logits).argmax(dim=1).bool() & present[:, None, None], labels)


def _samples(areas: Any) -> list[Sample]:
    """Samples of (N, 3) areas; without object pixels at the input size, a sample counts as without a target."""
    return [
        Sample(intersection, union, predicted, has_target=union - predicted + intersection > 0)
        for intersection, union, predicted in areas.tolist()
    ]


def _known(metrics: dict[str, float | int | None]) -> dict[str, float | int]:
    """Drop values that are None, which the loggers of Trainer do not accept."""
    return {name: value for name, value in metrics.items() if value is not None}


def compute_metrics(prediction: "EvalPrediction") -> dict[str, float | int]:
    """Compute metrics for Trainer from results of `preprocess_logits_for_metrics`: see the module."""
    return _known(summarise(_samples(prediction.predictions)))


@dataclass
class RunningMetrics:
    """Compute metrics batch by batch, for Trainer with `batch_eval_metrics=True`: see the module."""

    samples: list[Sample] = field(default_factory=list)

    def __call__(self, prediction: "EvalPrediction", compute_result: bool = True) -> dict[str, float | int]:
        """Add a batch; with the last one, return the metrics over all batches and reset."""
        self.samples += _samples(prediction.predictions)
        if not compute_result:
            return {}
        samples, self.samples = self.samples, []
        return _known(summarise(samples))


__getattr__ = old_names(__name__, {"Areas": f"{__name__}.Sample"})
