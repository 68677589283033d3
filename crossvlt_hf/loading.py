"""Loading a checkpoint strictly: what Transformers would silently re-initialise is an error here."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from safetensors import SafetensorError

from .configuration_crossvlt import CrossVLTConfig
from .modeling_crossvlt import CrossVLTModel
from .processing_crossvlt import CrossVLTProcessor


def parse_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        ValueError: if there is no such device on this machine.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"The device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def load_checkpoint(
    source: str | Path, *, device: str = "cpu", dtype: str = "auto"
) -> tuple[CrossVLTModel, CrossVLTProcessor]:
    """Load a model and its processor, for inference.

    Args:
        source: a folder or a Hub id.
        device: where the model goes.
        dtype: "float32", "bfloat16", "float16", or "auto" for that of the file.

    Raises:
        OSError: if there is no checkpoint, or it cannot be read.
        ValueError: if weights are missing or do not fit the config, or the device or dtype does not exist.
    """
    target = parse_device(device)
    try:
        model_type = CrossVLTConfig.get_config_dict(source)[0].get("model_type")  # first, since it fails fastest
        if model_type != CrossVLTConfig.model_type:
            raise ValueError(f"{source} is a checkpoint of type {model_type!r}; give one of type 'crossvlt'.")
        loaded: Any = CrossVLTModel.from_pretrained(
            source, dtype=dtype, ignore_mismatched_sizes=True, output_loading_info=True
        )
        processor = CrossVLTProcessor.from_pretrained(source)
    except (HFValidationError, SafetensorError) as error:
        raise OSError(f"{source} is no checkpoint folder or Hub id, or it is damaged: {error}") from error
    except StrictDataclassError as error:
        raise ValueError(f"The config of {source} is not valid. {' '.join(str(error).split())}") from error
    model, info = loaded
    problems = {name: sorted(map(str, info[name])) for name in ("missing_keys", "mismatched_keys") if info[name]}
    if problems:
        lists = "; ".join(f"{name.replace('_', ' ')}: {', '.join(keys[:4])}" for name, keys in problems.items())
        raise ValueError(f"The weights in {source} do not fit its config ({lists}).")
    return model.to(target).eval(), processor
