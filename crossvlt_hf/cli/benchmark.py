"""`crossvlt benchmark`: measure size, speed and memory on this machine."""

import re
import sys
from dataclasses import dataclass, fields
from importlib import import_module
from typing import Annotated, Literal

from tyro.conf import arg

from ..benchmark.cases import ALL_MEASURES, MEASURES, MODEL_MEASURES, TASKS, Grid, Options, check_installed
from ..system import can_only_be_a_path, check_known
from ..weights.names import BUILT_IN, check_source
from .common import (
    Command,
    Png,
    check_device,
    check_distinct,
    check_png,
    need_matplotlib,
    needs_extra,
    refuse_without_effect,
)
from .outputs import make_room, save_picture, save_report


OUTPUT = "crossvlt-output/benchmark.json"
Switch = Literal["off", "on"]
# Options that measures of a model as a whole use; all others are of measures of cases
USED = {
    "phases": ("rounds", "plot"),
    "prediction": ("device", "dtype", "batch", "rows", "workers"),
}
USED_ALWAYS = ("model", "measure", "threads", "seed", "output")


@dataclass(frozen=True)
class Benchmark(Command):
    """Measure size, speed and memory on this machine.

    Examples:
        crossvlt benchmark
        crossvlt benchmark --model base --dtype float32 bfloat16 --peers clipseg
        crossvlt benchmark --model base --task training --batch 2 --checkpointing off on
        crossvlt benchmark --backend torch onnxruntime openvino --dtype float32 int8-dynamic int8-static
        crossvlt benchmark --measure phases --plot phases.png
        crossvlt benchmark --measure prediction --rows 10000 --batch 8 32
        crossvlt benchmark --image-size 96 128 192 --expressions 1 4 8 --batch 1 2 4 --one-at-a-time --plot scaling.png

    Args:
        model: Folder, Hub id, built-in, or tiny, small, base or large with random weights.
        task: inference, training or both. By default both; only inference without the backend torch.
        backend: torch, onnxruntime, openvino. The last two run the network that export writes as ONNX, on the CPU.
        device: cpu, cuda, ...
        dtype: float32; bfloat16, float16 (torch); int8-dynamic, int8-static (onnxruntime).
        attention: sdpa, eager; torch only.
        compile: Use torch.compile; inference only.
        checkpointing: Recompute activations in the backward pass; training only.
        batch: Number of images.
        image_size: Side of the images, or HEIGHTxWIDTH. By default that of the processor.
        expressions: Expressions per image; inference only.
        tokens: Tokens per expression.
        one_at_a_time: Vary image size, expressions and batch one at a time around their first values, for scaling
            curves.
        peers: Models of Transformers with default sizes and random weights: clipseg, grounding-dino-sam, sam3.
        measure: What to measure: time, memory, load, agreement (of other backends with torch in float32), phases
            (where the time goes in segment, the pipeline, predict and train, on the CPU in float32), and prediction
            (rate of predict beside that of the model alone, and its memory).
        rounds: Timings per case, interleaved with those of other cases.
        warm_up: Runs of each case before timing.
        optimizer: Optimizer of training steps: adamw or none.
        threads: CPU threads. By default PyTorch's choice.
        seed: Seed of random weights and inputs.
        rows: Rows of small drawn pictures, for --measure prediction.
        workers: Processes that load them.
        output: JSON file of the results; an earlier one is replaced. The default is a new file,
            crossvlt-output/benchmark.json or benchmark-2.json, ...
        plot: Draw scaling curves, bars where nothing scales, or the phases if only they are measured.
    """

    RENAMED = {"measures": "measure", "size": "image_size", "compiled": "compile"}

    model: tuple[str, ...] = (BUILT_IN,)
    task: Annotated[tuple[str, ...], arg(metavar="TEXT ...")] = ()
    backend: tuple[str, ...] = ("torch",)
    device: tuple[str, ...] = ("cpu",)
    dtype: tuple[str, ...] = ("float32",)
    attention: tuple[str, ...] = ("sdpa",)
    compile: tuple[Switch, ...] = ("off",)
    checkpointing: tuple[Switch, ...] = ("off",)
    batch: tuple[int, ...] = (1,)
    image_size: Annotated[tuple[str, ...], arg(metavar="SIDE ...")] = ()
    expressions: tuple[int, ...] = (1, 8)
    tokens: int = 21
    one_at_a_time: bool = False
    peers: tuple[str, ...] = ()
    measure: tuple[str, ...] = MEASURES
    rounds: int = 10
    warm_up: int = 1
    optimizer: str = "adamw"
    threads: int | None = None
    seed: int = 0
    rows: int = 1000
    workers: int = 1
    output: Annotated[str | None, arg(metavar="JSON")] = None
    plot: Png = None

    def check(self) -> None:
        """Check what is measured, the backends and the name of the plot."""
        for measure in self.measure:
            check_known("measure", measure, ALL_MEASURES)
        used = {name for measure in self.measure for name in USED.get(measure, OF_CASES)}
        unused = [option.name for option in fields(self) if option.name not in (*USED_ALWAYS, *used)]
        refuse_without_effect(self, unused, f"on `measure` {', '.join(self.measure)}")
        check_distinct(self, "output", "plot")
        for backend in self.plan().grid.backend:
            check_installed(backend)
        for device in self.device:
            check_device(device)
        check_png("plot", self.plot)
        for model in filter(can_only_be_a_path, self.model):  # others may be sizes
            check_source(model)
        if set(self.measure) == {"prediction"}:
            for name in ("device", "dtype"):
                if len(values := getattr(self, name)) > 1:
                    raise ValueError(f"`{name}` must be one value for `measure` prediction, got {', '.join(values)}.")

    def plan(self) -> Options:
        """What is measured, and how."""
        return Options(
            self.grid(),
            peers=self.peers,
            measures=self.measure,
            rounds=self.rounds,
            warm_up=self.warm_up,
            optimizer=self.optimizer,
            threads=self.threads,
            seed=self.seed,
            rows=self.rows,
            workers=self.workers,
        )

    def grid(self) -> Grid:
        """The requested cases."""
        return Grid(
            model=self.model,
            task=self.task or (TASKS if "torch" in self.backend else TASKS[:1]),
            backend=self.backend,
            device=self.device,
            dtype=self.dtype,
            attention=self.attention,
            compiled=[value == "on" for value in self.compile],
            checkpointing=[value == "on" for value in self.checkpointing],
            batch=self.batch,
            size=[_parse_size(text) for text in self.image_size] or [None],
            expressions=self.expressions,
            tokens=[self.tokens],
            one_at_a_time=self.one_at_a_time,
        )


OF_CASES = {option.name for option in fields(Benchmark)} - {"rows", "workers"}


def _parse_size(text: str) -> tuple[int, int]:
    """480 or 480x640."""
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)?", text, re.ASCII):
        raise ValueError(f"`--image-size` must be the side in pixels, or HEIGHTxWIDTH, got {text!r}.")
    height, _, width = text.partition("x")
    return int(height), int(width or height)


def benchmark(options: Benchmark) -> None:
    """Print the tables, and write the results as JSON and as a plot."""
    from ..benchmark import format_report, run_benchmark, scaling_figure

    if options.plot is not None:
        need_matplotlib()
    if set(MODEL_MEASURES) & set(options.measure):
        with needs_extra("train"):
            import_module("datasets")
    make_room(options.output or OUTPUT, "benchmark", new=options.output is None)
    make_room(options.plot, "benchmark plot")
    report = run_benchmark(options.plan(), tell=lambda line: print(line, file=sys.stderr, flush=True))
    path = save_report(report, options.output or OUTPUT, "benchmark", new=options.output is None)
    print(format_report(report))
    print(f"The figures are in {path}", file=sys.stderr)
    if options.plot is not None:
        save_picture(scaling_figure(report), options.plot, "benchmark plot")
        print(f"The plot is in {options.plot}", file=sys.stderr)
