"""Read files of weights safely, rename keys, and load state dicts strictly."""

import argparse
import pickle
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn


Rules = list[tuple[str, str]]

_NUMPY_SCALAR = np.float64(0).__reduce__()[0]
# Plain data that training loops save beside the weights: their arguments, and scores as numbers of numpy
_PLAIN_GLOBALS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(name)) for name in ("bool", "int32", "int64", "float32", "float64")),
    *((_NUMPY_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),  # numpy 1 and 2
]


def _load_pickle(path: Path) -> Any:
    """`torch.load` for plain data only, memory-mapped if possible."""
    try:
        with torch.serialization.safe_globals(_PLAIN_GLOBALS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the protocol of the pickle
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # of any kind, for damaged zip archives and pickles
        # without the message of torch, which recommends to turn the protection off
        wanted = re.search(r"(?:GLOBAL|global|class) `?([\w.]+)", re.sub(r"\x1b\[[\d;]*m", "", str(error)))
        if isinstance(error, pickle.UnpicklingError) and wanted:
            raise ValueError(
                f"{path} is refused: it has `{wanted[1]}`, which is not plain data and could run code. Save the bare "
                "state dict in a program that you trust."
            ) from error
        if isinstance(error, pickle.UnpicklingError):
            raise ValueError(f"{path} is refused: it is not a PyTorch checkpoint of plain data.") from error
        raise ValueError(f"{path} is damaged or not a PyTorch checkpoint ({type(error).__name__}).") from error


def _is_plain(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and tensor.layout == torch.strided and tensor.device.type != "meta"


def _unwrap(checkpoint: Any, path: Path) -> dict[str, Tensor]:
    """Get the state dict from `{"model": ..., "args": ...}` or similar, without `module.` prefix."""
    for name in ("model", "state_dict", "model"):  # may be nested, in either order
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(name), Mapping):
            checkpoint = checkpoint[name]
    if not isinstance(checkpoint, Mapping) or len(checkpoint) == 0:
        what = "nothing" if isinstance(checkpoint, Mapping) else f"a {type(checkpoint).__name__}"
        raise ValueError(f"{path} must have a state dict, or a dict with one in `model`, got {what}.")
    state_dict = {str(key).removeprefix("module."): value for key, value in checkpoint.items()}
    counts = Counter(str(key).removeprefix("module.") for key in checkpoint)
    if twice := [key for key, count in counts.items() if count > 1]:
        raise ValueError(f"{path} must have {twice[0]!r} either with or without the prefix `module.`, not both.")
    if odd := [key for key, value in state_dict.items() if not _is_plain(value)]:
        raise ValueError(f"{path} must have a state dict of dense tensors, but {odd[0]!r} is none.")
    return state_dict


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the state dict in a PyTorch or safetensors file, on the CPU.

    Args:
        path: a `.pth`, `.pt` or `.bin` file with a state dict, which may be in `model` or `state_dict` and may have a
            `module.` prefix; or a `.safetensors` file.

    Returns:
        The tensors by key, without the `module.` prefix.

    Raises:
        OSError: if there is no such file.
        ValueError: if it is damaged, has no state dict, or has code (which is not run).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint file {path}.")
    if path.suffix != ".safetensors":
        return _unwrap(_load_pickle(path), path)
    try:
        return _unwrap(load_file(path), path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from error


def rename(key: str, rules: Rules) -> str | None:
    """Apply the first rule (pattern of the whole key, replacement) that matches; None if none does."""
    for pattern, replacement in rules:
        if match := re.fullmatch(pattern, key):
            return match.expand(replacement)
    return None


def _listing(keys: Iterable[str]) -> str:
    keys = sorted(keys)
    return ", ".join(keys[:8]) + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")


def load_strictly(model: nn.Module, state_dict: dict[str, Tensor], source: str) -> None:
    """Assign all tensors to parameters and buffers; keys and shapes must match.

    Args:
        model: it takes the tensors without a copy, and may be on the meta device.
        state_dict: tensors by the keys of the model.
        source: of the tensors, for the message.

    Raises:
        ValueError: lists the keys that do not match.
    """
    problems = _find_problems(model.state_dict(), state_dict)
    if any(problems.values()):
        lists = "; ".join(f"{name}: {_listing(keys)}" for name, keys in problems.items() if keys)
        raise ValueError(f"{source} does not fit the model ({lists}).")
    model.load_state_dict(state_dict, assign=True)


def _find_problems(own: dict[str, Tensor], given: dict[str, Tensor]) -> dict[str, Iterable[str]]:
    """The keys that do not match, by problem."""
    shared = own.keys() & given.keys()
    shapes = [
        f"{key} has shape {list(given[key].shape)} instead of {list(own[key].shape)}"
        for key in shared
        if own[key].shape != given[key].shape
    ]
    dtypes = [
        f"{key} has dtype {given[key].dtype}"
        for key in shared
        if own[key].is_floating_point() != given[key].is_floating_point()
    ]
    return {
        "missing keys": own.keys() - given.keys(),
        "unknown keys": given.keys() - own.keys(),
        "wrong shapes": shapes,
        "wrong dtypes": dtypes,
    }
