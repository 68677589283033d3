"""The machine: what it is, and what it can do at best."""

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
    """A computation that a machine does as fast as it can do any.

    Args:
        kind: "matrix product" or "3x3 convolution".
        device: on which it runs.
        dtype: of its operands.
    """

    kind: str
    device: str
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Side of the square matrices, or images, channels, height and width of the convolution's input."""
        small = torch.device(self.device).type == "cpu"  # a GPU needs more to be busy
        if self.kind == "matrix product":
            return (2048,) if small else (8192,)
        return (1 if small else 8, 512, 120, 120)  # that of the base model's decoder at 480 px

    @property
    def flops(self) -> int:
        """A multiplication and an addition as two."""
        if self.kind == "matrix product":
            return 2 * self.shape[0] ** 3
        images, channels, height, width = self.shape
        return 2 * 9 * channels**2 * images * height * width

    def work(self) -> Work:
        """The computation, ready to run."""
        return Work(self._step(), torch.device(self.device))

    def _step(self) -> Callable[[], Any]:
        options: dict[str, Any] = {"device": self.device, "dtype": getattr(torch, self.dtype)}
        if self.kind == "matrix product":
            left, right = (torch.ones(self.shape * 2, **options) for _ in range(2))
            return lambda: left @ right
        pixels = torch.ones(self.shape, **options)
        kernel = torch.ones(self.shape[1], self.shape[1], 3, 3, **options)
        return lambda: F.conv2d(pixels, kernel, padding=1)


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
    """Bytes of main memory that a process can still get; None where the system does not tell."""
    return read_bytes(MEMINFO, "MemAvailable")


def read_bytes(path: Path, name: str) -> int | None:
    """An amount of memory in a file of Linux' /proc, in bytes; None where the system has no such entry."""
    try:
        match = re.search(rf"^{name}:\s+(\d+) kB", path.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) * 1024 if match else None
