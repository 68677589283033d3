"""Predict the rows of a data set, in one or several processes."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import tqdm
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from torch.utils.data import Dataset as TorchDataset

from ..data.flaws import clean_expressions
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
from ..system import as_it_is, check_known, check_least, check_workers, in_one_line, iterate_loader, start_worker
from ..weights.vocabulary import summarize_reading
from .requests import Requests
from .shards import Shards, row_schema


MOST_TEXTS = 10_000  # to check for unknown words before a prediction
SENT_TOGETHER = 8  # rows that a worker sends at once; it prepares twice as many ahead


@dataclass(frozen=True)
class PredictionOptions:
    """How to predict.

    Args:
        batch_size: expressions per forward pass.
        shard_size: rows per file; an interruption loses at most one shard per process.
        file_format: "jsonl" or "parquet".
        threshold: see `CrossVLTProcessor.post_process_masks`.
        presence_threshold: see `CrossVLTProcessor.post_process_masks`; "auto" is 0.5 for a model with a presence head.
        largest_part: see `CrossVLTProcessor.post_process_masks`.
        on_error: "stop" at an unreadable row or expression, or "skip" it: its line has "error" and no mask.
        workers: processes that load images, per predicting process.
        progress: whether to show a progress bar for the rows of the main process.
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
        check_workers("workers", self.workers)
        check_known("on_error", self.on_error, ON_ERROR)
        check_threshold(self.threshold)
        resolve_presence_threshold(self.presence_threshold, has_head=True)


@dataclass
class _Row:
    """A row: its readable expressions with inputs of the model, and what is wrong with the others or the whole row.

    The inputs are arrays, since a worker would open a file and a socket for each tensor that it sends.

    Args:
        index: in the data.
        place: file and line, or the like.
        name: its id in the data, or its place.
        expressions: that are readable.
        numbers: of these expressions in the row.
        read: how these expressions are read.
        inputs: of the model for these expressions; none without expressions.
        flaws: of the other expressions, or of the row.
    """

    index: int
    place: str
    name: str
    expressions: list[str] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    read: list[ReadExpression] = field(default_factory=list)
    inputs: dict[str, np.ndarray] = field(default_factory=dict)
    flaws: list["_Flaw"] = field(default_factory=list)


@dataclass
class _Flaw:
    """Why a row cannot be read, or one of its expressions."""

    error: str
    number: int | None = None
    expression: str | None = None


@dataclass
class _Piece:
    """Consecutive expressions of a row that are in the same batch."""

    row: _Row
    start: int
    count: int

    def inputs(self, name: str) -> np.ndarray:
        array = self.row.inputs[name]
        return array if name == "pixel_values" else array[self.start : self.start + self.count]


@dataclass
class _PreparedRows(TorchDataset):
    """Load rows and prepare inputs, in a worker or in this process."""

    requests: Requests
    processor: CrossVLTProcessor

    def __getitem__(self, index: int) -> _Row:
        index = int(index)  # of an array
        place = _storable(self.requests.name(index))
        try:
            request = self.requests[index]
            row = _Row(index, place, _storable(request.name))
            self._read(request.expressions, row)
            if row.expressions:
                inputs: Any = self.processor(request.image, row.expressions, return_tensors="np")
                row.inputs = {name: value for name, value in inputs.items() if name != "expressions_per_image"}
        except Exception as error:  # a broken image can raise anything; other rows must go on
            kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
            return _Row(index, place, place, flaws=[_Flaw(_storable(f"{kind}{in_one_line(error)}"))])
        return row

    def _read(self, expressions: list[Any], row: _Row) -> None:
        """Read the expressions of a row; one that cannot be read is a flaw, and not the end of the others."""
        with suppress(ValueError):  # all at once is faster
            texts = clean_expressions(expressions, row.place)
            row.read = self.processor.read_expressions(texts)
            row.expressions, row.numbers = texts, list(range(len(texts)))
            return
        for number, text in enumerate(expressions):
            try:
                (expression,) = clean_expressions([text], row.place)
                row.read.extend(self.processor.read_expressions([expression]))
            except ValueError as error:
                shown = _storable(text) if isinstance(text, str) else None
                row.flaws.append(_Flaw(_storable(str(error)), number, shown))
                continue
            row.expressions.append(expression)
            row.numbers.append(number)


def _storable(text: str) -> str:
    """Replace what Arrow cannot store: file names may contain invalid bytes."""
    return text.encode(errors="replace").decode()


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


def _join(arrays: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays))


def _predict_batch(
    model: CrossVLTModel, processor: CrossVLTProcessor, batch: list[_Piece], options: PredictionOptions
) -> Iterator[dict[str, Any]]:
    inputs = {name: _join([piece.inputs(name) for piece in batch]) for name in batch[0].row.inputs}
    sizes = inputs.pop("original_sizes")
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    inputs["expressions_per_image"] = torch.tensor([piece.count for piece in batch])
    moved = {name: value.to(model.device) for name, value in inputs.items()}
    output = model(**moved, return_dict=True)
    kept = {name: output[name].cpu() for name in ("logits", "presence_logits") if name in output}
    least = resolve_presence_threshold(options.presence_threshold, model.config.presence_head)
    results = processor.post_process_masks(
        kept, sizes, options.threshold, presence_threshold=least, largest_part=options.largest_part
    )
    pairs = ((piece.row, index) for piece in batch for index in range(piece.start, piece.start + piece.count))
    for (row, index), result in zip(pairs, results, strict=True):
        yield _line(row, index, result, options.largest_part)


def _line(row: _Row, index: int, result: dict[str, Any], largest_part: bool) -> dict[str, Any]:
    """The output line of a readable expression of a row, given its index among them."""
    return {
        "row": row.index,
        "name": row.name,
        "number": row.numbers[index],
        "expression": row.expressions[index],
        "text_read": row.read[index].text_read,
        "unknown_words": list(row.read[index].unknown_words),
        "score": result["score"],
        **({"presence": result["presence"]} if "presence" in result else {}),
        "box": result["box"],
        **({"parts": result["parts"]} if largest_part else {}),
        "mask": encode_mask(result["mask"].numpy()),
        "error": None,
    }


def _broken(row: _Row, flaw: _Flaw, has_head: bool, largest_part: bool) -> dict[str, Any]:
    """The output line of an expression that cannot be read, or of a whole row."""
    return {
        **dict.fromkeys(row_schema(has_head, largest_part).names),
        "row": row.index,
        "name": row.name,
        "number": flaw.number,
        "expression": flaw.expression,
        "error": flaw.error,
    }


def _refuse(row: _Row, flaw: _Flaw) -> NoReturn:
    reason = flaw.error.rstrip(".")
    named = reason if reason.startswith(row.place) else f"{row.place} cannot be read: {reason}"
    raise ValueError(f"{named}. Fix it, or use --on-error skip (`on_error`).")


def describe_reading(processor: CrossVLTProcessor, requests: Requests) -> str:
    """One line about the share of unknown words and the number of truncated expressions."""
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
    """Predict all rows into shards, resuming with missing shards; processes of `accelerate launch` share the work.

    Batches do not cross shards, so results depend neither on the number of processes nor on interruptions.

    Args:
        model: on its device; runs in eval mode, and keeps its mode.
        processor: of the model.
        requests: see `open_requests`.
        folder: of the shards `predictions-00000-of-00010.jsonl`, ..., with lines of "row" (index in the data), "name",
            "number" (index of the expression in its row), "expression", "text_read" (the part within the limit of
            tokens), "unknown_words", "score", with a presence head "presence", "box" ([x_min, y_min, x_max, y_max] in
            pixels, the maxima exclusive; None if the mask is empty), with `largest_part` "parts" (number of connected
            parts before), "mask" (COCO run lengths: "size", height and width, and "counts") and "error" (None, or why
            the expression is unreadable, or the whole row, whose "number" is None).
        options: see `PredictionOptions`.
        job: what else the predictions depend on, such as the name of the model, for JSON.

    Returns:
        Counts of "predictions", and among them of "empty" masks, "cut" (truncated expressions) and "unknown"
        (expressions with unknown words); and of "errors". None in a process that ends before others.

    Raises:
        OSError: if something cannot be written.
        ValueError: if the folder belongs to another job, or a row is unreadable and `on_error` is "stop".
    """
    state = PartialState()
    shards = Shards(folder, len(requests), options.shard_size, options.file_format)
    with state.main_process_first():
        if state.is_main_process:
            shards.open({"data": requests.digest, **_describe_job(model, options), **(job or {})})
    missing = shards.missing()
    state.wait_for_everyone()  # all must list the missing shards before one is written
    own = missing[state.process_index :: state.num_processes]
    # A numpy array, as in `JsonlRequests`
    indices = np.array([index for shard in own for index in shards.row_numbers(shard)], dtype=np.int64)
    rows = _load_rows(requests, processor, indices, options.workers)
    done = (len(requests) - sum(len(shards.row_numbers(shard)) for shard in missing)) // state.num_processes
    hidden = not options.progress
    bar = tqdm(rows, "predicting", done + len(indices), initial=done, unit=" rows", disable=hidden)
    with bar, evaluating(model):
        for shard, members in groupby(bar, key=lambda row: row.index // shards.size):
            shards.write(shard, _predict_shard(model, processor, members, options))
    return shards.finish()


def _describe_job(model: CrossVLTModel, options: PredictionOptions) -> dict[str, Any]:
    """The options that change predictions; the presence threshold only for a model with a presence head."""
    has_head = model.config.presence_head
    least = resolve_presence_threshold(options.presence_threshold, has_head)
    gate = {"presence_threshold": least} if has_head else {}
    return {"threshold": options.threshold, "largest_part": options.largest_part, **gate}


def _load_rows(requests: Requests, processor: CrossVLTProcessor, indices: np.ndarray, workers: int) -> Iterator[_Row]:
    """Load rows, in worker processes."""
    loader: Iterable[list[_Row]] = DataLoader(
        Subset(_PreparedRows(requests, processor), indices),
        batch_size=SENT_TOGETHER,
        num_workers=workers,
        collate_fn=as_it_is,
        worker_init_fn=start_worker,
    )
    return chain.from_iterable(iterate_loader(loader))


def _predict_shard(
    model: CrossVLTModel, processor: CrossVLTProcessor, rows: Iterable[_Row], options: PredictionOptions
) -> list[dict[str, Any]]:
    """The lines of a shard, sorted by row."""
    lines: list[dict[str, Any]] = []

    def readable() -> Iterator[_Row]:
        for row in rows:
            for flaw in row.flaws:
                if options.on_error == "stop":
                    _refuse(row, flaw)
                lines.append(_broken(row, flaw, model.config.presence_head, options.largest_part))
            yield row

    for batch in _cut(readable(), options.batch_size):
        lines.extend(_predict_batch(model, processor, batch, options))
    return sorted(lines, key=lambda line: (line["row"], line["number"] or 0))
