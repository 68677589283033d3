"""`crossvlt benchmark`: size, speed and memory on this machine."""

import argparse
import json
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..training.settings import integer, number
from .extras import needs_extra
from .outputs import make_room


if TYPE_CHECKING:
    from ..benchmark import Options


EXAMPLES = """examples:
  crossvlt benchmark
  crossvlt benchmark --model base --dtype float32 bfloat16 --peers clipseg
  crossvlt benchmark --model base --task training --batch 2 --checkpointing off on
  crossvlt benchmark --image-size 96 128 192 --expressions 1 4 8 --batch 1 2 4 --one-at-a-time --plot scaling.png
"""


def _parse_size(text: str) -> tuple[int, int]:
    """480 or 480x640."""
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)?", text, re.ASCII):
        raise ValueError(f"`--image-size` is {text!r}; give the side in pixels, or HEIGHTxWIDTH.")
    height, _, width = text.partition("x")
    return int(height), int(width or height)


def _options(arguments: argparse.Namespace) -> "Options":
    from ..benchmark import Grid, Options

    switches = {name: [value == "on" for value in getattr(arguments, name)] for name in SWITCHES}
    grid = Grid(
        **{name: getattr(arguments, name) for name in ("model", "task", "device", "dtype", "attention", "batch")},
        **switches,
        size=[_parse_size(text) for text in arguments.image_size] or [None],
        expressions=arguments.expressions,
        tokens=[arguments.tokens],
        one_at_a_time=arguments.one_at_a_time,
    )
    return Options(
        grid,
        peers=arguments.peers,
        measures=arguments.measure,
        rounds=arguments.rounds,
        warm_up=arguments.warm_up,
        optimizer=arguments.optimizer,
        threads=arguments.threads,
        seed=arguments.seed,
        reference_gflop=arguments.reference_gflop,
    )


def _check_plot(path: str | None) -> None:
    """Rather before the measurements than after them."""
    if path is None:
        return
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"`--plot` is {path!r}; give a file that ends in .png.")
    with needs_extra("plot"):
        import_module("matplotlib")


def benchmark(arguments: argparse.Namespace) -> None:
    """Print the tables, and write the figures as JSON and as a plot."""
    from ..benchmark import format_report, run_benchmark, scaling_figure  # imports what only measuring needs

    options = _options(arguments)
    _check_plot(arguments.plot)
    for path in (arguments.output, arguments.plot):
        make_room(path)
    report = run_benchmark(options, tell=lambda line: print(line, file=sys.stderr, flush=True))
    Path(arguments.output).write_text(json.dumps(report, indent=2) + "\n")
    print(format_report(report))
    print(f"The figures are in {arguments.output}", file=sys.stderr)
    if arguments.plot is not None:
        scaling_figure(report).save(arguments.plot)
        print(f"The plot is in {arguments.plot}", file=sys.stderr)


SWITCHES = {
    "compiled": ("--compile", "by torch.compile; inference only"),
    "checkpointing": ("--checkpointing", "of activations; training only"),
}


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "benchmark",
        help="measure size, speed and memory on this machine",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_grid(command)
    _add_measurement(command)
    command.set_defaults(run=benchmark)


def _add_grid(command: argparse.ArgumentParser) -> None:
    """The axes; each may be given several values."""
    command.add_argument(
        "--model",
        nargs="+",
        default=["built-in"],
        metavar="MODEL",
        help="folder, Hub id, or tiny, small, base or large with random weights (default: the built-in checkpoint)",
    )
    command.add_argument("--task", nargs="+", default=["inference", "training"], metavar="TASK", help="(both)")
    command.add_argument("--device", nargs="+", default=["cpu"], metavar="DEVICE", help="cpu, cuda, ... (cpu)")
    command.add_argument(
        "--dtype", nargs="+", default=["float32"], metavar="DTYPE", help="float32, bfloat16, float16 (float32)"
    )
    command.add_argument("--attention", nargs="+", default=["sdpa"], metavar="KIND", help="sdpa, eager (sdpa)")
    for name, (flag, meaning) in SWITCHES.items():
        command.add_argument(
            flag, dest=name, nargs="+", default=["off"], choices=["off", "on"], help=f"{meaning} (off)"
        )
    command.add_argument("--batch", nargs="+", type=integer, default=[1], metavar="N", help="images (1)")
    command.add_argument(
        "--image-size", nargs="+", default=[], metavar="SIDE", help="side, or HEIGHTxWIDTH (that of the processor)"
    )
    command.add_argument(
        "--expressions",
        nargs="+",
        type=integer,
        default=[1, 8],
        metavar="N",
        help="of each image; for inference (1 8)",
    )
    command.add_argument("--tokens", type=integer, default=21, help="of each expression (%(default)s)")
    command.add_argument(
        "--one-at-a-time",
        action="store_true",
        help="vary image size, expressions and batch one by one around their first values, for scaling curves",
    )
    command.add_argument(
        "--peers",
        nargs="+",
        default=[],
        metavar="PEER",
        help="clipseg, grounding-dino-sam, sam3: models of Transformers at their defaults, with random weights",
    )


def _add_measurement(command: argparse.ArgumentParser) -> None:
    """How it is measured, and where the figures go."""
    command.add_argument(
        "--measure", nargs="+", default=["time", "memory", "load"], metavar="WHAT", help="time, memory, load (all)"
    )
    command.add_argument("--rounds", type=integer, default=10, help="timings of each case, in turns (%(default)s)")
    command.add_argument("--warm-up", type=integer, default=1, help="runs of each case before (%(default)s)")
    command.add_argument("--optimizer", default="adamw", help="of training steps: adamw, none (%(default)s)")
    command.add_argument("--threads", type=integer, help="of the processor (default: PyTorch's choice)")
    command.add_argument("--seed", type=integer, default=0, help="of random weights and inputs (%(default)s)")
    command.add_argument(
        "--reference-gflop",
        type=number,
        help="hold times also against so many 10^9 operations per image and expression, to compare implementations",
    )
    command.add_argument("--output", default="crossvlt-output/benchmark.json", help="JSON file (%(default)s)")
    command.add_argument("--plot", metavar="PNG", help="write curves, or bars where nothing scales, as a picture")
