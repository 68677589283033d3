"""From labelled objects to referring expressions: readers of labels, the engine, and composed pictures.

`load_objects` reads labels in the forms that people have (COCO, YOLO, LabelMe, Pascal VOC, any data set of `datasets`)
as an `ObjectSource` of pictures with objects. `describe` measures them, `make_expressions` says what is true of them,
`write_references` and `expressions_dataset` do so for a whole source. `Composer` pastes cut-outs into new scenes.

Names are imported when they are asked for: the engine and the composer need numpy and Pillow only, all else the extra
`train`.
"""

import lazy_loader


__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # the names: __init__.pyi
