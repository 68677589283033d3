"""Measure a checkpoint on rule-made expressions, for photographs, compositions and drawn shapes.

python examples/built_in/evaluate.py test.parquet --trained-on train.parquet --output test.json

All photographs of the table are used: give one that training did not see.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batches import to_inputs
from mixture import SHARES, Mixture
from photographs import World
from torch import Tensor
from torch.utils.data import DataLoader

from crossvlt_hf import CrossVLTModel
from crossvlt_hf.weights.checkpoint import load_checkpoint


LEAST_AREAS = 0.012, 0.03  # of the picture, above which targets are counted together
THRESHOLDS = (0.5, 0.7, 0.9)
SEED = 5
Row = dict[str, Any]  # of an expression: `iou`, `other`, `area`, `presence`, `family`, `right`


def _ious(found: Tensor, truth: Tensor) -> np.ndarray:
    """IoU of (N, S, S) masks; 1 where both are empty."""
    union = (found | truth).sum((1, 2))
    return torch.where(union > 0, (found & truth).sum((1, 2)) / union, 1.0).cpu().numpy()


def _right_objects(found: Tensor, truth: Tensor) -> list[bool | None]:
    """Whether each of (N, K, S, S) masks fits its target better than another target of its picture.

    The other is the first that shares no pixel with it; None where there is none.
    """
    right: list[bool | None] = []
    for masks, targets in zip(found, truth, strict=True):
        for mask, target in zip(masks, targets, strict=True):
            others = [other for other in targets if target.any() and other.any() and not (other & target).any()]
            pair = torch.stack([target, others[0]]) if others else None
            own, another = (0.0, 0.0) if pair is None else _ious(mask.expand_as(pair), pair)
            right.append(None if pair is None else bool(own > another))
    return right


@torch.no_grad()
def measure(model: CrossVLTModel, batches: Iterable[dict[str, Any]], device: torch.device) -> dict[str, list[Row]]:
    """What the model makes of each expression, and of that of another image in its place, by source."""
    model.eval()
    rows: dict[str, list[Row]] = defaultdict(list)
    for batch in batches:
        inputs = to_inputs(batch, device)
        truth, shift = inputs.pop("labels").bool(), batch["input_ids"].shape[1]
        others = {name: torch.roll(inputs[name], shift, 0) for name in ("input_ids", "attention_mask")}
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            outputs, other = model(**inputs), model(**inputs | others)
        found = outputs.logits.argmax(1).bool()
        grid = (*batch["input_ids"].shape[:2], *truth.shape[1:])
        values = zip(
            _ious(found, truth),
            _ious(other.logits.argmax(1).bool(), truth),
            truth.float().mean((1, 2)).cpu().numpy(),
            outputs.presence_logits.float().cpu().numpy(),
            _right_objects(found.view(grid), truth.view(grid)),
            strict=True,
        )
        for (source, family, _), (iou, without, area, presence, right) in zip(batch["about"], values, strict=True):
            row = {"iou": iou, "other": without, "area": area, "presence": presence, "family": family, "right": right}
            rows[source].append(row)
    return rows


def _mean(rows: Iterable[Row], key: str) -> float:
    return round(float(np.mean([row[key] for row in rows])), 4)


def _scores(rows: list[Row]) -> dict[str, float | int]:
    ious = np.array([row["iou"] for row in rows])
    right = [row["right"] for row in rows if row["right"] is not None]
    shares = {f"precision@{least}": round(float((ious >= least).mean()), 4) for least in THRESHOLDS}
    return {
        "samples": len(rows),
        "mean_iou": _mean(rows, "iou"),
        "other": _mean(rows, "other"),
        **shares,
        **({"right_object": round(float(np.mean(right)), 4), "right_object_samples": len(right)} if right else {}),
    }


def summarise(rows: list[Row]) -> dict[str, Any]:
    """The figures of a source, as shares.

    Returns:
        `samples` (expressions that fit something), `mean_iou`, `other` (the mean IoU with other images' expressions)
        and `precision@X` of them; `right_object`, the share of `right_object_samples` of them whose mask fits its
        target better than another target of the picture; `by_area`, the same for targets of at least these shares of
        the picture; `families`, the same by kind; `no_target` and `target`, the shares of expressions that fit nothing
        and something for which the presence head says so, where there are any that fit nothing.
    """
    fitting = [row for row in rows if row["area"] > 0]
    nothing = [row for row in rows if row["area"] == 0]
    chosen = {str(least): [row for row in fitting if row["area"] >= least] for least in LEAST_AREAS}
    families = {name: [row for row in fitting if row["family"] == name] for name in {row["family"] for row in fitting}}
    presence = {
        "no_target": round(float(np.mean([row["presence"] < 0 for row in nothing])), 4),
        "target": round(float(np.mean([row["presence"] > 0 for row in fitting])), 4),
    }
    return {
        **_scores(fitting),
        "by_area": {least: _scores(part) for least, part in chosen.items() if part},
        "families": {name: _scores(families[name]) for name in sorted(families)},
        **(presence if nothing and fitting else {}),
    }


def main() -> None:
    """Measure, and write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--trained-on", type=Path, help="table whose classes sentences that fit nothing may name")
    parser.add_argument("--model", help="checkpoint: a folder, a Hub id, or built-in (the default)")
    parser.add_argument("--images", type=int, default=400, help="of each source (%(default)s)")
    parser.add_argument("--sources", nargs="+", choices=list(SHARES), help="which to measure (all)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path("figures.json"))
    arguments = parser.parse_args()
    world = World(arguments.table, split=False)
    if arguments.trained_on:
        world.learn_labels(arguments.trained_on)
    model, processor = load_checkpoint(arguments.model, device=arguments.device)
    batches = Mixture(world, "validation", processor.tokenizer, 16, 4, SEED, arguments.images, arguments.sources)
    rows = measure(model, DataLoader(batches, batch_size=None), model.device)
    figures = {source: summarise(found) for source, found in rows.items()}
    arguments.output.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps({source: found["mean_iou"] for source, found in figures.items()}))


if __name__ == "__main__":
    main()
