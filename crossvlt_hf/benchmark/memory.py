"""Peak memory, honestly: of a process of its own for each case, above what its interpreter and libraries take."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .machine import read_bytes


STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident() -> int:
    """Bytes of main memory that this process holds now; where the system does not tell, its peak."""
    return read_bytes(STATUS, "VmRSS") or _highest_ever()


def reset_peak(device: torch.device | None = None) -> bool:
    """Forget the peak so far.

    Returns:
        Whether that was possible; where not, the peak of main memory is that of the whole life of the process.
    """
    if device is not None and device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        CLEAR.write_text("5")  # Linux: the high-water mark becomes what is held now
    except OSError:
        return False
    return True


def peak() -> int:
    """Bytes of main memory that this process held at most since `reset_peak`."""
    return read_bytes(STATUS, "VmHWM") or _highest_ever()


def _highest_ever() -> int:
    import resource  # is not there on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure_device(step: Callable[[], Any], device: torch.device, times: int = 2) -> int:
    """Bytes that the device held at most during a step.

    Args:
        step: what to do; more than once, since an optimizer allocates its state in its first step.
        device: "cuda" counts what PyTorch allocated there, anything else is main memory.
        times: how often.
    """
    reset_peak(device)
    for _ in range(times):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    return peak()


class ChildError(RuntimeError):
    """A child process could not do what it should."""


def in_child(job: dict[str, Any]) -> dict[str, Any]:
    """Do a job of `crossvlt_hf.benchmark.child` in a new process.

    Raises:
        ChildError: with the reason, also if the system killed it.
    """
    command = [sys.executable, "-m", "crossvlt_hf.benchmark.child"]
    # Where this package was imported from a folder that is not installed, the child has to look there as well
    paths = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    # glibc would keep much of what is freed, as much as what is in use; so it goes back, and the peak is that of use
    environment = {**os.environ, "PYTHONPATH": paths, "MALLOC_MMAP_THRESHOLD_": "262144"}
    done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, env=environment, check=False)
    if done.returncode == -signal.SIGKILL:
        raise ChildError("The system killed its process, most likely for want of memory.")
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise ChildError(f"Its process failed: {lines[-1] if lines else f'exit code {done.returncode}'}")
    answer = json.loads(done.stdout.splitlines()[-1])
    if "error" in answer:
        raise ChildError(answer["error"])
    return answer
