"""Data and a model for the tests of the evaluation, and what three processes find on them.

PYTHONPATH=tests python tests/evaluation/three_processes.py FOLDER    # each writes FOLDER/RANK.json
"""

import json
import sys
import tempfile
from dataclasses import astuple
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState, debug_launcher
from conftest import WORDS, tiny_config, tiny_tokenizer
from datasets import Dataset
from PIL import Image
from transformers import Trainer, TrainingArguments

from crossvlt_hf import CrossVLTModel, CrossVLTProcessor
from crossvlt_hf.data import Record, build_dataset
from crossvlt_hf.data.masks import encode_mask, pack
from crossvlt_hf.data.pairs import Collator, EvaluationPairs
from crossvlt_hf.evaluation import EvaluationOptions, evaluate
from crossvlt_hf.metrics import RunningMetrics, compute_metrics, preprocess_logits_for_metrics


SIDE = 32
SIZES = [(48, 80), (32, 32), (50, 30), (30, 70)]
# The image of each reference, how many expressions it has, and its target: rows and columns from, to
REFERENCES = [
    (0, 3, (5, 30, 10, 60)),
    (0, 1, (20, 48, 0, 40)),
    (1, 2, (0, 16, 8, 32)),
    (2, 1, None),
    (3, 3, (10, 20, 5, 70)),
]
# Name, how many references, and options: 10, 7 and 3 expressions for 3 processes; 1 for all of them together
CASES = {
    "ten": (5, {"batch_size": 2, "distractors": True}),
    "original": (5, {"batch_size": 3, "protocol": "original", "distractors": True}),
    "shuffled": (5, {"batch_size": 4, "shuffle": True, "truncation": "reference"}),
    "seven": (4, {"batch_size": 2, "workers": 1}),
    "three": (1, {"batch_size": 8}),
}


def records(folder: Path) -> Dataset:
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate(SIZES):
        small = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return build_dataset(_record(folder, rng, number) for number in range(len(REFERENCES)))


def _record(folder: Path, rng: np.random.Generator, number: int) -> Record:
    image, count, box = REFERENCES[number]
    mask = np.zeros(SIZES[image], dtype=np.uint8)
    if box is not None:
        mask[box[0] : box[1], box[2] : box[3]] = 1
    said = [" ".join(rng.choice(WORDS, 2 + 4 * place)) for place in range(count)]  # the longest are too long
    return Record(
        image=folder / f"{image}.png",
        image_id=image,
        ref_id=number,
        expressions=said,
        mask=pack([] if box is None else [encode_mask(mask)], *SIZES[image]),
        split="val",
        dataset="test",
        where=f"row {number}",
        has_target=box is not None,
        family="even" if number % 2 == 0 else "odd",
    )


def balanced_model(dataset: Dataset) -> tuple[CrossVLTModel, CrossVLTProcessor]:
    """A random model whose masks take about half of the pictures."""
    torch.manual_seed(0)
    model = CrossVLTModel(tiny_config()).eval()
    processor = CrossVLTProcessor.from_tokenizer(tiny_tokenizer(), image_size=SIDE, max_length=9)
    rows = [dataset[number] for number in range(len(dataset))]
    inputs = processor([row["image"] for row in rows], [row["expressions"][0] for row in rows], return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
        # Between two pixels, and not on one, whose side would be a matter of rounding
        model.decoder.classifier.bias[1] -= (logits[:, 1] - logits[:, 0]).quantile(0.5)
    return model, processor


def evaluate_cases(dataset: Dataset) -> dict[str, list]:
    model, processor = balanced_model(dataset)
    found = {}
    for name, (references, options) in CASES.items():
        metric = evaluate(model, processor, dataset.select(range(references)), EvaluationOptions(**options))
        found[name] = [astuple(sample) for sample in metric.samples]
    return found


def evaluate_by_trainer(dataset: Dataset, folder: Path, running: bool) -> dict[str, float]:
    """What Trainer finds on all expressions, three at a time in each process."""
    model, processor = balanced_model(dataset)
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_eval_batch_size=3,
        batch_eval_metrics=running,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    trainer = Trainer(
        model,
        arguments,
        data_collator=Collator(processor),
        eval_dataset=EvaluationPairs(dataset),
        preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        compute_metrics=RunningMetrics() if running else compute_metrics,
    )
    trainer.evaluate()
    metrics = trainer.evaluate()  # nothing is left over from the first time
    return {name: value for name, value in metrics.items() if "_per_second" not in name and "time" not in name}


def work(folder: str) -> None:
    """What each of the three processes does."""
    target = Path(folder)
    dataset = records(Path(tempfile.mkdtemp(dir=target)))  # its own files: the others write at the same time
    found = {
        "samples": evaluate_cases(dataset),
        "trainer": [evaluate_by_trainer(dataset, target, running) for running in (False, True)],
    }
    (target / f"{PartialState().process_index}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    debug_launcher(work, (sys.argv[1],), num_processes=3)  # forks of this one
