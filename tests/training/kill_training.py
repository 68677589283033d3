"""Kill a short training run again and again, and see that it ends as one that was left alone, bit for bit.

PYTHONPATH=tests python tests/training/kill_training.py --kills 100 --in-saves 30 --seed 0

A fork of this process trains; it is killed (SIGKILL) at a random moment, or while it writes a checkpoint, and started
again with --resume. A run that ends is compared, and another begins. Prints the counts as a line of JSON.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file
from test_training import losses_of, write_config

from crossvlt_hf.training.__main__ import main as train


# No save of this model takes longer
LONGEST_SAVE = 0.06


def write(folder: Path, steps: int) -> Path:
    """A run that saves after every other step."""
    folder.mkdir()
    path = write_config(folder, optimization__max_steps=steps)
    config = yaml.safe_load(path.read_text())
    config["output"] |= {"trackers": [], "pictures": 0, "evaluation_steps": 2, "keep": 2}
    config["data"]["workers"] = 0
    path.write_text(yaml.safe_dump(config))
    return path


def start(config: Path) -> int:
    """Train in a fork; its process id."""
    child = os.fork()
    if child:
        return child
    log = os.open(config.parent / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 70
    try:
        torch.set_num_threads(1)
        code = train([str(config), "--resume"])
    finally:
        os._exit(code)


def is_saving(folder: Path) -> bool:
    checkpoints = folder / "run" / "checkpoints"
    return checkpoints.is_dir() and any(entry.name.endswith(".partial") for entry in os.scandir(checkpoints))


def has_ended(child: int) -> bool:
    found, status = os.waitpid(child, os.WNOHANG)
    if found and os.waitstatus_to_exitcode(status):
        raise RuntimeError(f"The run failed with exit code {os.waitstatus_to_exitcode(status)}.")
    return bool(found)


def kill(child: int, folder: Path, in_save: bool, source: random.Random, longest: float) -> str:
    """Wait for the moment, and kill; "ended" if the run was faster, else where it was."""
    deadline = time.monotonic() + source.uniform(0, longest)
    while (not is_saving(folder)) if in_save else time.monotonic() < deadline:
        if has_ended(child):
            return "ended"
        time.sleep(0.0002)
    if in_save:
        time.sleep(source.uniform(0, LONGEST_SAVE))
    if has_ended(child):
        return "ended"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "in a save" if is_saving(folder) else "elsewhere"  # what was unfinished is still there


def check(folder: Path, reference: Path) -> None:
    """Whether a run ended as the one that was left alone."""
    if losses_of(folder) != losses_of(reference):
        raise AssertionError(f"The losses in {folder} differ.")
    for name in ("last", "best"):
        found, expected = (load_file(at / "run" / name / "model.safetensors") for at in (folder, reference))
        if not all(torch.equal(found[key], expected[key]) for key in expected):
            raise AssertionError(f"The weights in {folder / 'run' / name} differ.")


def kill_runs(work: Path, kills: int, in_saves: int, steps: int, seed: int) -> dict[str, int]:
    """How many kills hit where, and how many runs ended."""
    source, counts = random.Random(seed), {"in a save": 0, "elsewhere": 0, "ended": 0}
    began = time.monotonic()
    child = start(write(work / "reference", steps))
    while not has_ended(child):
        time.sleep(0.01)
    longest, run = time.monotonic() - began, 0
    while True:
        folder = work / f"run-{run}"
        config = write(folder, steps)
        while True:
            done = counts["in a save"] + counts["elsewhere"]
            left = kills - done
            child = start(config)
            if left <= 0 and counts["in a save"] >= in_saves:
                while not has_ended(child):
                    time.sleep(0.01)
                check(folder, work / "reference")
                return {**counts, "ended": counts["ended"] + 1}
            missing = in_saves - counts["in a save"]
            where = kill(
                child, folder, missing > 0 and source.random() < max(0.5, missing / max(left, 1)), source, longest
            )
            counts[where] += 1
            if where == "ended":
                break
        check(folder, work / "reference")
        shutil.rmtree(folder)
        run += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--in-saves", type=int, default=30, help="at least so many of them")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = kill_runs(Path(folder), arguments.kills, arguments.in_saves, arguments.steps, arguments.seed)
    sys.stdout.write(f"{json.dumps(counts)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
