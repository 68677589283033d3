"""Measure size, speed and memory of models (`crossvlt benchmark`), and count their operations."""

import lazy_loader


__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # the names: __init__.pyi
