"""What others get: the facts of a checkpoint, its card, its repository on the Hub, its exports, its page."""

import lazy_loader


__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # the names: __init__.pyi
