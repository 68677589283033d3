"""Run by `test_hub.py` in an environment without this package: every entry point of a published checkpoint.

python remote_round_trip.py IMAGE EXPRESSION MODEL_ID OUT_DIR [MODEL_ID OUT_DIR ...]

Each pair is a fork of this process, so that what one has loaded helps no other.
"""

import importlib.util
import multiprocessing
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoModelForSemanticSegmentation, AutoProcessor, pipeline
from transformers.utils import is_torchvision_available


def round_trip(image: str, expression: str, model_id: str, folder: str) -> None:
    Path(folder).mkdir()
    # The editable installation leaves a folder crossvlt_hf/assets there, which has no code and so no origin
    package = importlib.util.find_spec("crossvlt_hf")
    assert package is None or package.origin is None, "the package is importable"
    options = {"trust_remote_code": True, "revision": "main"}
    config = AutoConfig.from_pretrained(model_id, **options)
    assert type(config).__name__ == "CrossVLTConfig"
    assert type(config).__module__.startswith("transformers_modules")
    processor = AutoProcessor.from_pretrained(model_id, **options)
    inputs = processor(Image.open(image), expression, return_tensors="pt")
    masks = []
    for auto_class in (AutoModel, AutoModelForSemanticSegmentation):
        model = auto_class.from_pretrained(model_id, **options)
        with torch.no_grad():
            outputs = model(**inputs)
        (result,) = processor.post_process_masks(outputs, inputs["original_sizes"])
        masks.append(result["mask"].numpy())
    for task in ("referring-image-segmentation", None):
        segmenter = pipeline(task, model=model_id, **options)
        (result,) = segmenter(image, text=expression)
        masks.append(np.asarray(result["mask"]) > 0)
    # what was loaded from a repository is saved as a whole one
    segmenter.save_pretrained(Path(folder) / "saved")
    np.savez(Path(folder) / "masks.npz", *masks, torchvision=is_torchvision_available())


if __name__ == "__main__":
    image, expression, *trips = sys.argv[1:]
    for model_id, folder in zip(trips[::2], trips[1::2], strict=True):
        process = multiprocessing.get_context("fork").Process(
            target=round_trip, args=(image, expression, model_id, folder)
        )
        process.start()
        process.join()
        if process.exitcode:
            sys.exit(process.exitcode)
