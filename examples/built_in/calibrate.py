"""Fit the score of a checkpoint to the IoU of its masks, on validation samples, and measure it on test photographs.

python examples/built_in/calibrate.py train.parquet --test test.parquet --model runs/presence/checkpoint
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from batches import to_inputs
from evaluate import SEED
from mixture import Mixture
from photographs import World
from torch.utils.data import DataLoader

from crossvlt_hf import CrossVLTModel
from crossvlt_hf.evaluation.calibration import calibration_error, fit_score, save_calibration
from crossvlt_hf.processing_crossvlt import PRESENCE_THRESHOLD, apply_calibration, estimate_iou
from crossvlt_hf.weights.checkpoint import load_checkpoint


class Judged(NamedTuple):
    """A mask that is not empty: its mean probability, the estimate of its IoU, and its IoU."""

    probability: float
    estimate: float
    iou: float


@torch.no_grad()
def judge(model: CrossVLTModel, batches: Iterable[dict[str, Any]]) -> list[Judged]:
    """Compare the masks that the model finds with the labels."""
    found = []
    for batch in batches:
        inputs = to_inputs(batch, model.device)
        labels = inputs.pop("labels").bool()
        outputs = model(**inputs)
        presences = outputs.presence_logits.sigmoid().tolist()
        for margin, label, presence in zip(
            outputs.logits[:, 1] - outputs.logits[:, 0], labels, presences, strict=True
        ):
            mask = margin > 0
            if mask.any() and presence >= PRESENCE_THRESHOLD:
                iou = ((mask & label).sum() / (mask | label).sum()).item()
                probability = margin[mask].sigmoid().mean().item()
                found.append(Judged(probability, estimate_iou(margin, mask, presence), iou))
    return found


def main() -> None:
    """Write the calibration into the checkpoint, and print the errors of the score before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--test", type=Path, required=True, help="table of other photographs")
    parser.add_argument("--model", type=Path, required=True, help="folder of the checkpoint, which is changed")
    parser.add_argument("--images", type=int, default=150, help="of each source and table (%(default)s)")
    arguments = parser.parse_args()
    model, processor = load_checkpoint(str(arguments.model))
    model.eval()
    worlds = {"validation": World(arguments.table), "test": World(arguments.test, split=False)}
    worlds["test"].learn_labels(arguments.table)
    judged = {}
    for name, world in worlds.items():
        listed = Mixture(world, "validation", processor.tokenizer, 4, 4, SEED + 1, arguments.images)
        judged[name] = judge(model, DataLoader(listed, batch_size=None))
    points = fit_score([each.estimate for each in judged["validation"]], [each.iou for each in judged["validation"]])
    save_calibration(arguments.model, points)
    report: dict[str, Any] = {}
    for name, masks in judged.items():
        ious = [each.iou for each in masks]
        scores = apply_calibration([each.estimate for each in masks], points).tolist()
        before = calibration_error([each.probability for each in masks], ious)
        report[name] = {"masks": len(masks), "before": before, "after": calibration_error(scores, ious)}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
