"""Load checkpoints strictly, convert the authors', start from a Swin and a BERT, and add words to a vocabulary."""

import lazy_loader


__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # the names: __init__.pyi
