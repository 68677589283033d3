"""What a model costs: `crossvlt benchmark`, its cases interleaved with the machine's own peak; operations counted."""

import lazy_loader


__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # the names: __init__.pyi
