"""Measure peak memory, in one subprocess per case, above that of the interpreter and libraries."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import torch

from .machine import read_bytes


STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident() -> int:
    """Main memory of this process in bytes; its peak if the current value is unknown."""
    return read_bytes(STATUS, "VmRSS") or _highest_ever()


def held() -> int:
    """Main memory of this process and of those that `multiprocessing` started in it, in bytes.

    On Linux without files, which other processes may share: libraries would grow whenever one of those ends. A page
    that several of these processes share counts once. Elsewhere it is that of this process, as `resident`.
    """
    processes = [os.getpid(), *(child.pid for child in active_children())]
    tables = [Path(f"/proc/{process}/smaps_rollup") for process in processes]
    shares = [read_bytes(table, name) for table in tables for name in ("Pss_Anon", "Pss_Shmem")]
    return sum(share or 0 for share in shares) or resident()


def reset_peak(device: torch.device | None = None) -> bool:
    """Reset the peak.

    Returns:
        Whether it worked; otherwise the peak of main memory is that since the start of the process.
    """
    if device is not None and device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        CLEAR.write_text("5")  # Linux: reset VmHWM
    except OSError:
        return False
    return True


def peak() -> int:
    """Peak of main memory of this process since `reset_peak`, in bytes."""
    return read_bytes(STATUS, "VmHWM") or _highest_ever()


def _highest_ever() -> int:
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure_device(step: Callable[[], Any], device: torch.device, times: int = 2) -> int:
    """Measure peak memory during a step.

    Args:
        step: function to run, twice by default, since an optimizer allocates its state in the first step.
        device: for "cuda" the memory that PyTorch allocated on it, otherwise main memory.
        times: number of runs.

    Returns:
        Peak memory in bytes.
    """
    reset_peak(device)
    for _ in range(times):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    return peak()


def environment() -> dict[str, str]:
    """The environment of a child process."""
    # The package may have been imported from a folder, without installation
    paths = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": paths}


class ChildError(RuntimeError):
    """A child process failed."""


def in_child(job: dict[str, Any]) -> dict[str, Any]:
    """Run a job of `crossvlt_hf.benchmark.child` in a new process.

    Raises:
        ChildError: with the reason, also if the system killed the process.
    """
    command, request = [sys.executable, "-m", "crossvlt_hf.benchmark.child"], json.dumps(job)
    # Otherwise glibc keeps freed memory, and the peak would include what is not in use
    variables = {**environment(), "MALLOC_MMAP_THRESHOLD_": "262144"}
    done = subprocess.run(command, input=request, capture_output=True, text=True, env=variables, check=False)
    if done.returncode == -signal.SIGKILL:
        raise ChildError("The system killed the process, probably because it was out of memory.")
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise ChildError(f"The process failed: {lines[-1] if lines else f'exit code {done.returncode}'}")
    answer = json.loads(done.stdout.splitlines()[-1])
    if "error" in answer:
        raise ChildError(answer["error"])
    return answer
