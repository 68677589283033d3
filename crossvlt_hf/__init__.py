"""CrossVLT for Hugging Face Transformers: referring image segmentation.

Importing the package registers its classes, so that `AutoConfig`, `AutoModel`, `AutoModelForSemanticSegmentation`,
`AutoProcessor` and `pipeline("referring-image-segmentation")` know them. Without a model the pipeline takes a small
one that comes with the package and knows some 500 words, for everyday things in photographs and for drawn shapes.
"""

from typing import Any

import lazy_loader

from .registration import register


_lazy, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # the names: __init__.pyi


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version(__name__)
    return _lazy(name)


register()
