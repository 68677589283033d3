"""Referring expressions for labelled objects: readers of labels, the engine, and composed images.

`load_objects` reads COCO, YOLO, LabelMe, Pascal VOC or a data set of `datasets` as an `ObjectSource`: images with
labelled objects. `describe` measures the objects, `make_expressions` makes expressions for them; `write_references`
and `expressions_dataset` do both for all images of a source. `Composer` pastes cut-outs into new scenes.

Names are imported on first use: the engine and the composer need only numpy and Pillow, everything else the extra
`train`.
"""

import lazy_loader


__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # the names: __init__.pyi
