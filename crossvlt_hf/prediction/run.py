"""Predict the rows of a data set, in one process or several."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import tqdm
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from torch.utils.data import Dataset as TorchDataset

from ..checks import check_known, check_least
from ..data.masks import encode_mask
from ..data.readable import ON_ERROR
from ..modeling_crossvlt import CrossVLTModel, evaluating
from ..processing_crossvlt import (
    CrossVLTProcessor,
    NothingReadError,
    ReadExpression,
    check_threshold,
    resolve_presence_threshold,
)
from ..system import ignore_signals, in_one_line
from ..weights.vocabulary import summarize_reading
from .requests import Requests
from .shards import Shards, row_schema


MOST_TEXTS = 10_000  # that are looked at before a prediction begins


@dataclass(frozen=True)
class PredictionOptions:
    """How to predict.

    Args:
        batch_size: expressions that go through the model together.
        shard_size: rows of a file, which an interruption costs at most for each process.
        file_format: "jsonl" or "parquet".
        threshold: see `CrossVLTProcessor.post_process_masks`.
        presence_threshold: see there; "auto" is 0.5 for a model with a presence head.
        largest_part: see there.
        on_error: "stop" at a row that is broken, or "skip" it: its line then has "error" and no mask.
        workers: processes that read and prepare images, for each process that predicts.
        progress: whether to show a bar, of the rows of the main process.
    """

    batch_size: int = 8
    shard_size: int = 500
    file_format: str = "jsonl"
    threshold: float | None = None
    presence_threshold: float | str | None = "auto"
    largest_part: bool = False
    on_error: str = "stop"
    workers: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        check_least("batch_size", self.batch_size, 1)
        check_least("workers", self.workers, 0)
        check_known("on_error", self.on_error, ON_ERROR)
        check_threshold(self.threshold)
        resolve_presence_threshold(self.presence_threshold, has_head=True)


@dataclass
class _Row:
    """A row as the model reads it; without inputs, but with `error`, if it is broken."""

    index: int
    name: str
    expressions: list[str]
    read: list[ReadExpression]
    inputs: dict[str, Tensor]
    error: str | None = None


@dataclass
class _Piece:
    """Expressions of a row that go through the model together, from `start` on."""

    row: _Row
    start: int
    count: int

    def inputs(self, name: str) -> Tensor:
        tensor = self.row.inputs[name]
        return tensor if name == "pixel_values" else tensor[self.start : self.start + self.count]


@dataclass
class _PreparedRows(TorchDataset):
    """Rows read and prepared, in a process of the loader or in this one."""

    requests: Requests
    processor: CrossVLTProcessor

    def __getitem__(self, index: int) -> _Row:
        try:
            request = self.requests[index]
            inputs: Any = self.processor(request.image, request.expressions, return_tensors="pt")
            read = self.processor.read_expressions(request.expressions)
        except Exception as error:  # a broken image can raise anything, and one row must not cost the others
            kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
            reason = _storable(f"{kind}{in_one_line(error)}")
            return _Row(index, _storable(self.requests.name(index)), [], [], {}, reason)
        kept = {name: value for name, value in inputs.items() if name != "expressions_per_image"}
        return _Row(index, _storable(request.name), request.expressions, read, kept)


def _storable(text: str) -> str:
    """Text as a table can store it: file names may contain bytes that are not text."""
    return text.encode(errors="replace").decode()


def _as_it_is(rows: Any) -> Any:
    return rows


def _cut(rows: Iterable[_Row], batch_size: int) -> Iterator[list[_Piece]]:
    """Batches of at most `batch_size` expressions."""
    batch: list[_Piece] = []
    room = batch_size
    for row in rows:
        start = 0
        while start < len(row.expressions):
            count = min(room, len(row.expressions) - start)
            batch.append(_Piece(row, start, count))
            start, room = start + count, room - count
            if not room:
                yield batch
                batch, room = [], batch_size
    if batch:
        yield batch


def _predict_batch(
    model: CrossVLTModel, processor: CrossVLTProcessor, batch: list[_Piece], options: PredictionOptions
) -> Iterator[dict[str, Any]]:
    inputs = {name: torch.cat([piece.inputs(name) for piece in batch]) for name in batch[0].row.inputs}
    sizes = inputs.pop("original_sizes")
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    inputs["expressions_per_image"] = torch.tensor([piece.count for piece in batch])
    with evaluating(model):
        moved = {name: value.to(model.device) for name, value in inputs.items()}
        output = model(**moved, return_dict=True)
    kept = {name: output[name].cpu() for name in ("logits", "presence_logits") if name in output}
    least = resolve_presence_threshold(options.presence_threshold, model.config.presence_head)
    results = processor.post_process_masks(
        kept, sizes, options.threshold, presence_threshold=least, largest_part=options.largest_part
    )
    numbered = ((piece.row, number) for piece in batch for number in range(piece.start, piece.start + piece.count))
    for (row, number), result in zip(numbered, results, strict=True):
        yield _line(row, number, result, options.largest_part)


def _line(row: _Row, number: int, result: dict[str, Any], largest_part: bool) -> dict[str, Any]:
    """The line of an expression, of a row's the one of that number."""
    return {
        "row": row.index,
        "name": row.name,
        "number": number,
        "expression": row.expressions[number],
        "text_read": row.read[number].text_read,
        "unknown_words": list(row.read[number].unknown_words),
        "score": result["score"],
        **({"presence": result["presence"]} if "presence" in result else {}),
        "box": result["box"],
        **({"parts": result["parts"]} if largest_part else {}),
        "mask": encode_mask(result["mask"].numpy()),
        "error": None,
    }


def _broken(row: _Row, has_head: bool, largest_part: bool) -> dict[str, Any]:
    return {
        **dict.fromkeys(row_schema(has_head, largest_part).names),
        "row": row.index,
        "name": row.name,
        "error": row.error,
    }


def describe_reading(processor: CrossVLTProcessor, requests: Requests) -> str:
    """One line about the expressions: the share of unknown words, and how many expressions are cut."""
    texts = list(islice(requests.texts(), MOST_TEXTS + 1))
    first = "The first " if len(texts) > MOST_TEXTS else ""
    del texts[MOST_TEXTS:]
    try:
        return f"{first}{summarize_reading(processor, texts)}"
    except NothingReadError:  # the row that has it says so, or is skipped
        return f"{first}{summarize_reading(processor, [text for text in texts if _is_read(processor, text)])}"


def _is_read(processor: CrossVLTProcessor, text: str) -> bool:
    try:
        return bool(processor.read_expressions([text]))
    except NothingReadError:
        return False


@torch.no_grad()
def predict(
    model: CrossVLTModel,
    processor: CrossVLTProcessor,
    requests: Requests,
    folder: str | Path,
    options: PredictionOptions = PredictionOptions(),
    job: dict[str, Any] | None = None,
) -> dict[str, Any] | None:
    """Predict all rows into shards; under `accelerate launch` the processes share them.

    A row is predicted with those of its shard, whoever does it: what comes out depends neither on the number of
    processes nor on interruptions. Called again, it goes on with the shards that are missing.

    Args:
        model: on its device; it predicts as if not in training, and keeps its mode.
        processor: the model's.
        requests: see `open_requests`.
        folder: of the shards: `predictions-00000-of-00010.jsonl` and so on, lines of "row" (number in the data),
            "name", "number" (of the expression in its row), "expression", "text_read" (the part of it that the model
            reads), "unknown_words" (that its vocabulary does not know), "score", with a presence head "presence",
            "box" ([x_min, y_min, x_max, y_max] in pixels, the maxima exclusive; None if the mask is empty), with
            `largest_part` "parts" (connected parts that were found, those left out included), "mask" (COCO run
            lengths: "size", height and width, and "counts") and "error" (None, or why the row could not be read).
        options: see `PredictionOptions`.
        job: what else the predictions depend on, such as the model's name; what JSON can hold.

    Returns:
        Counts of "predictions", and among them of "empty" masks, of expressions that are "cut", and of those "unknown"
        in part; and of "errors". None in a process that ends before others.

    Raises:
        OSError: if something cannot be written.
        ValueError: if the folder is of another job, or a row is broken and not to be skipped.
    """
    state = PartialState()
    shards = Shards(folder, len(requests), options.shard_size, options.file_format)
    with state.main_process_first():
        if state.is_main_process:
            shards.open({"data": requests.digest, **_describe_job(model, options), **(job or {})})
    missing = shards.missing()
    state.wait_for_everyone()  # else one could write a shard that another no longer finds missing
    own = missing[state.process_index :: state.num_processes]
    indices = [index for shard in own for index in shards.row_numbers(shard)]
    rows = _load_rows(requests, processor, indices, options.workers)
    done, hidden = (shards.count - len(missing)) * shards.size // state.num_processes, not options.progress
    with tqdm(rows, "predicting", done + len(indices), initial=done, unit=" rows", disable=hidden) as bar:
        for shard, members in groupby(bar, key=lambda row: row.index // shards.size):
            shards.write(shard, _predict_shard(model, processor, members, options))
    return shards.finish()


def _describe_job(model: CrossVLTModel, options: PredictionOptions) -> dict[str, Any]:
    """The options that change what is predicted; the presence threshold only where the model has such a head."""
    has_head = model.config.presence_head
    least = resolve_presence_threshold(options.presence_threshold, has_head)
    gate = {"presence_threshold": least} if has_head else {}
    return {"threshold": options.threshold, "largest_part": options.largest_part, **gate}


def _load_rows(requests: Requests, processor: CrossVLTProcessor, indices: list[int], workers: int) -> Any:
    """Rows of those numbers, read and prepared in processes of their own."""
    return DataLoader(
        Subset(_PreparedRows(requests, processor), indices),
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=ignore_signals,
    )


def _predict_shard(
    model: CrossVLTModel, processor: CrossVLTProcessor, rows: Iterable[_Row], options: PredictionOptions
) -> list[dict[str, Any]]:
    """The lines of a shard, in the order of its rows."""
    lines: list[dict[str, Any]] = []

    def whole() -> Iterator[_Row]:
        for row in rows:
            if row.error is None:
                yield row
                continue
            if options.on_error == "stop":
                raise ValueError(f"{row.name} cannot be read: {row.error.rstrip('.')}. Fix it, or skip such rows.")
            lines.append(_broken(row, model.config.presence_head, options.largest_part))

    for batch in _cut(whole(), options.batch_size):
        lines.extend(_predict_batch(model, processor, batch, options))
    return sorted(lines, key=lambda line: (line["row"], line["number"] or 0))
