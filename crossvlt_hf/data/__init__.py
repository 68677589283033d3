"""Data sets for training and evaluation.

Names are imported when they are asked for: RefShapes' scenes need numpy and Pillow only, all else the extra `train`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .features import Mask, Picture
    from .folder import from_dataset, load_folder, write_folder
    from .hub import load_jxu124, load_refcoco_m
    from .loading import NAMES, exclude_images, load_data
    from .phrasecut import load_phrasecut
    from .records import FEATURES, Record, build_dataset, mask_to_image
    from .refer import load_refer, load_refer_folder
    from .refshapes import load_refshapes


_MODULES = {
    "FEATURES": "records",
    "Mask": "features",
    "NAMES": "loading",
    "Picture": "features",
    "Record": "records",
    "build_dataset": "records",
    "exclude_images": "loading",
    "from_dataset": "folder",
    "load_data": "loading",
    "load_folder": "folder",
    "load_jxu124": "hub",
    "load_phrasecut": "phrasecut",
    "load_refcoco_m": "hub",
    "load_refer": "refer",
    "load_refer_folder": "refer",
    "load_refshapes": "refshapes",
    "mask_to_image": "records",
    "write_folder": "folder",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})


__all__ = [
    "FEATURES",
    "NAMES",
    "Mask",
    "Picture",
    "Record",
    "build_dataset",
    "exclude_images",
    "from_dataset",
    "load_data",
    "load_folder",
    "load_jxu124",
    "load_phrasecut",
    "load_refcoco_m",
    "load_refer",
    "load_refer_folder",
    "load_refshapes",
    "mask_to_image",
    "write_folder",
]
