"""Teach the presence head of a checkpoint alone, on a CPU: masks stay as they are, bit by bit.

python examples/built_in/presence.py photographs.parquet --output runs/presence

All else of the network runs once over each sample; what the head reads of it is kept in read.pt in the output folder,
and the head learns from that. The number of steps is the best of several on validation samples.
"""

import argparse
import copy
import json
import statistics
from collections.abc import Iterable
from operator import itemgetter
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
ROUNDS = 10  # between which the head is compared on validation samples
# Added to the logit: an empty mask for a true sentence is worse than a mask for a wrong one. On validation samples the
# head then rejects 2 to 4 % of the true sentences, instead of 6 to 9 %
SHIFT = 1.5
LEARNT = [family for family in SHAPE_FAMILIES if family != "no_target"]
Read = tuple[Tensor, Tensor, Tensor]  # what the head reads: sentences, maps of the last stage, logits of the masks
Samples = tuple[Read, Tensor, list[tuple[str, str, str]]]  # with whether something fits; source, family and text


class PresenceMixture(Mixture):
    """Samples with more sentences without a target: half are drawn scenes, each with one that differs in a word."""

    shares = {"natural": 0.24, "rooms": 0.02, "composed": 0.24, "refshapes": 0.5}

    def shape_families(self, rng: np.random.Generator) -> list[str]:
        """A sentence without a target and two others."""
        return ["no_target", *(str(family) for family in rng.choice(LEARNT, 2, replace=False))]


def read(model: CrossVLTModel, batches: Iterable[dict[str, Any]]) -> Samples:
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


def fit(model: CrossVLTModel, train: Samples, validation: Samples, steps: int) -> int:
    """Train the head on what it reads, and keep the weights of the round that is best on validation samples.

    Sentences with and without a target count alike, in training and in the comparison.

    Returns:
        The number of steps of these weights.
    """
    head, (values, targets, _) = model.presence_head.requires_grad_(True), train
    optimizer = torch.optim.AdamW(head.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps)
    balance = (1 - targets).mean() / targets.mean()
    generator = torch.Generator().manual_seed(0)
    rounds = []
    for step in tqdm(range(1, steps + 1), desc="presence head", mininterval=5.0):
        chosen = torch.randint(len(targets), (BATCH,), generator=generator)
        logits = head(*(value[chosen].float() for value in values))
        loss = F.binary_cross_entropy_with_logits(logits, targets[chosen], pos_weight=balance)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % max(steps // ROUNDS, 1) == 0:
            found = accuracies(model, validation)
            score = statistics.mean(value for shares in found.values() for value in shares.values())
            tqdm.write(f"{step} steps: {json.dumps(found)}")
            rounds.append((score, step, copy.deepcopy(head.state_dict())))
    _, best, weights = max(rounds, key=itemgetter(0))
    head.load_state_dict(weights)
    head.classifier.bias.data += SHIFT
    return best


@torch.no_grad()
def accuracies(model: CrossVLTModel, samples: Samples) -> dict[str, dict[str, float]]:
    """By source, the shares of sentences with and without something that fits that the head answers rightly."""
    values, targets, about = samples
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


def read_all(model: CrossVLTModel, tokenizer: Any, arguments: argparse.Namespace) -> dict[str, Samples]:
    """Training and validation samples."""
    world = World(arguments.table)
    mixture = PresenceMixture(world, "train", tokenizer, 4, 4, seed=11)
    endless = iter(DataLoader(mixture, batch_size=None, num_workers=arguments.workers))
    batches = (next(endless) for _ in tqdm(range(arguments.images // 4), desc="reading", mininterval=5.0))
    listed = Mixture(world, "validation", tokenizer, 4, 4, seed=12, total=arguments.validation)
    return {"train": read(model, batches), "validation": read(model, DataLoader(listed, batch_size=None))}


def load_samples(model: CrossVLTModel, tokenizer: Any, arguments: argparse.Namespace) -> dict[str, Samples]:
    """The samples in the output folder; those of other settings are refused."""
    kept = arguments.output / "read.pt"
    settings = {name: str(getattr(arguments, name)) for name in ("table", "model", "images", "validation")}
    if not kept.is_file():
        samples = read_all(model, tokenizer, arguments)
        arguments.output.mkdir(parents=True, exist_ok=True)
        torch.save({"settings": settings, "samples": samples}, kept)
        return samples
    found = torch.load(kept)
    if found["settings"] != settings:
        raise SystemExit(f"{kept} was read with {found['settings']}, not {settings}; give another --output.")
    return found["samples"]


def main() -> None:
    """Train the head, print its accuracies before and after, and write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--model", help="checkpoint: a folder, a Hub id, or built-in (the default)")
    parser.add_argument("--output", type=Path, default=Path("runs/presence"), help="folder of the new checkpoint")
    parser.add_argument("--images", type=int, default=3000, help="to learn from, four sentences each (%(default)s)")
    parser.add_argument("--validation", type=int, default=120, help="images of each source (%(default)s)")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--workers", type=int, default=0)
    arguments = parser.parse_args()
    model, processor = load_checkpoint(arguments.model)
    processor.score_calibration = None  # it depends on the presence; see calibrate.py
    model.eval()
    samples = load_samples(model, processor.tokenizer, arguments)
    report: dict[str, Any] = {name: len(targets) for name, (_, targets, _) in samples.items()}
    report["before"] = accuracies(model, samples["validation"])
    report["steps"] = fit(model, samples["train"], samples["validation"], arguments.steps)
    report["after"] = accuracies(model, samples["validation"])
    print(json.dumps(report))
    folder = arguments.output / "checkpoint"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    (arguments.output / "presence.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
