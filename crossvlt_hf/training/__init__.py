"""Training with Accelerate: `crossvlt train CONFIG`, `accelerate launch -m crossvlt_hf train CONFIG`."""

import lazy_loader


__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # the names: __init__.pyi
