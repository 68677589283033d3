"""Check and measure the base model on a CUDA GPU, in one call.

python examples/gpu_checks.py --seconds 200 > gpu.jsonl

A JSON line for each finding: agreement with the CPU, operations that wait for the GPU, speed of inference and training
as a share of the card's own matrix product, a CUDA graph, the costliest kernels, SyncBatchNorm and FSDP2 in one
process, `torch.compile`. A part that fails says so, and the others go on; what the time does not allow is skipped.
"""

import argparse
import copy
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.fsdp import fully_shard
from torch.profiler import ProfilerActivity, profile

from crossvlt_hf import CrossVLTConfig, CrossVLTModel
from crossvlt_hf.benchmark.flops import count_flops


SIDE, TOKENS, VOCABULARY = 480, 21, 30_000
HALF = torch.bfloat16


def say(**found: Any) -> None:
    """Print a finding."""
    print(json.dumps(found), flush=True)


def median_seconds(step: Callable[[], Any], rounds: int = 8, warm_up: int = 3) -> float:
    """Median time of a step on the GPU's own clock."""
    for _ in range(warm_up):
        step()
    times = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return statistics.median(times)


def make_batch(
    images: int, expressions: int = 1, side: int = SIDE, labelled: bool = False, device: str = "cuda"
) -> dict[str, Tensor]:
    """Random inputs of the model."""
    generator = torch.Generator().manual_seed(1)
    shape = (images * expressions, TOKENS)
    batch = {
        "pixel_values": torch.randn(images, 3, side, side, generator=generator),
        "input_ids": torch.randint(1, VOCABULARY, shape, generator=generator),
        "attention_mask": torch.ones(shape, dtype=torch.long),
    }
    if labelled:
        batch["labels"] = (torch.rand(images, side, side, generator=generator) > 0.9).long()
    return {name: value.to(device) for name, value in batch.items()}


class Checks:
    """The parts, and what they share.

    Args:
        seconds: that all parts together may take.
    """

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds
        torch.manual_seed(0)
        self.config = CrossVLTConfig.from_size("base")
        self.cpu_model = CrossVLTModel(self.config).eval()
        self.flops = count_flops(self.config, (SIDE, SIDE), TOKENS)
        self.peak = 0.0

    def run(self) -> None:
        """All parts in turn."""
        say(card=torch.cuda.get_device_name(), torch=torch.__version__, gflop_per_pair=self.flops / 1e9)
        self.measure_peak()
        parts = (
            self.agree_with_the_cpu,
            self.find_waits,
            self.infer,
            self.replay_a_graph,
            self.train,
            self.profile_a_step,
            self.synchronise_batch_norm,
            self.shard,
            self.compile,
        )
        for part in parts:
            if self.left() < 15:
                say(part=part.__name__, skipped="no time left")
                continue
            try:
                part()
            except Exception as error:  # whatever it is: one part must not cost the others
                say(part=part.__name__, error=f"{type(error).__name__}: {' '.join(str(error).split())}"[:500])
            torch.cuda.empty_cache()

    def left(self) -> float:
        """Seconds that are left."""
        return self.end - time.monotonic()

    def on_gpu(self, dtype: torch.dtype = HALF) -> CrossVLTModel:
        """A copy of the model on the GPU, in evaluation mode."""
        return copy.deepcopy(self.cpu_model).to("cuda", dtype)

    def speed(self, seconds: float, images: int, factor: int = 1) -> dict[str, Any]:
        """Time, and what it means against the matrix product in bfloat16."""
        rate = factor * self.flops * images / seconds
        return {
            "batch": images,
            "seconds": round(seconds, 4),
            "tflops": round(rate / 1e12, 1),
            "of_peak": round(rate / self.peak, 3),
        }

    def measure_peak(self) -> None:
        """The card's matrix product, 8192 a side, random numbers."""
        for dtype in (torch.float32, torch.float16, HALF):
            left, right = (torch.randn(8192, 8192, device="cuda", dtype=dtype) for _ in range(2))
            self.peak = 2 * 8192**3 / median_seconds(lambda a=left, b=right: a @ b)
            say(part="peak", dtype=str(dtype), tflops=round(self.peak / 1e12, 1))

    @torch.no_grad()
    def agree_with_the_cpu(self) -> None:
        """Differences from float32 on the CPU, and in float64 between both."""
        batch = make_batch(2, side=160, device="cpu")
        batch["attention_mask"][1, 9:] = 0
        expected = self.cpu_model(**batch).logits
        spread = expected.std((-1, -2)).mean()
        moved = {name: value.cuda() for name, value in batch.items()}
        for dtype in (torch.float32, HALF, torch.float16):
            error = self.on_gpu(dtype)(**moved).logits.float().cpu() - expected
            say(part="agreement", dtype=str(dtype), rms_of_spread=float(error.pow(2).mean().sqrt() / spread))
        moved["pixel_values"], batch["pixel_values"] = (x["pixel_values"].double() for x in (moved, batch))
        exact = copy.deepcopy(self.cpu_model).double()(**batch).logits
        error = self.on_gpu(torch.float64)(**moved).logits.cpu() - exact
        say(part="agreement", dtype="torch.float64", largest=float(error.abs().max()))

    def find_waits(self) -> None:
        """Whether the host waits for the GPU within forward and backward."""
        model, one, eight = self.on_gpu(), make_batch(1), make_batch(1, 8)
        eight["expressions_per_image"] = torch.tensor([8])
        with torch.no_grad():
            self._watch("one expression", lambda: model(**one))
            self._watch("eight expressions of one image", lambda: model(**eight))
        training, labelled = self.on_gpu(torch.float32).train(), make_batch(2, labelled=True)
        self._watch("training", lambda: training(**labelled).loss.backward())

    @staticmethod
    def _watch(case: str, step: Callable[[], Any]) -> None:
        step()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            step()
            say(part="waits", case=case, waits=False)
        except RuntimeError as error:
            say(part="waits", case=case, waits=True, error=str(error)[:200])
        finally:
            torch.cuda.set_sync_debug_mode("default")

    @torch.no_grad()
    def infer(self) -> None:
        """Inference in bfloat16, batch by batch."""
        model = self.on_gpu()
        for images in (1, 4, 16, 32, 64):
            batch = make_batch(images)
            torch.cuda.reset_peak_memory_stats()
            seconds = median_seconds(lambda b=batch: model(**b))
            memory = round(torch.cuda.max_memory_allocated() / 2**30, 2)
            say(part="inference", **self.speed(seconds, images), gib=memory)

    @torch.no_grad()
    def replay_a_graph(self) -> None:
        """One image as a CUDA graph."""
        model, batch, stream = self.on_gpu(), make_batch(1), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                model(**batch)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = model(**batch).logits
        seconds = median_seconds(graph.replay)
        say(part="CUDA graph", **self.speed(seconds, 1), equal=torch.equal(logits, model(**batch).logits))

    def train(self) -> None:
        """Steps with AdamW under autocast; a backward pass counts as two forward ones."""
        for images, dtype in ((8, HALF), (16, HALF), (32, HALF), (8, torch.float16)):
            if self.left() < 15:
                return
            step = self._training_step(images, dtype)
            torch.cuda.reset_peak_memory_stats()
            seconds = median_seconds(step, rounds=5, warm_up=2)
            memory = round(torch.cuda.max_memory_allocated() / 2**30, 2)
            say(part="training", dtype=str(dtype), **self.speed(seconds, images, factor=3), gib=memory)

    def _training_step(self, images: int, dtype: torch.dtype, optimize: bool = True) -> Callable[[], None]:
        model, batch = self.on_gpu(torch.float32).train(), make_batch(images, labelled=True)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-5, fused=True)
        scaler = torch.amp.GradScaler(enabled=dtype == torch.float16)

        def step() -> None:
            with torch.autocast("cuda", dtype):
                loss = model(**batch).loss
            scaler.scale(loss).backward()
            if optimize:
                scaler.step(optimizer)
                scaler.update()
            optimizer.zero_grad(set_to_none=True)

        return step

    def profile_a_step(self) -> None:
        """The costliest kernels of a training step."""
        step = self._training_step(16, HALF, optimize=False)
        step()
        step()
        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiled:
            step()
            torch.cuda.synchronize()
        rows = sorted(profiled.key_averages(), key=lambda row: -row.self_device_time_total)
        total = sum(row.self_device_time_total for row in rows)
        kernels = [(row.key[:60], round(row.self_device_time_total / total, 3), row.count) for row in rows[:12]]
        say(part="profile", milliseconds=round(total / 1000, 1), kernels=kernels)

    def synchronise_batch_norm(self) -> None:
        """SyncBatchNorm under DistributedDataParallel with a single process."""
        self._join()
        config = CrossVLTConfig.from_size("tiny")
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(CrossVLTModel(config)).cuda().train()
        parallel = torch.nn.parallel.DistributedDataParallel(model, device_ids=[0])
        parallel(**make_batch(4, side=224, labelled=True)).loss.backward()
        missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
        say(part="SyncBatchNorm", without_gradient=missing)
        destroy_process_group()

    def shard(self) -> None:
        """FSDP2 with a single process: the loss falls."""
        self._join()
        model = CrossVLTModel(CrossVLTConfig.from_size("tiny")).cuda().train()
        for module in list(model.modules()):
            if type(module).__name__ in model._no_split_modules:
                fully_shard(module)
        fully_shard(model)
        optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-3), []
        batch = make_batch(4, side=224, labelled=True)
        for _ in range(8):
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss))
        say(part="FSDP2", first=losses[0], last=losses[-1])
        destroy_process_group()

    @staticmethod
    def _join() -> None:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511", "RANK": "0", "WORLD_SIZE": "1"}
        init_process_group("nccl")

    @torch.no_grad()
    def compile(self) -> None:
        """`torch.compile`; the first call takes a minute or more."""
        if self.left() < 120:
            say(part="compile", skipped="needs two minutes")
            return
        compiled = torch.compile(self.on_gpu(), dynamic=False)
        for images in (1, 16):
            batch = make_batch(images)
            seconds = median_seconds(lambda b=batch: compiled(**b))
            say(part="compile", **self.speed(seconds, images))


def main() -> None:
    """Run the checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300, help="for all parts together (%(default)s)")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("gpu_checks.py needs a CUDA GPU.")
    Checks(arguments.seconds).run()


if __name__ == "__main__":
    main()
