"""Do a job of a benchmark in a process of its own; input and output are JSON.

It measures the memory of a case or the loading of a checkpoint, exports networks, or compares them with torch.
"""

import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from ..modeling_crossvlt import CrossVLTModel
from ..processing_crossvlt import CrossVLTProcessor
from .backends import compare, drawn_pairs, export_networks
from .cases import Case
from .memory import measure_device, peak, reset_peak, resident
from .workloads import Workshop


def measure_case(job: dict[str, Any], before: int) -> dict[str, Any]:
    """Measure memory of the weights of a case, and peak memory of its steps."""
    case, device = Case.from_dict(job["case"]), torch.device(job["case"]["device"])
    workshop = Workshop(job["folders"], seed=job["seed"], optimizer=job["optimizer"])
    step = workshop.step(case)
    gc.collect()
    on_gpu = device.type == "cuda"
    held = torch.cuda.memory_allocated(device) if on_gpu else resident() - before
    resettable = reset_peak()
    highest = measure_device(step, device)
    return {
        "kind": "allocated by PyTorch" if on_gpu else "resident set of a process",
        "interpreter_bytes": before,
        "weights_bytes": workshop.weights_bytes(case),
        "loaded_bytes": held,
        "peak_bytes": highest if on_gpu else highest - before,
        "peak_reset": resettable,
    }


def measure_loading(job: dict[str, Any], before: int) -> dict[str, Any]:
    """Time `from_pretrained` and reading the file, interleaved, and measure peak memory of the first loading."""
    folder, dtype, device = Path(job["folder"]), job["dtype"], job["device"]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError("The folder must have a .safetensors file to time its reading.")

    def load() -> PreTrainedModel:
        return CrossVLTModel.from_pretrained(folder, dtype=dtype).to(device)

    reset_peak()
    first, model = _timed(load)
    found = {
        "file_bytes": sum(file.stat().st_size for file in files),
        "first_seconds": first,
        "interpreter_bytes": before,
        "loaded_bytes": resident() - before,
        "peak_bytes": peak() - before,
    }
    del model
    loading, reading = [], []
    for _ in range(job["rounds"]):
        reading.append(_timed(lambda: [len(file.read_bytes()) for file in files])[0])
        loading.append(_timed(load)[0])
        gc.collect()
    return {**found, "load_seconds": loading, "read_seconds": reading}


def export(job: dict[str, Any], _: int) -> dict[str, Any]:
    """Export a checkpoint: see `export_networks`."""
    return {"files": export_networks(job["source"], job["folder"], job["dtypes"])}


def measure_agreement(job: dict[str, Any], _: int) -> dict[str, Any]:
    """Compare exported networks of one model and image size with the model in float32, on drawn scenes."""
    cases = [Case.from_dict(case) for case in job["cases"]]
    workshop = Workshop(job["folders"], seed=job["seed"])
    model, size = cases[0].model, cases[0].size
    processor = CrossVLTProcessor.from_pretrained(job["folders"][model]["float32"])
    pairs = list(drawn_pairs(processor, size or processor.image_size, "test", job["pairs"]))
    reference = workshop.run(Case(model))
    expected = [reference(inputs) for inputs in pairs]
    runs = [workshop.run(case) for case in cases]
    return {"agreement": [compare([run(inputs) for inputs in pairs], expected) for run in runs]}


def _timed(do: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = do()
    return time.perf_counter() - start, result


JOBS = {"case": measure_case, "loading": measure_loading, "export": export, "agreement": measure_agreement}


def main() -> None:
    """Read the job from standard input, and print the result as one line of JSON."""
    before = resident()  # after the imports
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    job = json.load(sys.stdin)
    torch.set_num_threads(job["threads"])
    try:
        answer = JOBS[job["job"]](job, before)
    except Exception as error:  # of any kind: the parent continues with the next case
        answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    sys.stdout.write(f"\n{json.dumps(answer)}\n")


if __name__ == "__main__":
    main()
