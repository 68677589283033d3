"""The throughput of `predict` beside that of the model alone, and its memory, over many rows of small images."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

from ..data.refshapes import make_example
from ..modeling_crossvlt import CrossVLTModel
from ..prediction import PredictionOptions, predict
from ..prediction.requests import open_requests
from ..prediction.shards import Shards
from ..processing_crossvlt import CrossVLTProcessor
from ..weights.checkpoint import load_checkpoint
from .sources import Source


IMAGES = 50  # files, each of which is named by many rows
SHARDS = 50  # at most; the model alone runs between them
SHARE = 0.05  # of the batches of a shard, for the model alone


@dataclass
class Meter:
    """Seconds of `predict` and of the model alone, and memory, shard by shard.

    Args:
        alone: runs the model alone on a batch.
        times: how often it runs after each shard.

    Attributes:
        shards: for each shard the number of rows, the seconds of `predict`, those of the model alone for a batch, and
            the memory in bytes of this process and its workers.
    """

    alone: Callable[[], Any]
    times: int
    shards: list[tuple[int, float, float, int]] = field(default_factory=list)
    _since: float = 0.0

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Measure after each shard that is written in the block."""
        write = Shards.write

        def measured(shards: Shards, shard: int, rows: Any) -> None:
            write(shards, shard, rows)
            self._note(len(rows))

        Shards.write = measured  # type: ignore[method-assign, assignment]
        self._since = time.perf_counter()
        try:
            yield
        finally:
            Shards.write = write  # type: ignore[method-assign]

    def _note(self, rows: int) -> None:
        written = time.perf_counter()
        for _ in range(self.times):
            self.alone()
        ended = time.perf_counter()
        self.shards.append((rows, written - self._since, (ended - written) / self.times, _memory()))
        self._since = time.perf_counter()


def _memory() -> int:
    """Memory of this process and its children in bytes; pages that they share count once."""
    process = psutil.Process()
    everybody = [process, *process.children(recursive=True)]
    return sum(getattr(each.memory_full_info(), "pss", each.memory_info().rss) for each in everybody)


def measure_throughput(
    source: Source, *, rows: int, batch: int, workers: int, size: tuple[int, int], tell: Callable[[str], Any]
) -> dict[str, Any]:
    """Predict rows of small drawn images as `crossvlt predict` does, in float32 on the CPU.

    Args:
        source: the checkpoint.
        rows: number of rows, each an image file and an expression.
        batch: expressions per forward pass.
        workers: processes that load images.
        size: height and width of the inputs of the model; images are squares of the longer side.
        tell: called with a line before the run.

    Returns:
        "model", "rows", "batch", "workers", "size", "rows_per_second" of `predict` and "model_rows_per_second" of the
        model alone (medians over the shards), "ratio" of the two (median over the shards of the ratio in the same
        one), "memory_bytes" after each shard, and "predictions", the number of distinct rows in the files.
    """
    model, processor = load_checkpoint(source.folders["float32"])
    processor.image_processor.size = dict(zip(("height", "width"), size, strict=True))
    tell(f"throughput: {source.name}, {rows:,} rows")
    with TemporaryDirectory() as name, torch.no_grad():
        folder = Path(name)
        _write_rows(folder / "data", rows, max(size))
        requests = open_requests(str(folder / "data"))
        options = PredictionOptions(batch, shard_size=max(batch, rows // SHARDS), workers=workers)
        inputs = _inputs(model, processor, folder / "data", batch)
        meter = Meter(lambda: model(**inputs), times=max(1, round(SHARE * options.shard_size / batch)))
        meter.alone()
        with meter.watch():
            predict(model, processor, requests, folder / "predictions", options)
        written = Shards(folder / "predictions", rows, options.shard_size, options.file_format)
        predictions = len({line["row"] for line in written.read()})
    found = {"model": source.name, "rows": rows, "batch": batch, "workers": workers, "size": list(size)}
    return {**found, **_summarise(meter, batch), "predictions": predictions}


def _write_rows(folder: Path, rows: int, side: int) -> None:
    """A folder of image files and lines that name each of them many times."""
    folder.mkdir()
    examples = [make_example("test", number, side=side) for number in range(min(IMAGES, rows))]
    for number, example in enumerate(examples):
        Image.fromarray(example.scene.image).save(folder / f"{number}.png")
    lines = [
        json.dumps({"file_name": f"{number % len(examples)}.png", "text": examples[number % len(examples)].expression})
        for number in range(rows)
    ]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def _inputs(model: CrossVLTModel, processor: CrossVLTProcessor, folder: Path, batch: int) -> dict[str, Any]:
    """A batch of the same data, ready for the model."""
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()[:batch]]
    lines = [lines[number % len(lines)] for number in range(batch)]
    images = [Image.open(folder / line["file_name"]) for line in lines]
    inputs = processor(images, [line["text"] for line in lines], return_tensors="pt").to(model.dtype)
    inputs.pop("original_sizes")
    return dict(inputs)


def _summarise(meter: Meter, batch: int) -> dict[str, Any]:
    """Rates, their ratio and memory, without the first shard, before which workers start and memory is filled."""
    rows, seconds, alone, memory = (np.array(column) for column in zip(*meter.shards, strict=True))
    steady = slice(1 if len(rows) > 1 else 0, None)
    rate, own = rows[steady] / seconds[steady], batch / alone[steady]
    return {
        "rows_per_second": float(np.median(rate)),
        "model_rows_per_second": float(np.median(own)),
        "ratio": float(np.median(rate / own)),
        "memory_bytes": memory.tolist(),
    }
