"""RefShapes: drawn scenes of shapes, and expressions that refer to exactly one of them; needs no files.

A scene is drawn with numpy and Pillow from a seed and an index. An expression is a small program (`Phrase`, `Query`)
that selects objects of the scene: it is used only if it selects the right number of them, and no object is so close to
a decision boundary (just left of, just larger than) that people would hesitate. Plurals have two to four targets; an
expression without a target differs in one word from one that refers to an object of the scene.

Programs are chosen without words; the grammar of a language (`LANGUAGES`) puts them into words. The same seed and
index therefore give the same scenes and meanings in all languages.

Lengths are relative to the side of the image; (x, y) has its origin at the top left.

Names are imported on first use.
"""

import lazy_loader


__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # the names: __init__.pyi
