"""Measure a model on a data set, calibrate its scores, and look at what it finds."""

import lazy_loader


__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # the names: __init__.pyi
