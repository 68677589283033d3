"""Make a checkpoint of what train.py wrote, with its figures; then write the cards anew.

python examples/built_in/pack.py runs/built-in --words words.pt --hardware "1 x NVIDIA H200"
python examples/built_in/pack.py --checkpoint runs/presence --test test.json --hardware "2 CPU cores"    # trained on
python examples/render_cards.py
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from network import SIDE, build
from PIL import Image
from safetensors.torch import load_file
from train import WEIGHTS

from crossvlt_hf import CrossVLTModel, CrossVLTProcessor, ReferringImageSegmentationPipeline
from crossvlt_hf.publishing.facts import About, Evidence
from crossvlt_hf.publishing.page.samples import SAMPLES
from crossvlt_hf.weights.checkpoint import DEFAULT_CHECKPOINT, load_checkpoint


ABOUT = Path(__file__).parents[2] / "model_cards" / "built_in.yaml"
TITLES = {
    "natural": "photographs with all objects labelled",
    "rooms": "rooms with some objects labelled",
    "composed": "compositions of cut-outs",
    "refshapes": "RefShapes, enlarged from 96 pixels",
}
TOOL = "examples/built_in"
REPORTED = ("samples", "mean_iou")
WEIGHTS_FILE = "model.safetensors"


def pack(weights: Path, words: Path, target: Path) -> None:
    """Write the weights in float16, half the size, to be loaded as float32."""
    model, processor = build(words)
    model.load_state_dict({name: value.float() for name, value in load_file(weights).items()})
    save(model, processor, target)


def save(model: CrossVLTModel, processor: CrossVLTProcessor, target: Path) -> None:
    """Write a checkpoint folder without code, as the package has its own."""
    processor.save_pretrained(target)
    model.half().save_pretrained(target)
    (target / WEIGHTS_FILE).chmod(0o644)  # save_pretrained leaves it to its owner alone
    for name in ("config.json", "processor_config.json"):
        values = json.loads((target / name).read_text())
        kept = {key: value for key, value in values.items() if key not in ("auto_map", "custom_pipelines")}
        kept |= {"dtype": "float32"} if "dtype" in kept else {}
        (target / name).write_text(json.dumps(kept, indent=2) + "\n")
    for path in target.glob("*.py"):
        path.unlink()
    (target / "requirements.txt").unlink(missing_ok=True)


def reports(rows: dict[str, dict[str, Any]], split: str, hardware: str) -> Iterator[dict[str, Any]]:
    """The figures of `evaluate.summarise` as reports for a card, each source with other images' expressions too."""
    for source, title in TITLES.items():
        if source not in rows:
            continue
        row = rows[source]
        common = {
            "data": "refshapes" if source == "refshapes" else "photographs",
            "split": split,
            "protocol": "paper",
            "image_size": [SIDE, SIDE],
            "hardware": hardware,
            "tool": TOOL,
        }
        families = {name: _metrics(found) for name, found in row["families"].items()}
        yield {**common, "name": f"{title}, {split}", "metrics": _metrics(row), "families": families}
        large = row["by_area"].get("0.03")
        if large and large["samples"] < row["samples"]:
            name = f"{title}, targets of at least 3 % of the picture, {split}"
            yield {**common, "name": name, "metrics": _metrics(large)}
        blind = {"samples": row["samples"], "mean_iou": row["other"]}
        yield {**common, "name": f"{title}, {split}", "shuffle": True, "metrics": blind}


def _metrics(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key in REPORTED or key.startswith("precision")}


def read_log(path: Path) -> list[dict[str, Any]]:
    """The evaluations in a log of train.py, the last of which is "final"."""
    lines = map(json.loads, path.read_text().splitlines())
    return [line for line in lines if line["event"] in ("evaluation", "final")]


def training_facts(evaluations: list[dict[str, Any]], hardware: str) -> dict[str, Any]:
    """What the log says, as numbers and in words."""
    curves = {
        source: {str(entry["step"]): entry["rows"][source]["mean_iou"] for entry in evaluations}
        for source in TITLES
        if source in evaluations[-1]["rows"]
    }
    last = evaluations[-1]
    lines = [
        f"{last['seen']:,} expressions in {last['step']:,} steps of {last['seen'] // last['step']}, on {hardware}.",
        "AdamW, peak learning rate 0.0008, 0.00056 for the language stages, betas 0.9 and 0.98, warm-up of 400 steps, "
        "then cosine, weight decay 0.05, gradients clipped to a norm of 1, bfloat16, averaged weights (0.9995).",
        "Mean IoU on validation data by step:",
        "",
        f"| step | {' | '.join(TITLES[source] for source in curves)} |",
        f"|---:|{'---:|' * len(curves)}",
    ]
    for step in (str(entry["step"]) for entry in evaluations):
        lines.append(f"| {step} | {' | '.join(f'{100 * curve[step]:.1f}' for curve in curves.values())} |")
    facts = {"steps": last["step"], "samples": last["seen"], "hardware": hardware, "curves": curves}
    return {"summary": "\n".join(lines), **facts}


def time_it(target: Path, count: int) -> list[dict[str, Any]]:
    """The size of the weights' file, and the median time of the pipeline for one picture and one expression."""
    model, processor = load_checkpoint(target)
    pipeline = ReferringImageSegmentationPipeline(model=model, processor=processor)
    image, times = Image.open(SAMPLES[0].path), []
    for _ in range(count):
        start = time.perf_counter()
        pipeline(image, text=SAMPLES[0].expressions[0])
        times.append(time.perf_counter() - start)
    size = (target / WEIGHTS_FILE).stat().st_size
    cores = f"{torch.get_num_threads()} of {os.cpu_count()} CPU cores ({platform.machine()})"
    return [
        {"what": "weights file", "value": f"{size / 1e6:.1f} MB, float16"},
        {
            "what": f"one photograph and one sentence, whole pipeline, median of {count}",
            "value": f"{statistics.median(times):.3f} s",
            "hardware": f"{cores}, float32, torch {torch.__version__}",
        },
    ]


def repack(checkpoint: Path, target: Path, measured: list[dict[str, Any]], repeats: int) -> Evidence:
    """Put weights that were trained on in the place of the target's; of its figures those of the masks stay true.

    Args:
        checkpoint: with the same encoders, fusion and decoder as the target's.
        target: folder of the packed checkpoint.
        measured: reports of the new weights, which take the place of all reports on the same kind of split.
        repeats: of the pipeline, to time it.
    """
    known, (model, trained) = Evidence.read(target), load_checkpoint(checkpoint)
    _, processor = load_checkpoint(target)  # the tokenizer of the other was used with padding, which it would save
    processor.score_calibration = trained.score_calibration
    splits = {report["split"] for report in measured}
    save(model, processor, target)
    kept = [report for report in known.evaluations if report["split"] not in splits]
    return Evidence(About.read(ABOUT), [*kept, *measured], time_it(target, repeats), known.training)


def main() -> None:
    """Pack and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="folder that train.py wrote")
    parser.add_argument("--checkpoint", type=Path, help="instead of it, folder that presence.py wrote")
    parser.add_argument("--words", type=Path, help="what words.py wrote, for a run")
    parser.add_argument("--test", type=Path, help="what evaluate.py wrote of photographs that training never saw")
    parser.add_argument("--hardware", required=True, help="of the training, in words")
    parser.add_argument("--repeats", type=int, default=30, help="of the pipeline, to time it (%(default)s)")
    parser.add_argument("--target", type=Path, default=DEFAULT_CHECKPOINT)
    arguments = parser.parse_args()
    tests = json.loads(arguments.test.read_text()) if arguments.test else {}
    measured = list(reports(tests, "test", arguments.hardware))
    if arguments.checkpoint:
        repack(arguments.checkpoint, arguments.target, measured, arguments.repeats).save(arguments.target)
        return
    if arguments.run is None or arguments.words is None:
        parser.error("give a run with --words, or --checkpoint")
    pack(arguments.run / WEIGHTS, arguments.words, arguments.target)
    evaluations = read_log(arguments.run / "log.jsonl")
    found = [*reports(evaluations[-1]["rows"], "validation", arguments.hardware), *measured]
    facts = training_facts(evaluations, arguments.hardware)
    Evidence(About.read(ABOUT), found, time_it(arguments.target, arguments.repeats), facts).save(arguments.target)


if __name__ == "__main__":
    main()
