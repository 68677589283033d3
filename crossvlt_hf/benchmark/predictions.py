"""Predict many rows of small drawn pictures: the rate beside that of the model alone, and the memory on the way.

The package's own code runs. From time to time a hook makes it wait and runs the model alone on the batch at hand, so
that both rates are of the same process, and of the same load of the machine. Data workers fill their queues meanwhile
(16 rows each), so that laps of few batches look too fast. Where workers have no core of their own, the time shows it,
but not the CPU time of the process that predicts.
"""

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..data.sources.folder import METADATA
from ..modeling_crossvlt import CrossVLTModel
from ..prediction import PredictionOptions, Requests, Shards, open_requests, predict
from ..weights.checkpoint import load_checkpoint
from .cases import Options
from .memory import held
from .phases import draw_scene
from .sources import Source
from .timing import Work, median_ratio, summarise


PICTURES = 100  # files, which the rows name again and again
LAPS = 100  # in a run
ALONE = 8  # a batch alone for so many batches of predictions


@dataclass
class Meter:
    """A hook before each forward pass: times predictions in laps, and after each lap the model alone.

    Args:
        model: on its device.
        every: batches of a lap.

    Attributes:
        laps: time and CPU time of this process, in seconds per row, of each lap.
        alone: the same of the model alone after each lap.
        memory: bytes after each lap.
        waited: seconds that predictions had to wait for the model alone.
    """

    model: CrossVLTModel
    every: int
    laps: list[np.ndarray] = field(default_factory=list)
    alone: list[np.ndarray] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    waited: float = 0.0
    _batches: int = 0
    _rows: int = 0
    _since: np.ndarray = field(default_factory=lambda: _now())

    def __call__(self, _: Any, __: Any, inputs: dict[str, Any]) -> None:
        """Count a batch, and end a lap if it is full."""
        if self._batches % self.every == 0:
            self._end_lap(inputs)
        self._batches += 1
        self._rows += len(inputs["input_ids"])

    def _end_lap(self, inputs: dict[str, Any]) -> None:
        start, times = _now(), max(1, self.every // ALONE)
        work = Work(lambda: self.model.forward(**inputs), self.model.device)  # which does not call this hook
        for _ in range(times):
            work.seconds()
        end = _now()
        if self._rows:  # not before the first lap: those runs only warm up
            self.laps.append((start - self._since) / self._rows)
            self.alone.append((end - start) / times / len(inputs["input_ids"]))
            self.memory.append(held())
        self.waited += end[0] - start[0]
        self._rows, self._since = 0, _now()


def _now() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])


def measure_predictions(source: Source, options: Options, tell: Callable[[str], Any]) -> list[dict[str, Any]]:
    """Measure `predict` on the first device and in one dtype, for each size of a batch.

    Args:
        source: the checkpoint.
        options: `rows`, `workers`, and `batch` of the grid.
        tell: called with a line about each run.

    Returns:
        For each run the keys of `_describe`.
    """
    found = []
    with TemporaryDirectory() as name:
        requests = _draw_rows(Path(name), options.rows, max(source.size))
        for batch in options.grid.batch:
            tell(f"prediction: {source.name}, {options.rows} rows, batch {batch}")
            found.append(_measure(source, options, requests, batch, Path(name) / f"batch-{batch}"))
    return found


def _draw_rows(folder: Path, rows: int, side: int) -> Requests:
    """Rows of a few drawn pictures, each with its expression."""
    names = [f"{number}.jpg" for number in range(min(PICTURES, rows))]
    texts = [draw_scene(folder / name, number, (side, side)) for number, name in enumerate(names)]
    lines = [json.dumps({"image": name, "expression": text}) for name, text in zip(names, texts, strict=True)]
    with (folder / METADATA).open("w") as file:
        file.writelines(f"{line}\n" for line in islice(cycle(lines), rows))
    return open_requests(str(folder))


def _measure(source: Source, options: Options, requests: Requests, batch: int, folder: Path) -> dict[str, Any]:
    dtype, device = options.grid.loading_dtype(), options.grid.device[0]
    model, processor = load_checkpoint(source.folders[dtype], device=device, dtype=dtype)
    how = PredictionOptions(batch_size=batch, workers=options.workers)
    meter = Meter(model, every=max(1, options.rows // batch // LAPS))
    start = time.perf_counter()
    with model.register_forward_pre_hook(meter, with_kwargs=True):
        predict(model, processor, requests, folder, how)
    seconds = time.perf_counter() - start - meter.waited
    written = Counter(line["row"] for line in Shards(folder, len(requests), how.shard_size, how.file_format).read())
    conditions = {"model": source.name, "device": device, "dtype": dtype, "batch": batch, "workers": options.workers}
    once = sum(written[row] == 1 for row in range(len(requests)))
    return {**conditions, "rows": len(requests), "rows_once": once, "seconds": seconds, **_describe(meter)}


def _describe(meter: Meter) -> dict[str, Any]:
    """Rates and their ratio, as medians over the laps, and memory of the process and its data workers."""
    laps, alone = np.array(meter.laps).T, np.array(meter.alone).T
    row, model = summarise(laps[0]), summarise(alone[0])
    return {
        "rows_per_second": 1 / row["p50"],
        "model_rows_per_second": 1 / model["p50"],
        "fraction_of_model": median_ratio(alone[0], laps[0]),
        "fraction_of_model_cpu": median_ratio(alone[1], laps[1]),
        "seconds_per_row": row,
        "model_seconds_per_row": model,
        "bytes": meter.memory,
        "early_bytes": meter.memory[len(meter.memory) // 10],
        "final_bytes": meter.memory[-1],
        "peak_bytes": max(meter.memory),
    }
