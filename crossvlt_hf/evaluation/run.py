"""Evaluate a model on a data set, in one or several processes, at the model's input size or the original size."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object, tqdm
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from ..data.pairs import EvaluationPairs, reference_name
from ..data.refshapes.dataset import Drawn
from ..metrics import ReferringSegmentationMetric, Sample, mask_areas, match_instances
from ..modeling_crossvlt import IGNORE_INDEX, CrossVLTModel, evaluating
from ..processing_crossvlt import (
    CrossVLTProcessor,
    NothingReadError,
    check_min_area,
    check_not_nan,
    check_that_something_is_read,
    estimate_iou,
    find_instances,
    find_parts,
    resize_label_map,
    resolve_presence_threshold,
)
from ..system import check_known, check_least, check_workers, iterate_loader, start_worker
from ..weights.vocabulary import summarize_reading


Protocol = Literal["paper", "original"]
Truncation = Literal["keep_sep", "reference"]


@dataclass(frozen=True)
class EvaluationOptions:
    """How to evaluate.

    Args:
        batch_size: pairs per forward pass.
        protocol: "paper" resizes masks (nearest) to the input size of the model, 480x480 in the paper; "original"
            resizes logits (bilinear) to the size of the image.
        truncation: how to cut long expressions: "keep_sep" keeps [SEP]; "reference" cuts it off, as the authors' code.
        shuffle: use the expression of another image: the score of a model that ignores the text.
        distractors: whether to also compare with the mask of another reference to the same image.
        presence_threshold: below this probability of a target, the mask is empty; "auto" is 0.5 for a model with a
            presence head, None empties no mask.
        largest_part: whether to keep only the largest connected part of each predicted mask.
        instances: whether to also compare the connected parts of the masks.
        min_area: smallest area of such a part, in pixels; None is 1. The largest part of a mask always counts.
        workers: processes that load data.
        progress: whether to show a progress bar.
    """

    batch_size: int = 8
    protocol: Protocol = "paper"
    truncation: Truncation = "keep_sep"
    shuffle: bool = False
    distractors: bool = False
    presence_threshold: float | Literal["auto"] | None = "auto"
    largest_part: bool = False
    instances: bool = False
    min_area: int | None = None
    workers: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        check_known("protocol", self.protocol, get_args(Protocol))
        check_known("truncation", self.truncation, get_args(Truncation))
        check_least("batch_size", self.batch_size, 1)
        check_workers("workers", self.workers)
        resolve_presence_threshold(self.presence_threshold, has_head=True)
        check_min_area(self.instances, self.min_area)


def tokenize(processor: CrossVLTProcessor, expressions: list[str], truncation: Truncation) -> dict[str, Tensor]:
    """Tokenize expressions: token ids and masks, (B, T) int64."""
    if truncation == "keep_sep":
        return dict(processor(text=expressions, return_tensors="pt"))
    tokenizer, length = processor.tokenizer, processor.max_length
    options = {"padding": "max_length", "max_length": length, "truncation": False}
    whole = tokenizer(expressions, **options, split_special_tokens=True, verbose=False)
    check_that_something_is_read(tokenizer, expressions, whole["input_ids"])
    return {name: torch.tensor([row[:length] for row in rows]) for name, rows in whole.items()}


@dataclass
class _Collator:
    """Make inputs of the model of pairs, and return both."""

    processor: CrossVLTProcessor
    options: EvaluationOptions
    expressions: dict[int, str] | None = None

    def __call__(self, pairs: list[dict[str, Any]]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        said = [pair["expression"] if self.expressions is None else self.expressions[pair["index"]] for pair in pairs]
        images = self.processor.image_processor([pair.pop("image") for pair in pairs], return_tensors="pt")
        inputs = {"pixel_values": images["pixel_values"], **tokenize(self.processor, said, self.options.truncation)}
        return inputs, pairs


MOST_DRAWN = 500  # references to draw for their expressions


def describe_reading(processor: CrossVLTProcessor, datasets: Sequence[Dataset]) -> str:
    """One line about the share of unknown words and the number of truncated expressions.

    Args:
        processor: of the model.
        datasets: of records; only the first references of those that draw their expressions (RefShapes) are read.

    Raises:
        NothingReadError: if the tokenizer reads nothing of an expression; names the reference.
    """
    texts, drawn = [], False
    for dataset in datasets:
        stored = not isinstance(dataset.features.get("expressions"), Drawn)
        part = dataset if stored or len(dataset) <= MOST_DRAWN else dataset.select(range(MOST_DRAWN))
        drawn = drawn or len(part) < len(dataset)
        texts += EvaluationPairs(part).texts()
    try:
        return f"{'A sample of' if drawn else 'Reading'} {summarize_reading(processor, texts)}"
    except NothingReadError as error:
        where = f"An expression of the reference {_reference_with(error.expression, datasets)}"
        raise NothingReadError(error.expression, where) from error


def _reference_with(expression: str, datasets: Sequence[Dataset]) -> str:
    """The name of the first reference that has an expression."""
    names = ("dataset", "ref_id", "expressions")
    rows = (row for dataset in datasets for row in enumerate(dataset.with_format(None).select_columns([*names])))
    return next(reference_name(row, number) for number, row in rows if expression in row["expressions"])


def shuffled_expressions(pairs: EvaluationPairs) -> dict[int, str]:
    """For every pair, the expression half the data set away, or the next one that belongs to another image."""
    texts, images = pairs.texts(), pairs.images()
    count = len(texts)
    found = {}
    for index in range(count):
        others = ((index + count // 2 + step) % count for step in range(count))
        other = next((other for other in others if images[other] != images[index]), None)
        if other is None:
            raise ValueError("`shuffle` needs several images; all expressions belong to one.")
        found[index] = texts[other]
    return found


def _resolved(model: CrossVLTModel, options: EvaluationOptions) -> EvaluationOptions:
    """Resolve "auto" for a model."""
    has_head = getattr(getattr(model, "config", None), "presence_head", False)
    return replace(options, presence_threshold=resolve_presence_threshold(options.presence_threshold, has_head))


@dataclass(frozen=True)
class _Prediction:
    """A prediction for a pair: (H, W) log-odds of the object, and the probability of a target."""

    margin: Tensor
    presence: float | None = None

    def at(self, size: tuple[int, ...]) -> "_Prediction":
        """Resize it."""
        if self.margin.shape == size:
            return self
        resized = torch.nn.functional.interpolate(self.margin[None, None], size=size, mode="bilinear")[0, 0]
        return replace(self, margin=resized)

    def mask(self, presence_threshold: Any) -> Tensor:
        """(H, W) bool; the threshold is a number or None, not "auto"."""
        absent = self.presence is not None and presence_threshold is not None and self.presence < presence_threshold
        return torch.zeros_like(self.margin, dtype=torch.bool) if absent else self.margin > 0


def _areas(predicted: Tensor, mask: np.ndarray) -> tuple[int, int, int]:
    """Intersection, union and predicted area of a (H, W) prediction and a mask, which is resized to it."""
    labels = resize_label_map(mask, (predicted.shape[0], predicted.shape[1]))
    return tuple(mask_areas(predicted[None], torch.from_numpy(labels.astype(np.int64))[None])[0].tolist())


def _predict(model: CrossVLTModel, loader: Iterable[Any]) -> Iterator[tuple[_Prediction, dict[str, Any]]]:
    for inputs, pairs in loader:
        moved = {name: value.to(model.device) for name, value in inputs.items()}
        with evaluating(model):
            output = model(**moved, return_dict=True)
        logits, found = check_not_nan(output.logits), getattr(output, "presence_logits", None)
        margins = (logits[:, 1] - logits[:, 0]).float().cpu()
        presence = [None] * len(pairs) if found is None else check_not_nan(found).sigmoid().tolist()
        yield from zip(map(_Prediction, margins, presence), pairs, strict=True)


@torch.no_grad()
def evaluate(
    model: CrossVLTModel,
    processor: CrossVLTProcessor,
    dataset: Dataset,
    options: EvaluationOptions = EvaluationOptions(),
) -> ReferringSegmentationMetric:
    """Evaluate on every expression of a data set of records; processes of `accelerate launch` share the work.

    Args:
        model: on its device; runs in eval mode, and keeps its mode.
        processor: of the model.
        dataset: see `crossvlt_hf.data.load_data`.
        options: see `EvaluationOptions`.

    Returns:
        The metric with all samples in order, the same in every process.

    Raises:
        ValueError: if the data set is broken; names file and row.
    """
    options = _resolved(model, options)
    pairs, state = EvaluationPairs(dataset, distractors=options.distractors), PartialState()
    expressions = shuffled_expressions(pairs) if options.shuffle else None
    own = range(
        state.process_index * len(pairs) // state.num_processes,
        (state.process_index + 1) * len(pairs) // state.num_processes,
    )
    # All processes need the same number of forward passes, in which sharded weights are gathered
    longest = -(-len(pairs) // state.num_processes)
    loader = DataLoader(
        Subset(pairs, [*own, *[0] * (longest - len(own))]),
        batch_size=options.batch_size,
        num_workers=options.workers,
        collate_fn=_Collator(processor, options, expressions),
        worker_init_fn=start_worker,
    )
    found = [
        _sample(prediction, pair, processor, options)
        for prediction, pair in tqdm(
            _predict(model, iterate_loader(loader)), total=longest, disable=not options.progress
        )
    ][: len(own)]
    return ReferringSegmentationMetric(gather_object(found) if state.num_processes > 1 else found)


@torch.no_grad()
def find_masks(
    model: CrossVLTModel,
    processor: CrossVLTProcessor,
    dataset: Dataset,
    indices: Sequence[int],
    options: EvaluationOptions = EvaluationOptions(),
) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Predict some expressions as `evaluate` does, one at a time, in this process only.

    Args:
        model: on its device; runs in eval mode, and keeps its mode.
        processor: of the model.
        dataset: see `evaluate`.
        indices: of expressions, in the order of the samples of the metric.
        options: see `EvaluationOptions`.

    Yields:
        The pair, with the expression that was used, and the predicted mask, (height, width) bool, of the size of the
        image.
    """
    options = _resolved(model, options)
    pairs = EvaluationPairs(dataset)
    expressions = shuffled_expressions(pairs) if options.shuffle else None
    collate = _Collator(processor, options, expressions)
    for index in indices:
        pair = pairs[index]
        said = pair["expression"] if expressions is None else expressions[index]
        ((prediction, _),) = _predict(model, [collate([dict(pair)])])
        mask = prediction.at(pair["mask"].shape).mask(options.presence_threshold)
        mask = find_parts(mask)[0] if options.largest_part else mask
        yield {**pair, "expression": said}, mask.numpy()


def _sample(
    prediction: _Prediction, pair: dict[str, Any], processor: CrossVLTProcessor, options: EvaluationOptions
) -> Sample:
    if options.protocol == "original":
        prediction = prediction.at(pair["mask"].shape)
    mask, parts = prediction.mask(options.presence_threshold), None
    if options.largest_part:
        mask, parts = find_parts(mask)
    comparable = pair["has_target"] and pair["distractor"] is not None and (pair["distractor"] == 1).any()
    presence = prediction.presence
    return Sample(
        *_areas(mask, pair["mask"]),
        pair["has_target"],
        pair["family"],
        _areas(mask, pair["distractor"])[:2] if comparable else None,
        score=processor.score(prediction.margin, mask, presence),
        estimate=estimate_iou(prediction.margin, mask, presence),
        presence=presence,
        parts=parts,
        instances_found=_found_instances(mask, pair["mask"], options.min_area or 1) if options.instances else None,
    )


def _found_instances(predicted: Tensor, mask: np.ndarray, min_area: int) -> bool:
    """Whether the connected parts of a prediction match those of the mask, which is resized to it."""
    labels = torch.tensor(resize_label_map(mask, (predicted.shape[0], predicted.shape[1])))
    found, wanted = (_boxes(each, min_area) for each in (predicted & (labels != IGNORE_INDEX), labels == 1))
    return match_instances(found, wanted)


def _boxes(mask: Tensor, min_area: int) -> list[list[int]]:
    """The boxes of the connected parts of a mask; smaller parts than `min_area` only count if there is no other."""
    parts = find_instances(mask, min_area) or find_instances(mask, 1)[:1]
    return [part["box"] for part in parts]
