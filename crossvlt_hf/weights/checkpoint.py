"""Load checkpoints strictly: missing, unexpected and mismatched weights are errors.

A folder is checked before a checkpoint is written to it.
"""

import json
import platform
from collections.abc import Mapping
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import find_adapter_config_file

from ..configuration_crossvlt import CHECKPOINT_FILES, DEFAULT_CHECKPOINT, CrossVLTConfig, find_named
from ..modeling_crossvlt import CrossVLTModel
from ..processing_crossvlt import CrossVLTProcessor, counted
from ..system import some_names
from .names import check_source


BUILT_IN_NOTE = (
    "the built-in checkpoint is used. It is small and was trained on rule-made expressions of 537 words, for "
    "photographs of rooms, people and clothing, kitchen and bathroom things, food and products, and for drawn shapes; "
    "its masks for other things are meaningless."
)


# Also those that the Hub, git and Python add
OWN_FILES = (*CHECKPOINT_FILES, ".*", "__pycache__")


def resolve_checkpoint(source: str | Path | None) -> str | Path:
    """The folder of the built-in checkpoint for "built-in" or None; other folders and Hub ids unchanged.

    A folder with the name built-in is given as "./built-in".
    """
    return DEFAULT_CHECKPOINT if source is None else find_named(source)


def parse_device(name: str) -> torch.device:
    """Make a device from its name, and check that it works.

    Raises:
        ValueError: if the device cannot be used on this machine.
    """
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()
    except Exception as error:  # each backend raises other errors
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"The device {name!r} cannot be used here: {reason}") from error
    return device


def describe_hardware(device: torch.device, processes: int = 1) -> str:
    """Describe the hardware of a run in words."""
    if device.type == "cuda":
        return f"{processes} x {torch.cuda.get_device_name(device)}"
    threads = torch.get_num_threads()
    cores = f"{threads} CPU thread{'s' if threads > 1 else ''} ({platform.machine()})"
    return cores if processes == 1 else f"{processes} processes of {cores}"


def _run_around(folder: Path) -> Path | None:
    """The folder of the training run that this is, or is a state of; None if it is none."""
    candidates = (folder, folder.parent, folder.parent.parent)
    return next(
        (each for each in candidates if (each / "checkpoints").is_dir() and (each / "config.yaml").is_file()), None
    )


def _load(source: str | Path, dtype: str) -> tuple[CrossVLTModel, dict[str, Any], CrossVLTProcessor]:
    model_type = CrossVLTConfig.get_config_dict(source)[0].get("model_type")  # first, since it fails early
    if model_type is None and (inside := _checkpoints_in(Path(source))):
        raise ValueError(f"{source} is no checkpoint; give one of those that are in it: {some_names(inside, 5)}.")
    if model_type is None and (run := _run_around(Path(source))) is not None:
        raise ValueError(f"{source} belongs to a run without weights so far; train it further with --resume: {run}.")
    if model_type != CrossVLTConfig.model_type:
        raise ValueError(f"{source} must be a checkpoint of type 'crossvlt', got one of type {model_type!r}.")
    loaded: Any = CrossVLTModel.from_pretrained(
        source, dtype=dtype, ignore_mismatched_sizes=True, output_loading_info=True
    )
    return *loaded, CrossVLTProcessor.from_pretrained(source)


def _checkpoints_in(folder: Path) -> list[str]:
    """The folders in a folder that have an adapter (peft saves one with a name there) or a whole checkpoint."""
    found = {path.parent for path in folder.glob("*/adapter_config.json")}
    found |= {
        path.parent for path in folder.glob("*/config.json") if _model_type(path.parent) == CrossVLTConfig.model_type
    }
    return sorted(map(str, found))


def _adapter_config(source: str | Path) -> dict[str, Any] | None:
    """Read the config of an adapter that peft saved without its base model; None if there is a model or no adapter."""
    if CrossVLTConfig.get_config_dict(source)[0].get("model_type") is not None:
        return None
    file = find_adapter_config_file(str(source))
    return None if file is None else json.loads(Path(file).read_text(encoding="utf-8"))


def _load_adapter(
    source: str | Path, config: dict[str, Any], dtype: str
) -> tuple[CrossVLTModel, dict[str, Any], CrossVLTProcessor]:
    """Load the base model of an adapter, merge the adapter into it, and load the processor of either."""
    if find_spec("peft") is None:
        raise ValueError(f"{source} is an adapter, and loading it needs peft: pip install peft.")
    from peft import PeftConfig, PeftModel

    base = config.get("base_model_name_or_path")
    if not base:
        raise ValueError(f"The adapter in {source} does not name its base model (`base_model_name_or_path`).")
    try:
        check_source(base)
        model, info, processor = _load(resolve_checkpoint(base), dtype)
    except OSError as error:
        raise OSError(f"The base model of the adapter in {source} cannot be loaded. {error}") from error
    processor.score_calibration = None  # which is only valid for the weights of the base model
    adapted = PeftModel(model, PeftConfig.from_pretrained(str(source)))
    try:
        result = adapted.load_adapter(str(source), "default")
    except RuntimeError as error:  # with a line for every tensor that does not fit
        first, *others = [line.strip(" \t.") for line in str(error).splitlines()[1:]] or [str(error)]
        count = f" ({counted(1 + len(others), 'tensor')} in all)" if others else ""
        raise ValueError(f"The adapter in {source} does not fit its base model {base}: {first}{count}") from error
    for kind in ("missing_keys", "unexpected_keys"):
        info[kind] = {*info[kind], *getattr(result, kind)}
    merged: Any = adapted.merge_and_unload(safe_merge=True)
    own_processor = Path(source, "processor_config.json").is_file()
    return merged, info, CrossVLTProcessor.from_pretrained(source) if own_processor else processor


def _check(source: str | Path, info: dict[str, Any], model: CrossVLTModel, processor: CrossVLTProcessor) -> None:
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
    problems = {kind.replace("_", " "): sorted(map(str, info[kind])) for kind in kinds if info[kind]}
    if problems:
        lists = "; ".join(f"{kind}: {', '.join(keys[:4])}" for kind, keys in problems.items())
        raise ValueError(f"The weights in {source} do not fit its config ({lists}).")
    tokens, vocab_size = len(processor.tokenizer), model.config.text_config.vocab_size
    if tokens > vocab_size:
        raise ValueError(f"The tokenizer in {source} has {tokens} tokens, but the model only {vocab_size}.")


def load_checkpoint(
    source: str | Path | None, *, device: str = "cpu", dtype: str = "auto"
) -> tuple[CrossVLTModel, CrossVLTProcessor]:
    """Load a model and its processor, for inference.

    Args:
        source: a folder, a Hub id, or "built-in" (or None) for the checkpoint of this package. The checkpoint has a
            model, or an adapter that peft saved, which is merged into its base model.
        device: of the model.
        dtype: "float32", "bfloat16", "float16", or "auto" for that of the file.

    Raises:
        OSError: if there is no checkpoint, or it cannot be read.
        ValueError: if weights are missing, unexpected or do not fit the config, the device cannot be used, or an
            adapter needs peft, which is not installed.
    """
    target, source = parse_device(device), resolve_checkpoint(source)
    check_source(source)
    try:
        adapter = _adapter_config(source)
        loaded = _load(source, dtype) if adapter is None else _load_adapter(source, adapter, dtype)
    except (OSError, ValueError):
        raise
    except Exception as error:  # of any kind, for damaged files
        raise OSError(f"{source} is damaged or incomplete. {type(error).__name__}: {error}") from error
    model, info, processor = loaded
    _check(source, info, model, processor)
    return model.to(target).eval(), processor


def check_checkpoint_folder(
    folder: str | Path, weights: Mapping[str, Tensor], *, overwrite: bool = False, alone: bool = True
) -> None:
    """Raise an error if writing a checkpoint to a folder would destroy another one.

    Args:
        folder: must be new or empty, or hold this checkpoint.
        weights: state dict of the checkpoint.
        overwrite: allow other contents.
        alone: also refuse files that do not belong to a checkpoint, because the folder is uploaded as a whole.

    Raises:
        FileExistsError: if it is a file.
        ValueError: if it holds something else and `overwrite` is False.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; give a folder.")
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if overwrite or all(name.startswith(".") for name in names):
        return
    kind = _model_type(folder)
    advice = "give a new folder, or allow it with --overwrite (in Python overwrite=True)"
    if kind != CrossVLTConfig.model_type and (alone or kind is not None):
        raise ValueError(f"{folder} is not empty, and no folder of a CrossVLT; {advice}.")
    others = [name for name in names if not any(fnmatch(name, own) for own in OWN_FILES)]
    if alone and others:
        raise ValueError(f"{folder} holds {others[0]}, which does not belong to a checkpoint; {advice}.")
    if kind is not None and not _has_weights(folder, weights):
        raise ValueError(f"{folder} holds a checkpoint with other weights; {advice}.")


def _model_type(folder: Path) -> str | None:
    """The model type in the config of a folder; None if there is no config, "" if it cannot be read."""
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type", ""))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError):  # damaged, but not ours to replace
        return ""


def _has_weights(folder: Path, weights: Mapping[str, Tensor]) -> bool:
    """Whether a folder has exactly these weights, or none."""
    found: set[str] = set()
    files = sorted(folder.glob("*.safetensors"))
    try:
        for path in files:
            with safe_open(path, "pt") as file:
                for name in sorted(file.keys()):
                    if name not in weights or not _same(file.get_tensor(name), weights[name]):
                        return False
                    found.add(name)
    except SafetensorError:  # damaged
        return False
    return not files or found == set(weights)


def _same(kept: Tensor, new: Tensor) -> bool:
    """Whether a tensor in a file equals a new one, which may be of higher precision."""
    return kept.shape == new.shape and torch.equal(kept, new.detach().cpu().to(kept.dtype))
