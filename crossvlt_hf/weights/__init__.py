"""Weights: strict loading, the authors' checkpoints, any Swin with any BERT, new words for a checkpoint."""

import lazy_loader


__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # the names: __init__.pyi
