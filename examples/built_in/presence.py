"""Teach the presence head of a checkpoint alone, on a CPU: masks stay as they are, bit by bit.

python examples/built_in/presence.py photographs.parquet --output runs/presence

All else of the network runs once over each sample; what the head reads of it is kept, and the head learns from that.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from batches import to_inputs
from mixture import SHAPE_FAMILIES, Mixture
from photographs import World
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from crossvlt_hf import CrossVLTModel
from crossvlt_hf.weights.checkpoint import load_checkpoint


STEPS, BATCH, LEARNING_RATE, WEIGHT_DECAY = 3000, 256, 3e-4, 0.02
LEARNT = [family for family in SHAPE_FAMILIES if family != "no_target"]
Read = tuple[Tensor, Tensor, Tensor]  # what the head reads: sentences, maps of the last stage, logits of the masks


class PresenceMixture(Mixture):
    """Samples with more sentences without a target: half are drawn scenes, each with one that differs in a word."""

    shares = {"natural": 0.24, "rooms": 0.02, "composed": 0.24, "refshapes": 0.5}

    def shape_families(self, rng: np.random.Generator) -> list[str]:
        """A sentence without a target and two others."""
        return ["no_target", *(str(family) for family in rng.choice(LEARNT, 2, replace=False))]


def read(model: CrossVLTModel, batches: Iterator[dict[str, Any]]) -> tuple[Read, Tensor, list[tuple[str, str, str]]]:
    """Run the network over batches.

    Returns:
        What the presence head reads, in float16; whether something fits, (N,) float32; source, family and text.
    """
    found, targets, about = [], [], []
    hook = model.presence_head.register_forward_pre_hook(
        lambda _, values: found.append([value.half() for value in values])
    )
    with torch.no_grad():
        for batch in batches:
            inputs = to_inputs(batch, model.device)
            targets.append(inputs.pop("labels").flatten(1).any(1).float())
            about += batch["about"]
            model(**inputs)
    hook.remove()
    sentences, maps, logits = (torch.cat(parts) for parts in zip(*found, strict=True))
    return (sentences, maps, logits), torch.cat(targets), about


def fit(model: CrossVLTModel, values: Read, targets: Tensor, steps: int) -> None:
    """Train the head on what it reads; the two answers count alike."""
    head = model.presence_head.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(head.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps)
    balance = (1 - targets).mean() / targets.mean()
    generator = torch.Generator().manual_seed(0)
    for _ in tqdm(range(steps), desc="presence head", mininterval=5.0):
        chosen = torch.randint(len(targets), (BATCH,), generator=generator)
        logits = head(*(value[chosen].float() for value in values))
        loss = F.binary_cross_entropy_with_logits(logits, targets[chosen], pos_weight=balance)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    head.eval()


@torch.no_grad()
def accuracies(
    model: CrossVLTModel, values: Read, targets: Tensor, about: list[tuple[str, str, str]]
) -> dict[str, dict[str, float]]:
    """By source, the shares of sentences with and without something that fits that the head answers rightly."""
    parts = zip(*(value.split(BATCH) for value in values), strict=True)
    says = torch.cat([model.presence_head(*(value.float() for value in part)) for part in parts]) > 0
    right, sources = says == targets.bool(), [source for source, _, _ in about]
    report = {}
    for name in dict.fromkeys(sources):
        mine = torch.tensor([source == name for source in sources])
        report[name] = {
            kind: round(right[mine & (targets == value)].float().mean().item(), 4)
            for kind, value in (("no_target", 0), ("target", 1))
            if (mine & (targets == value)).any()
        }
    return report


def main() -> None:
    """Train the head, print its accuracies before and after, and write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--model", help="checkpoint: a folder, a Hub id, or built-in (the default)")
    parser.add_argument("--output", type=Path, default=Path("runs/presence"), help="folder of the new checkpoint")
    parser.add_argument("--images", type=int, default=1000, help="to learn from, four sentences each (%(default)s)")
    parser.add_argument("--validation", type=int, default=60, help="images of each source (%(default)s)")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--workers", type=int, default=0)
    arguments = parser.parse_args()
    model, processor = load_checkpoint(arguments.model)
    model.eval()
    world = World(arguments.table)
    mixture = PresenceMixture(world, "train", processor.tokenizer, 4, 4, seed=11)
    endless = iter(DataLoader(mixture, batch_size=None, num_workers=arguments.workers))
    batches = (next(endless) for _ in tqdm(range(arguments.images // 4), desc="reading", mininterval=5.0))
    values, targets, _ = read(model, batches)
    listed = Mixture(world, "validation", processor.tokenizer, 4, 4, seed=12, total=arguments.validation)
    held_out = read(model, iter(DataLoader(listed, batch_size=None)))
    report = {"samples": len(targets), "before": accuracies(model, *held_out)}
    fit(model, values, targets, arguments.steps)
    report["after"] = accuracies(model, *held_out)
    print(json.dumps(report))
    model.save_pretrained(arguments.output)
    processor.save_pretrained(arguments.output)
    (arguments.output / "presence.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
