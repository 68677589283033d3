"""Train, measure and pack the checkpoint that comes with the package.

python examples/train_default.py                    # everything; may be interrupted and started again
python examples/train_default.py --only measure     # figures and card of the packed checkpoint, again

It learns on small pictures of RefShapes first (`refshapes-64`), then goes on at 96 pixels (`refshapes`). Validation
scenes chose the recipe; the figures are of test scenes with a seed that nothing else uses.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from PIL import Image

from crossvlt_hf import CrossVLTModel, CrossVLTProcessor, ReferringImageSegmentationPipeline
from crossvlt_hf.cli.evaluate import table
from crossvlt_hf.data import load_data
from crossvlt_hf.data.refshapes import SPLITS, make_example
from crossvlt_hf.evaluation import EvaluationOptions, evaluate
from crossvlt_hf.loading import DEFAULT_CHECKPOINT, load_checkpoint


CARD = Path(__file__).parents[1] / "model_cards" / "refshapes.template.md"
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


def measure(target: Path, scenes: int) -> dict:
    """Figures on test scenes, on the splits that test generalisation, and with the expressions of other scenes."""
    model, processor = load_checkpoint(target)
    side = processor.image_processor.size["height"]
    options = EvaluationOptions(batch_size=32, distractors=True)
    figures: dict = {}
    for split in SPLITS[2:]:
        count = scenes if split == "test" else scenes // 2
        dataset = load_data("refshapes", split, scenes=count, side=side, seed=SEED)
        metric = evaluate(model, processor, dataset, options)
        figures[split] = metric.compute()
        if split == "test":
            figures["families"] = metric.compute_groups()
            shuffled = evaluate(model, processor, dataset, EvaluationOptions(batch_size=32, shuffle=True))
            figures["shuffled"] = shuffled.compute()
    dataset = load_data("refshapes", "test", scenes=scenes // 2, expressions=2, side=side, seed=SEED + 1)
    figures["right object"] = evaluate(model, processor, dataset, options).compute()
    figures["seconds"] = seconds_per_scene(model, processor, side)
    figures["bytes"] = (target / "model.safetensors").stat().st_size
    figures["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    return figures


def seconds_per_scene(model: CrossVLTModel, processor: CrossVLTProcessor, side: int) -> float:
    """Median time of the pipeline for one picture and one expression."""
    pipeline = ReferringImageSegmentationPipeline(model=model, processor=processor)
    times = []
    for index in range(50):
        example = make_example("test", index, side=side, seed=SEED)
        start = time.perf_counter()
        pipeline(Image.fromarray(example.scene.image), text=example.expression)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def training_facts(runs: Path) -> dict[str, str]:
    """What the logs of both halves say of their length."""
    facts = {}
    for name in ("refshapes-64", "refshapes"):
        entries = [json.loads(line) for line in (runs / name / "log.jsonl").read_text().splitlines()]
        steps = [entry for entry in entries if "samples_per_second" in entry]
        before = [0, *(entry["step"] for entry in steps)]
        hours = sum(32 * (e["step"] - b) / e["samples_per_second"] for b, e in zip(before, steps, strict=False)) / 3600
        facts[f"samples {name}"] = f"{32 * steps[-1]['step']:,}"
        facts[f"hours {name}"] = f"{hours:.1f}"
        curve = [(e["step"], e["validation/mean_iou"]) for e in entries if "validation/mean_iou" in e]
        facts[f"curve {name}"] = ", ".join(f"{value:.3f} ({32 * step // 1000}k)" for step, value in curve)
    return facts


def write_card(figures: dict, facts: dict[str, str], target: Path) -> None:
    """The card beside the weights, and the figures as JSON."""
    generalisation = {split: figures[split] for split in SPLITS[3:]} | {
        "expressions of other scenes": figures["shuffled"]
    }
    values = {
        "{test}": table({"test": figures["test"]}, "split"),
        "{families}": table(figures["families"], "family"),
        "{generalisation}": table(generalisation, "split"),
        "{right object}": f"{100 * figures['right object']['right_object_rate']:.1f}",
        "{other object}": f"{100 * figures['right object']['distractor_iou']:.1f}",
        "{seconds}": f"{figures['seconds']:.3f}",
        "{megabytes}": f"{figures['bytes'] / 1e6:.1f}",
        "{parameters}": f"{figures['parameters'] / 1e6:.2f}",
        "{scenes}": f"{figures['test']['samples']:,}",
        "{seed}": str(SEED),
        "{torch}": torch.__version__,
        "{machine}": f"{os.cpu_count()} CPU cores ({platform.machine()})",
        **{f"{{{name}}}": value for name, value in facts.items()},
    }
    card = CARD.read_text()
    for name, value in values.items():
        card = card.replace(name, value)
    (target / "README.md").write_text(card)
    (target / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")


def main() -> None:
    """Train, pack, measure, write the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the two runs (%(default)s)")
    parser.add_argument("--target", type=Path, default=DEFAULT_CHECKPOINT)
    parser.add_argument("--scenes", type=int, default=2000, help="of the test (%(default)s)")
    parser.add_argument("--only", choices=["train", "pack", "measure"])
    arguments = parser.parse_args()
    if arguments.only in (None, "train"):
        train(arguments.runs)
    if arguments.only in (None, "pack"):
        pack(arguments.runs / "refshapes" / "last", arguments.target)
    if arguments.only in (None, "measure"):
        figures = measure(arguments.target, arguments.scenes)
        write_card(figures, training_facts(arguments.runs), arguments.target)


if __name__ == "__main__":
    main()
