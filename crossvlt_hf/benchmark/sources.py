"""Open checkpoints: a size with random weights, a folder, a Hub id, or the built-in checkpoint."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from huggingface_hub import snapshot_download

from ..configuration_crossvlt import SIZES, CrossVLTConfig
from ..modeling_crossvlt import CrossVLTModel
from ..processing_crossvlt import CrossVLTProcessor
from ..weights.checkpoint import resolve_checkpoint
from ..weights.names import check_source
from ..weights.vocabulary import default_tokenizer


@dataclass(frozen=True)
class Source:
    """A checkpoint on disk.

    Args:
        name: as the user gave it.
        folders: by dtype. Random weights are saved in each dtype.
        config: of the model.
        size: height and width to which its processor resizes images.
        random: whether the weights are random.
    """

    name: str
    folders: Mapping[str, Path]
    config: CrossVLTConfig
    size: tuple[int, int]
    random: bool


@contextmanager
def open_sources(names: Sequence[str], seed: int, dtypes: Sequence[str] = ("float32",)) -> Iterator[dict[str, Source]]:
    """Download checkpoints, or make temporary ones with random weights.

    Args:
        names: "built-in", "tiny", "small", "base", "large", folders, or Hub ids.
        seed: of random weights.
        dtypes: for the folders of each source.

    Yields:
        The source of every name.

    Raises:
        OSError: if there is no such checkpoint.
        ValueError: if it is not a CrossVLT checkpoint.
    """
    given = [name for name in names if name not in SIZES]
    found = {name: _open_given(name, dtypes) for name in given}  # first, since it fails early
    with TemporaryDirectory() as folder:
        sizes = [name for name in dict.fromkeys(names) if name in SIZES]
        found |= {name: _make(name, Path(folder) / name, seed, dtypes) for name in sizes}
        yield {name: found[name] for name in names}


def _open_given(name: str, dtypes: Sequence[str]) -> Source:
    if Path(resolve_checkpoint(name)).is_dir():
        folder = Path(resolve_checkpoint(name))
    else:
        check_source(name)
        folder = Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt"]))
    model_type = CrossVLTConfig.get_config_dict(folder)[0].get("model_type")
    if model_type != CrossVLTConfig.model_type:
        raise ValueError(f"{name} must be a checkpoint of type 'crossvlt' or a size, got one of type {model_type!r}.")
    size = CrossVLTProcessor.from_pretrained(folder).image_size
    config = CrossVLTConfig.from_pretrained(folder)
    return Source(name, dict.fromkeys(dtypes, folder), config, size, random=False)


def _make(name: str, folder: Path, seed: int, dtypes: Sequence[str]) -> Source:
    """Save a model with random weights, so that it loads like a trained one."""
    torch.manual_seed(seed)
    model = CrossVLTModel(CrossVLTConfig.from_size(name))
    processor = CrossVLTProcessor.from_tokenizer(default_tokenizer())
    folders = {
        dtype: folder / dtype for dtype in sorted(dtypes, key="float32".__ne__)
    }  # float32 first, before weights are rounded
    for dtype, target in folders.items():
        model.to(getattr(torch, dtype)).save_pretrained(target)
        processor.save_pretrained(target)
    return Source(name, folders, model.config, processor.image_size, random=True)
