"""Timing that the machine's mood cannot bend: all works of a run take turns, round after round.

What slows a machine for a while (another process, heat) then slows all of them, and their ratios stay.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Work:
    """Something to time.

    Args:
        step: does it once.
        device: on which it runs.
    """

    step: Callable[[], Any]
    device: torch.device

    def seconds(self) -> float:
        """Do it once, and wait until the device has done it."""
        if self.device.type == "cuda":
            return self._seconds_by_events()
        self._wait()
        start = time.perf_counter()
        self.step()
        self._wait()
        return time.perf_counter() - start

    def _seconds_by_events(self) -> float:
        """On the GPU's own clock."""
        with torch.cuda.device(self.device):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            start.record()
            self.step()
            end.record()
            torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)


def interleave(
    works: Mapping[Any, Work], rounds: int, report: Callable[[int], Any] | None = None
) -> dict[Any, list[float]]:
    """Time the works in turns: each once in every round, in their order.

    Args:
        works: what to time, by name, each of them warm.
        rounds: how often.
        report: called after every round with its number, from 1.

    Returns:
        For every name the seconds of each round.
    """
    samples: dict[Any, list[float]] = {name: [] for name in works}
    for number in range(1, rounds + 1):
        for name, work in works.items():
            samples[name].append(work.seconds())
        if report is not None:
            report(number)
    return samples


def summarise(samples: Sequence[float]) -> dict[str, Any]:
    """Median, 90th percentile, extremes and the samples themselves, in seconds."""
    values = np.asarray(samples, dtype=float)
    return {
        "p50": float(np.median(values)),
        "p90": float(np.percentile(values, 90)),
        "minimum": float(values.min()),
        "maximum": float(values.max()),
        "samples": [round(float(value), 6) for value in values],
    }


def median_ratio(samples: Sequence[float], base: Sequence[float]) -> float:
    """Median over the rounds of what took so much longer than the base in the same round."""
    return float(np.median(np.asarray(samples, dtype=float) / np.asarray(base, dtype=float)))
