"""Describe the machine, and measure its peak performance."""

import os
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from .timing import Work


@dataclass(frozen=True)
class Probe:
    """A computation that reaches the peak performance of a machine.

    Args:
        kind: "matrix product" or "3x3 convolution".
        device: of the computation.
        dtype: of the operands.
    """

    kind: str
    device: str
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        """(side,) of square matrices, or (batch, channels, height, width) of the input of the convolution."""
        small = torch.device(self.device).type == "cpu"  # larger on a GPU, to use all of it
        if self.kind == "matrix product":
            return (2048,) if small else (8192,)
        return (1 if small else 8, 512, 120, 120)  # as in the decoder of the base model at 480 pixels

    @property
    def flops(self) -> int:
        """The number of operations; a multiplication and an addition are two."""
        if self.kind == "matrix product":
            return 2 * self.shape[0] ** 3
        images, channels, height, width = self.shape
        return 2 * 9 * channels**2 * images * height * width

    def work(self) -> Work:
        """Prepare the computation, to be timed for at least about a second on a CPU."""
        work = Work(self._step(), torch.device(self.device))
        return work.lasting(LONG) if work.device.type == "cpu" else work

    def _step(self) -> Callable[[], Any]:
        options: dict[str, Any] = {"device": self.device, "dtype": getattr(torch, self.dtype)}
        if self.kind == "matrix product":
            left, right = (torch.ones(self.shape * 2, **options) for _ in range(2))
            return lambda: left @ right
        pixels = torch.ones(self.shape, **options)
        kernel = torch.ones(self.shape[1], self.shape[1], 3, 3, **options)
        return lambda: F.conv2d(pixels, kernel, padding=1)


LONG = 1.0  # seconds
KINDS = ("matrix product", "3x3 convolution")
MEMINFO = Path("/proc/meminfo")


def describe_machine() -> dict[str, Any]:
    """Processor, threads, memory and GPUs, without the name of the host."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor_name(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": read_bytes(MEMINFO, "MemTotal"),
        "gpus": gpus,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


def _processor_name() -> str:
    try:
        match = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        match = None
    return match[1].strip() if match else platform.processor() or platform.machine()


def available_memory() -> int | None:
    """Free main memory in bytes; None if unknown."""
    return read_bytes(MEMINFO, "MemAvailable")


def read_bytes(path: Path, name: str) -> int | None:
    """Read an amount of memory from a file in /proc, in bytes; None if there is no such entry."""
    try:
        match = re.search(rf"^{name}:\s+(\d+) kB", path.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) * 1024 if match else None
