"""Evaluate a model on a data set, calibrate its scores, and draw its predictions."""

import lazy_loader


__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # the names: __init__.pyi
