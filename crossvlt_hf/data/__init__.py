"""Data sets for training and evaluation.

Names are imported on first use: scenes of RefShapes need only numpy and Pillow, everything else the extra `train`.
"""

import lazy_loader


__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # the names: __init__.pyi
