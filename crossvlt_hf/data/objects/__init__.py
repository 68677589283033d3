"""From labelled objects to referring expressions: readers of labels, the engine, and composed pictures.

`load_objects` reads labels in the forms that people have (COCO, YOLO, LabelMe, Pascal VOC, any data set of `datasets`)
as an `ObjectSource` of pictures with objects. `describe` measures them, `make_expressions` says what is true of them,
`write_references` and `expressions_dataset` do so for a whole source. `Composer` pastes cut-outs into new scenes.

Names are imported when they are asked for: the engine and the composer need numpy and Pillow only, all else the extra
`train`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .attributes import DescribedObject, describe
    from .composed import load_compositions
    from .composition import Background, ComposedScene, Composer, CutOut, cut_out
    from .cutouts import backgrounds_of, cutouts_of, load_backgrounds, load_cutouts
    from .expressions import FAMILIES, Expression, make_expressions
    from .load import FORMS, load_objects
    from .record import ObjectRecord, ObjectScene, ObjectSource
    from .references import ReferOptions, Report, expressions_dataset, refer, write_references


_MODULES = {
    "FAMILIES": "expressions",
    "FORMS": "load",
    "Background": "composition",
    "ComposedScene": "composition",
    "Composer": "composition",
    "CutOut": "composition",
    "DescribedObject": "attributes",
    "Expression": "expressions",
    "ObjectRecord": "record",
    "ObjectScene": "record",
    "ObjectSource": "record",
    "ReferOptions": "references",
    "Report": "references",
    "backgrounds_of": "cutouts",
    "cut_out": "composition",
    "cutouts_of": "cutouts",
    "describe": "attributes",
    "expressions_dataset": "references",
    "load_backgrounds": "cutouts",
    "load_compositions": "composed",
    "load_cutouts": "cutouts",
    "load_objects": "load",
    "make_expressions": "expressions",
    "refer": "references",
    "write_references": "references",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})


__all__ = [
    "FAMILIES",
    "FORMS",
    "Background",
    "ComposedScene",
    "Composer",
    "CutOut",
    "DescribedObject",
    "Expression",
    "ObjectRecord",
    "ObjectScene",
    "ObjectSource",
    "ReferOptions",
    "Report",
    "backgrounds_of",
    "cut_out",
    "cutouts_of",
    "describe",
    "expressions_dataset",
    "load_backgrounds",
    "load_compositions",
    "load_cutouts",
    "load_objects",
    "make_expressions",
    "refer",
    "write_references",
]
