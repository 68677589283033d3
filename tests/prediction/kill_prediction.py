"""Kill `crossvlt predict` again and again, and see that it ends as if left alone; or measure its memory.

PYTHONPATH=tests python tests/prediction/kill_prediction.py --rows 1000 --kills 10 --seed 0
PYTHONPATH=tests python tests/prediction/kill_prediction.py --memory 100 1000 10000

A fork of this process predicts with the model in `--model` (default: a tiny one with random weights), and is killed
(SIGKILL) at random moments. Prints what was found as a line of JSON.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from conftest import tiny_config, tiny_tokenizer
from PIL import Image

from crossvlt_hf import CrossVLTModel, CrossVLTProcessor
from crossvlt_hf.cli import main as crossvlt


# By forks: the parent must not have used threads of its own
torch.set_num_threads(1)


def write_rows(folder: Path, rows: int) -> Path:
    """So many lines about four pictures, one or two expressions each."""
    folder.mkdir(parents=True)
    for number in range(4):
        Image.effect_mandelbrot((80 + 9 * number, 60), (-2, -1, 1, 1), 20 + number).convert("RGB").save(
            folder / f"{number}.png"
        )
    words = ["the cup", "the red cup", "a man left of the bus", "the bus"]
    with (folder / "rows.jsonl").open("w") as file:
        for row in range(rows):
            texts = [words[row % 4], words[row // 4 % 4]][: 1 + row % 2]
            file.write(json.dumps({"image": f"{row % 4}.png", "id": f"r{row}", "expressions": texts}) + "\n")
    return folder / "rows.jsonl"


def make_model(folder: Path) -> Path:
    """A checkpoint of random weights."""
    torch.manual_seed(0)
    CrossVLTModel(tiny_config()).save_pretrained(folder)
    CrossVLTProcessor.from_tokenizer(tiny_tokenizer(), 64).save_pretrained(folder)
    return folder


def start(rows: Path, model: str, output: Path, *options: str) -> int:
    """Predict in a fork; its process id."""
    child = os.fork()
    if child:
        return child
    log = os.open(output.with_suffix(".txt"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 70
    try:
        code = crossvlt(["predict", str(rows), "--output", str(output), "--model", model, "--device", "cpu", *options])
    finally:
        os._exit(code)


def wait(child: int) -> int:
    """Let it end; the most memory that it held, in bytes."""
    _, status, usage = os.wait4(child, 0)
    if os.waitstatus_to_exitcode(status):
        raise RuntimeError(f"It failed with exit code {os.waitstatus_to_exitcode(status)}.")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a prediction."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def count_shards(folder: Path) -> int:
    """How many are there."""
    return len(list(folder.glob("predictions-*")))


def kill_predictions(work: Path, rows: int, kills: int, seed: int, model: str) -> dict[str, Any]:
    """How many kills hit, with how many shards there; the files in the end are those of an undisturbed run."""
    source, data, output = random.Random(seed), write_rows(work / "data", rows), work / "killed"
    size = max(1, rows // 40)
    options, count = ["--shard-size", str(size)], -(-rows // size)
    began = time.monotonic()
    wait(start(data, model, work / "reference", *options))
    seconds, found = time.monotonic() - began, []
    for least in sorted(source.choices(range(count), k=kills)):
        child = start(data, model, output, *options)
        while count_shards(output) < least and not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            time.sleep(0.001)
        time.sleep(source.uniform(0, 2 * seconds / count))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            raise RuntimeError("It ended before it could be killed; give more rows.")
        found.append(count_shards(output))
    wait(start(data, model, output, *options))
    if contents(output) != contents(work / "reference"):
        raise AssertionError("The files differ from those of an undisturbed run.")
    lines = [json.loads(line) for path in sorted(output.glob("*.jsonl")) for line in path.read_bytes().splitlines()]
    numbers = [line["row"] for line in lines if line["number"] == 0]
    if numbers != list(range(rows)):
        raise AssertionError("Rows are missing or repeated.")
    return {"kills": kills, "rows": len(numbers), "predictions": len(lines), "shards": count, "at_kills": found}


def measure_memory(work: Path, sizes: list[int], model: str) -> dict[str, float]:
    """The peak of a process for so many rows, in MiB."""
    return {
        str(rows): wait(start(write_rows(work / f"data-{rows}", rows), model, work / f"out-{rows}")) / 2**20
        for rows in sizes
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", type=int, nargs="+")
    parser.add_argument("--model")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model = arguments.model or str(make_model(work / "model"))
        if arguments.memory:
            found: dict = measure_memory(work, arguments.memory, model)
        else:
            found = kill_predictions(work, arguments.rows, arguments.kills, arguments.seed, model)
    sys.stdout.write(f"{json.dumps(found)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
