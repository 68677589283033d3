"""Train the built-in checkpoint: photographs, compositions and RefShapes, in a budget of time.

python examples/built_in/train.py photographs.parquet --words words.pt --teacher efficientnet-lite0-57934424.pth

Writes `log.jsonl` and, at every evaluation, `weights.safetensors`, the averaged weights in float16.
"""

import argparse
import copy
import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from batches import jitter, normalise, to_inputs, to_pixels
from evaluate import measure, summarise
from mixture import Mixture
from network import build
from photographs import World
from safetensors.torch import load_file, save_file
from teacher import Distiller, Teacher, stage_outputs
from torch import Tensor, nn
from torch.utils.data import DataLoader

from crossvlt_hf import CrossVLTModel, CrossVLTProcessor


LOSSES = ("loss", "mask_loss", "dice_loss", "alignment_loss", "presence_loss")
WEIGHT_DECAY = 0.05
TEXT_SCALE = 0.7  # of the learning rate, for the language stages
WEIGHTS = "weights.safetensors"


class Average:
    """Exponential moving average of a model's weights; of its buffers, a copy."""

    def __init__(self, model: nn.Module, decay: float = 0.9995) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.step = decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Follow a step of the model."""
        self.step += 1
        share = 1 - min(self.decay, (1 + self.step) / (20 + self.step))
        torch._foreach_lerp_(list(self.model.parameters()), [entry.detach() for entry in model.parameters()], share)
        for kept, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            kept.copy_(buffer)


class Schedule:
    """AdamW with a warm-up, then a cosine over a share of the time.

    Args:
        groups: of parameters, each with its peak learning rate.
        warmup: in steps.
        floor: of the factor at the end.
        betas: of Adam.
    """

    def __init__(
        self, groups: list[dict[str, Any]], warmup: int, floor: float, betas: tuple[float, float], fused: bool
    ) -> None:
        self.optimizer = torch.optim.AdamW(groups, betas=betas, fused=fused)
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.warmup, self.floor, self.steps = warmup, floor, 0

    def step(self, loss: Tensor, clipped: nn.Module, share: float) -> Tensor:
        """A step of a loss; returns the norm of the gradients before they are clipped to 1.

        Args:
            loss: a scalar.
            clipped: the module whose gradients are.
            share: of the time that has passed.
        """
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(clipped.parameters(), 1.0)
        cosine = 0.5 * (1 + math.cos(math.pi * share))
        factor = min(1, (self.steps + 1) / self.warmup) * (cosine * (1 - self.floor) + self.floor)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        self.optimizer.step()
        self.steps += 1
        return norm


def group_parameters(model: nn.Module, rate: float) -> list[dict[str, Any]]:
    """Parameters with and without weight decay, those of the language stages with a smaller rate."""
    groups: dict[tuple[bool, bool], list[Tensor]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        decays = not (parameter.ndim < 2 or "relative_position_bias" in name or "embeddings" in name)
        groups[name.startswith("text_model"), decays].append(parameter)
    return [
        {
            "params": parameters,
            "lr": rate * (TEXT_SCALE if text else 1.0),
            "weight_decay": WEIGHT_DECAY if decays else 0.0,
        }
        for (text, decays), parameters in groups.items()
    ]


class Run:
    """A training: its data, its log, its device.

    Args:
        arguments: of the command line.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        arguments.output.mkdir(parents=True, exist_ok=True)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.world = World(arguments.table, arguments.limit)
        self.say(event="world", **self.world.count())
        self.model, self.processor = self._build()
        self.say(event="model", parameters=sum(entry.numel() for entry in self.model.parameters()))
        self.validation = list(self.load("validation", 32, seed=1, total=arguments.validation))
        self.stream = iter(self.load("train", arguments.images, seed=arguments.seed))

    def _build(self) -> tuple[CrossVLTModel, CrossVLTProcessor]:
        model, processor = build(self.arguments.words)
        if self.arguments.start:
            model.load_state_dict({name: value.float() for name, value in load_file(self.arguments.start).items()})
        return model.to(self.device), processor

    def say(self, **entry: Any) -> None:
        """Write a line of the log."""
        line = json.dumps(entry)
        with (self.arguments.output / "log.jsonl").open("a") as log:
            log.write(line + "\n")
        print(line[:1500], flush=True)

    def load(self, split: str, images: int, seed: int, total: int | None = None) -> DataLoader:
        """Batches of a split."""
        tokenizer, workers = self.processor.tokenizer, self.arguments.workers
        mixture = Mixture(self.world, split, tokenizer, images, self.arguments.expressions, seed, total)
        options = {"prefetch_factor": 4, "multiprocessing_context": "fork"} if workers else {}
        pinned = self.device.type == "cuda"
        return DataLoader(mixture, batch_size=None, num_workers=workers, pin_memory=pinned, **options)

    def autocast(self) -> torch.autocast:
        """bfloat16 on a GPU."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def shares(self, seconds: float) -> Iterator[float]:
        """The share of a budget of time that has passed, until it is spent or the steps are done."""
        start = time.monotonic()
        for _ in range(self.arguments.steps):
            share = (time.monotonic() - start) / seconds
            if share >= 1:
                return
            yield share

    def distil(self) -> None:
        """Teach the vision tower the features of a network that was trained on ImageNet."""
        vision, teacher = self.model.vision_model, Teacher.from_file(self.arguments.teacher).to(self.device)
        distiller = Distiller(self.model.config.vision_config.hidden_sizes[1:]).to(self.device)
        heads = {"params": list(distiller.parameters()), "lr": 1.5e-3, "weight_decay": 0.0}
        schedule = self._schedule([*group_parameters(vision, 1.5e-3), heads], 200, 0.1, (0.9, 0.99))
        total = torch.zeros((), device=self.device)
        vision.train()
        for share in self.shares(self.arguments.distil):
            pixels = jitter(to_pixels(next(self.stream), self.device), 1.6)
            with self.autocast():
                with torch.no_grad():
                    wanted = teacher(pixels)
                loss = distiller(stage_outputs(vision, normalise(pixels))[1:], wanted)
            schedule.step(loss, vision, share)
            total += loss.detach()
            if schedule.steps % self.arguments.log_every == 0:
                self.say(event="distil", step=schedule.steps, loss=round(float(total) / self.arguments.log_every, 4))
                total.zero_()

    def _schedule(
        self, groups: list[dict[str, Any]], warmup: int, floor: float, betas: tuple[float, float]
    ) -> Schedule:
        return Schedule(groups, warmup, floor, betas, fused=self.device.type == "cuda")

    def train(self) -> None:
        """Train the whole network."""
        average = Average(self.model)
        schedule = self._schedule(group_parameters(self.model, self.arguments.rate), 400, 0.01, (0.9, 0.98))
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        evaluated = time.monotonic()
        for share in self.shares(self.arguments.seconds):
            inputs = to_inputs(next(self.stream), self.device, augment=True)
            self.model.train()
            with self.autocast():
                outputs = self.model(**inputs)
            norm = schedule.step(outputs.loss, self.model, share)
            average.update(self.model)
            for name in LOSSES:
                sums[name] += getattr(outputs, name).detach()
            if schedule.steps % self.arguments.log_every == 0:
                self._say_losses(schedule.steps, share, float(norm), sums)
            if time.monotonic() - evaluated > self.arguments.evaluate_every:
                self.evaluate("evaluation", average.model, schedule.steps)
                evaluated = time.monotonic()
        self.evaluate("final", average.model, schedule.steps)

    def _say_losses(self, step: int, share: float, norm: float, sums: dict[str, Tensor]) -> None:
        means = {name: round(float(value) / self.arguments.log_every, 4) for name, value in sums.items()}
        sums.clear()
        self.say(event="train", step=step, share=round(share, 3), norm=round(norm, 3), **means)
        if not math.isfinite(means["loss"]):
            raise RuntimeError(f"The loss is {means['loss']} at step {step}; start again with a smaller --rate.")

    def evaluate(self, event: str, model: CrossVLTModel, step: int) -> None:
        """Measure the averaged weights and save them in float16."""
        seen = step * self.arguments.images * self.arguments.expressions
        found = measure(model, self.validation, self.device)
        self.say(event=event, step=step, seen=seen, rows={name: summarise(rows) for name, rows in found.items()})
        state = {name: value.half().contiguous().cpu() for name, value in model.state_dict().items()}
        save_file(state, self.arguments.output / WEIGHTS)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="parquet file; see photographs.py")
    parser.add_argument("--words", type=Path, required=True, help="what words.py wrote")
    parser.add_argument("--teacher", type=Path, help="weights of EfficientNet-Lite0; without it no distillation")
    parser.add_argument("--output", type=Path, default=Path("runs/built-in"))
    parser.add_argument("--start", type=Path, help="weights.safetensors of a run to go on from")
    parser.add_argument("--seconds", type=float, default=900, help="of the training (%(default)s)")
    parser.add_argument("--distil", type=float, default=150, help="seconds of the distillation (%(default)s)")
    parser.add_argument("--steps", type=int, default=10**9, help="at most, of each")
    parser.add_argument("--images", type=int, default=64, help="of a batch (%(default)s)")
    parser.add_argument("--expressions", type=int, default=4, help="of an image (%(default)s)")
    parser.add_argument("--rate", type=float, default=8e-4, help="peak learning rate (%(default)s)")
    parser.add_argument("--workers", type=int, default=15)
    parser.add_argument("--validation", type=int, default=400, help="images of each source (%(default)s)")
    parser.add_argument("--evaluate-every", type=float, default=180, help="seconds (%(default)s)")
    parser.add_argument("--log-every", type=int, default=200, help="steps (%(default)s)")
    parser.add_argument("--limit", type=int, default=0, help="photographs that are read; 0 for all")
    parser.add_argument("--seed", type=int, default=100)
    return parser.parse_args()


def main() -> None:
    """Distil, then train."""
    arguments = parse()
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    run = Run(arguments)
    if arguments.teacher and not arguments.start:
        run.distil()
    run.train()


if __name__ == "__main__":
    main()
