"""Publish a checkpoint: facts, model card, repository on the Hub, exports, page for the browser."""

import lazy_loader


__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # the names: __init__.pyi
