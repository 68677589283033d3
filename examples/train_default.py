"""Train, measure and pack the checkpoint that comes with the package.

python examples/train_default.py                    # everything; may be interrupted and started again
python examples/train_default.py --only measure     # figures and card of the packed checkpoint, again
python examples/train_default.py --only card        # the card, from the figures beside the checkpoint

It learns on small pictures of RefShapes first (`refshapes-64`), then goes on at 96 pixels (`refshapes`). Validation
scenes chose the recipe; the figures are of test scenes with a seed that nothing else uses.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from crossvlt_hf import CrossVLTModel, CrossVLTProcessor, ReferringImageSegmentationPipeline
from crossvlt_hf.cards import render_checkpoint_card
from crossvlt_hf.data import load_data
from crossvlt_hf.data.refshapes import make_example
from crossvlt_hf.evaluation import EvaluationOptions, evaluate
from crossvlt_hf.evidence import About, Evidence
from crossvlt_hf.loading import DEFAULT_CHECKPOINT, load_checkpoint
from crossvlt_hf.training.summary import describe_run


ABOUT = Path(__file__).parents[1] / "model_cards" / "refshapes.yaml"
MODEL_ID = "crossvlt-refshapes"
HALVES = ("refshapes-64", "refshapes")
GENERALISATION = {
    "unseen_pairs": "unseen pairs of colour and shape",
    "unseen_relations": "unseen relations",
    "longer": "two relations",
    "paraphrases": "paraphrases",
}
HARDWARE = f"{os.cpu_count()} CPU cores ({platform.machine()}), float32, torch {torch.__version__}"
SEED = 2026
MALLOC = "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592"


def train(runs: Path) -> None:
    """Both halves, each from its last checkpoint on."""
    for name, settings in (
        ("refshapes-64", []),
        ("refshapes", [f"model.checkpoint={runs / 'refshapes-64' / 'last'}"]),
    ):
        if (runs / name / "last").is_dir():
            continue
        command = [sys.executable, "-m", "crossvlt_hf.training", name, f"output.folder={runs / name}", *settings]
        # Keeping freed memory instead of giving it back to the system makes a step on the CPU a sixth faster
        subprocess.run([*command, "--resume"], check=True, env={"GLIBC_TUNABLES": MALLOC, **os.environ})


def pack(checkpoint: Path, target: Path) -> None:
    """Write the weights in float16, half the size, to be loaded as float32."""
    model, processor = load_checkpoint(checkpoint)
    processor.save_pretrained(target)
    model.half().save_pretrained(target)
    (target / "model.safetensors").chmod(0o644)  # save_pretrained leaves it to its owner alone
    config = target / "config.json"
    config.write_text(config.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))


def measure(target: Path, scenes: int) -> list[dict[str, Any]]:
    """Reports on test scenes, on the splits that test generalisation, and with the expressions of other scenes."""
    model, processor = load_checkpoint(target)
    side = processor.image_size[0]
    test = {"scenes": scenes, "side": side, "seed": SEED}
    pairs = {"scenes": scenes // 2, "expressions": 2, "side": side, "seed": SEED + 1}
    half = {**test, "scenes": scenes // 2}
    plan = [
        ("RefShapes test", "test", test, False),
        ("RefShapes test, two expressions of each scene", "test", pairs, False),
        *((f"RefShapes {name}", split, half, False) for split, name in GENERALISATION.items()),
        ("RefShapes test", "test", test, True),
    ]
    return [report(model, processor, *entry) for entry in plan]


def report(
    model: CrossVLTModel, processor: CrossVLTProcessor, name: str, split: str, option: dict[str, Any], shuffle: bool
) -> dict[str, Any]:
    """One evaluation, as `crossvlt evaluate` writes it."""
    options = EvaluationOptions(batch_size=32, distractors=not shuffle, shuffle=shuffle)
    metric = evaluate(model, processor, load_data("refshapes", split, **option), options)
    families = metric.compute_groups() if split == "test" and "expressions" not in option else {}
    found = {"name": name, "data": "refshapes", "split": split, "shuffle": shuffle, "option": option}
    place = {"protocol": "paper", "image_size": [option["side"]] * 2, "hardware": HARDWARE}
    return {**found, **place, "metrics": metric.compute(), "families": families}


def time_it(target: Path) -> list[dict[str, Any]]:
    """The size of the weights' file, and the median time of the pipeline for one picture and one expression."""
    model, processor = load_checkpoint(target)
    pipeline = ReferringImageSegmentationPipeline(model=model, processor=processor)
    times = []
    for index in range(50):
        example = make_example("test", index, side=processor.image_size[0], seed=SEED)
        start = time.perf_counter()
        pipeline(Image.fromarray(example.scene.image), text=example.expression)
        times.append(time.perf_counter() - start)
    size = (target / "model.safetensors").stat().st_size
    return [
        {"what": "weights file", "value": f"{size / 1e6:.2f} MB, float16"},
        {
            "what": "one picture and one sentence, whole pipeline, median of 50",
            "value": f"{statistics.median(times):.3f} s",
            "hardware": HARDWARE,
        },
    ]


def training_facts(runs: Path) -> dict[str, Any]:
    """What the logs of both halves say."""
    halves = [describe_run(runs / name, f"{os.cpu_count()} CPU cores ({platform.machine()})") for name in HALVES]
    return {"summary": "\n\n".join(half.pop("summary") for half in halves), "runs": halves}


def write_card(target: Path) -> None:
    """The card beside the weights, from what is beside them."""
    model, processor = load_checkpoint(target)
    card = render_checkpoint_card(model, processor, MODEL_ID, Evidence.read(target, ABOUT), built_in=True)
    card.save(target / "README.md")


def main() -> None:
    """Train, pack, measure, write the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the two runs (%(default)s)")
    parser.add_argument("--target", type=Path, default=DEFAULT_CHECKPOINT)
    parser.add_argument("--scenes", type=int, default=2000, help="of the test (%(default)s)")
    parser.add_argument("--only", choices=["train", "pack", "measure", "card"])
    arguments = parser.parse_args()
    if arguments.only in (None, "train"):
        train(arguments.runs)
    if arguments.only in (None, "pack"):
        pack(arguments.runs / "refshapes" / "last", arguments.target)
    target = arguments.target
    if arguments.only in (None, "measure"):
        evidence = Evidence(
            About.read(ABOUT), measure(target, arguments.scenes), time_it(target), training_facts(arguments.runs)
        )
        evidence.save(target)
    if arguments.only in (None, "measure", "card"):
        write_card(target)


if __name__ == "__main__":
    main()
