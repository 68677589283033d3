"""Many trainings of one study: each in a process of its own, and their results in a file that grows.

A run whose result is there is not repeated, and an interrupted run goes on from its last checkpoint.
"""

import argparse
import fcntl
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossvlt_hf.configuration_crossvlt import write_file
from crossvlt_hf.system import orderly_end, read_number


Row = dict[str, Any]  # of a run: its key, and its results
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one thread of one process at a time into the block."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@dataclass(frozen=True)
class Results:
    """The finished runs of a study.

    Args:
        path: JSON file with a list of rows.
        keys: columns that tell runs apart.
    """

    path: Path
    keys: tuple[str, ...]

    @property
    def report(self) -> Path:
        """The Markdown beside them."""
        return self.path.with_suffix(".md")

    def load(self, **wanted: Any) -> list[Row]:
        """The rows that have these values."""
        rows = json.loads(self.path.read_text()) if self.path.is_file() else []
        keys = set(self.keys)
        if not isinstance(rows, list) or not all(isinstance(row, dict) and row.keys() >= keys for row in rows):
            raise SystemExit(f"{self.path} must have a list of runs of this study, each with {', '.join(self.keys)}.")
        return [row for row in rows if wanted.items() <= row.items()]

    def keep(self, row: Row) -> None:
        """Add the row of a finished run."""
        with locked(self.path.parent):
            rows = sorted([*self.load(), row], key=lambda each: tuple(each[key] for key in self.keys))
            text = "[\n" + ",\n".join(json.dumps(each) for each in rows) + "\n]\n"
            write_file(self.path, text.encode())


@dataclass(frozen=True)
class Training:
    """One run of a study.

    Args:
        key: the values of `Results.keys`.
        config: name of a training configuration.
        settings: what differs from it.
        measure: arguments of `python` that print the results as a line of JSON, given the folder of the run.
        seed: of the run.
        steps: of the run.
        start: the run from whose weights this one goes on; trained if its folder is missing, whatever its results.
    """

    key: Row
    config: str
    settings: Sequence[str]
    measure: Sequence[str]
    seed: int
    steps: int
    start: "Training | None" = None

    @property
    def name(self) -> str:
        """Of the folder: all values of the key."""
        return "-".join(str(value) for value in self.key.values())

    def command(self, run: Path) -> list[str]:
        """Of the training."""
        settings = [
            f"seed={self.seed}",
            f"optimization.max_steps={self.steps}",
            f"output.folder={run}",
            "output.pictures=0",
            "output.curves=false",
            f"output.evaluation_steps={self.steps}",
            f"output.checkpoint_steps={max(self.steps // 4, 1)}",
            "output.keep=1",
            "output.evaluation_batch_size=16",
            "data.workers=0",
        ]
        return [sys.executable, "-m", "crossvlt_hf", "train", self.config, *settings, *self.settings, "--resume"]


_RUNNING: set[subprocess.Popen[str]] = set()


def _run(command: Sequence[str], **options: Any) -> str:
    """Run a command like `subprocess.run(check=True)`; return its output. `_RUNNING` has it while it runs."""
    with subprocess.Popen(command, env={**os.environ, **ENVIRONMENT}, text=True, **options) as process:
        _RUNNING.add(process)
        try:
            output, _ = process.communicate()
        finally:
            _RUNNING.discard(process)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return output


def _last_line(log: Path) -> str:
    """The last line of a log, without progress bars."""
    lines = [line.strip() for line in log.read_text(errors="replace").replace("\r", "\n").splitlines()]
    return next((line for line in reversed(lines) if line and not re.search("it/s|s/it", line)), "nothing")


def train(training: Training, results: Results, folder: Path) -> None:
    """Train, or go on, and measure; nothing if that is done."""
    if results.load(**training.key):
        return
    run = folder / training.name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{run.name}.log").open("a") as log:
        if training.start is not None and not (start := folder / training.start.name / "last").is_dir():
            _run(training.start.command(start.parent), stdout=log, stderr=log)
        _run(training.command(run), stdout=log, stderr=log)
        measured = _run([sys.executable, *training.measure, str(run / "last")], stdout=subprocess.PIPE, stderr=log)
    results.keep({**training.key, **json.loads(measured)})


def train_all(
    trainings: Sequence[Training], results: Results, folder: Path, jobs: int, tell: Callable[[str], None] = print
) -> None:
    """Train all, in this order, several at a time.

    SIGTERM ends the runs too, which save a checkpoint; they would go on alone. Ctrl-C reaches them itself.

    Raises:
        SystemExit: at the end, if some failed; names them and the last line of their logs, which are in the folder.
    """
    failed: list[str] = []

    def attempt(training: Training) -> None:
        try:
            train(training, results, folder)
            tell(f"done: {training.name}")
        except subprocess.CalledProcessError:
            failed.append(training.name)
            log = folder / f"{training.name}.log"
            tell(f"failed: {training.name}, {log} ends with: {_last_line(log)}")
        except (OSError, ValueError) as error:
            failed.append(training.name)
            tell(f"failed: {training.name}: {error}")

    with orderly_end(), ThreadPoolExecutor(jobs) as pool:
        try:
            list(pool.map(attempt, trainings))
        except (KeyboardInterrupt, SystemExit) as end:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(_RUNNING) if isinstance(end, SystemExit) else ():
                process.terminate()
            raise
    if failed:
        raise SystemExit(f"{len(failed)} of {len(trainings)} runs failed: {', '.join(failed)}.")


def hardware_of(rows: Sequence[Row]) -> str:
    """The hardware of any of the runs, in words."""
    return " or ".join(sorted({row["hardware"] for row in rows}))


def study_parser(description: str | None, results: Results, folder: str, seeds: int) -> argparse.ArgumentParser:
    """The options that all studies have.

    Args:
        description: of the study.
        results: where its results are by default.
        folder: of its runs, by default.
        seeds: how many there are by default, from 0.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = "train and measure what is missing; write the report; print the results of one checkpoint"
    parser.add_argument("action", choices=["run", "report", "measure"], help=actions)
    help_seeds = f"such as 0,3,4 (the default is all from 0 to {seeds - 1})"
    parser.add_argument("--seeds", type=_read_numbers, default=list(range(seeds)), help=help_seeds)
    help_steps = "training steps of a run, or of its unit; the report has only runs of as many (%(default)s)"
    parser.add_argument("--steps", type=_read_count, default=1000, help=help_steps)
    parser.add_argument("--jobs", type=_read_count, default=1, help="runs at a time, one thread each (%(default)s)")
    parser.add_argument("--folder", type=Path, default=Path(folder), help="of the runs (%(default)s)")
    default = f"docs/{results.path.name}"
    parser.add_argument("--results", type=Path, default=results.path, help=f"JSON of the finished runs ({default})")
    parser.add_argument("--run", help="of `measure`: the checkpoint `last` or `best` in the folder of a run")
    return parser


def read_arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the options of `study_parser`, and check the checkpoint of `measure`; a wrong one ends the program."""
    arguments = parser.parse_args()
    if arguments.action == "measure":
        from crossvlt_hf.training import load_config

        if arguments.run is None:
            parser.error("measure needs --run, the checkpoint `last` or `best` in the folder of a run")
        try:
            load_config(Path(arguments.run).parent / "config.yaml")
        except (OSError, ValueError) as error:
            parser.error(f"{arguments.run} must be a checkpoint in the folder of a run: {error}")
    return arguments


def _read_count(text: str) -> int:
    with suppress(ValueError):
        if (number := read_number(int, text)) > 0:
            return number
    raise argparse.ArgumentTypeError(f"must be an integer above 0, got {text!r}")


def _read_numbers(text: str) -> list[int]:
    try:
        numbers = [read_number(int, number) for number in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be integers with commas, such as 0,3,4, got {text!r}") from error
    if min(numbers) < 0 or len(set(numbers)) < len(numbers):
        raise argparse.ArgumentTypeError(f"must be different integers from 0 up, got {text!r}")
    return numbers


def measure(source: str, tests: dict[str, dict[str, Any]]) -> None:
    """Print the results of a checkpoint as a line of JSON, with what they were computed on.

    Args:
        source: the checkpoint, in the folder of its run, which was trained on this machine.
        tests: arguments of `load_data` for each data set, by its name in the results.
    """
    import torch
    from accelerate import Accelerator

    from crossvlt_hf.data import load_data
    from crossvlt_hf.evaluation import EvaluationOptions, evaluate
    from crossvlt_hf.training import load_config
    from crossvlt_hf.training.optimization import choose_attention
    from crossvlt_hf.weights.checkpoint import load_checkpoint

    reported = ("mean_iou", "overall_iou", "right_object_rate")  # the last only where scenes have such a distractor
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, processor = load_checkpoint(source, device=device)
    found: Row = {}
    for name, test in tests.items():
        metric = evaluate(model, processor, load_data(**test), EvaluationOptions(batch_size=16, distractors=True))
        figures = metric.compute()
        groups = metric.compute_groups()
        found[name] = {
            **{key: round(figures[key], 5) for key in reported if key in figures},
            "families": {key: round(row["mean_iou"], 5) for key, row in groups.items()},
            "samples": {key: row["samples"] for key, row in groups.items()},
        }
    precision = load_config(Path(source).parent / "config.yaml").optimization.mixed_precision
    row = {
        "results": found,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "hardware": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "precision": precision,
        "attention": choose_attention(Accelerator(mixed_precision=precision)),
        "torch": torch.__version__,
    }
    print(json.dumps(row))
