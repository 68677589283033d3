"""Interleaved timing, robust to load changes: each round runs all works once.

If the machine is slow for a while (other processes, heat), all works are, and their ratios stay the same.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Work:
    """A function to time.

    Args:
        step: the function.
        device: on which it runs.
        repeats: runs that are timed together.
    """

    step: Callable[[], Any]
    device: torch.device
    repeats: int = 1

    def lasting(self, seconds: float) -> "Work":
        """The same work with as many repeats as take this long. Processors are faster in short bursts."""
        self.step()
        shortest = max(min(self.seconds() for _ in range(3)), 1e-9)  # the others were disturbed
        return replace(self, repeats=max(1, math.ceil(seconds / shortest)))

    def seconds(self) -> float:
        """Time one run, until the device has finished: the mean of the repeats."""
        if self.device.type == "cuda":
            return self._seconds_by_events()
        self._wait()
        start = time.perf_counter()
        self._run()
        self._wait()
        return (time.perf_counter() - start) / self.repeats

    def _run(self) -> None:
        for _ in range(self.repeats):
            self.step()

    def _seconds_by_events(self) -> float:
        """Time one run by the clock of the GPU."""
        with torch.cuda.device(self.device):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            start.record()
            self._run()
            end.record()
            torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000 / self.repeats

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)


def interleave(
    works: Mapping[Any, Work], rounds: int, report: Callable[[int], Any] | None = None
) -> dict[Any, list[float]]:
    """Time works interleaved: each once in every round, in order.

    Args:
        works: by name, warmed up.
        rounds: number of rounds.
        report: called after every round with its number, from 1.

    Returns:
        The seconds of all rounds, by name.
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
    """Median over the rounds of the ratio to the base in the same round."""
    return float(np.median(np.asarray(samples, dtype=float) / np.asarray(base, dtype=float)))
