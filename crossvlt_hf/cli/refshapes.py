"""`crossvlt refshapes`: write scenes of RefShapes as a folder that `load_folder` reads."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from ..data.refshapes.families import Split, check_counterparts, check_counts, check_scene, order_families
from ..system import read_number
from .common import Command, Png, check_png, needs_extra
from .outputs import make_room, save_picture


SHEET = "contact sheet"  # the kind of output file
Language = Literal["en", "de", "zh"]


@dataclass(frozen=True)
class Refshapes(Command):
    """Write drawn scenes with expressions and masks.

    Args:
        output: A new folder.
        scenes: Number of scenes.
        expressions: Expressions per scene, each with another target.
        split: Split of RefShapes.
        side: Side of the images, in pixels.
        seed: Seed of the scenes.
        family: Family of all expressions: attribute, absolute, relation, ordinal, superlative, negation, plural,
            no_target, two_hop, or a kind of no_target, such as no_target_relation. By default the first six take
            turns, except in splits of one family.
        families: Families of the expressions, with their shares, instead of --family.
        objects: Fewest and most objects per scene.
        language: Language of the expressions; scenes and targets are the same in all.
        counterparts: In place of the other expressions of a scene, make those from which the ones without a target
            differ in one word.
        sheet: Draw a contact sheet of the first 36 scenes.
    """

    RENAMED = {"count": "objects"}

    output: Positional[Annotated[str, arg(metavar="OUT_DIR")]]
    scenes: int = 100
    expressions: int = 1
    split: Split = "train"
    side: int = 96
    seed: int = 0
    family: Annotated[str | None, arg(metavar="NAME")] = None
    families: Annotated[tuple[str, ...] | None, arg(metavar="NAME[=SHARE] ...")] = None
    objects: Annotated[tuple[int, int], arg(metavar="FEWEST MOST")] = (3, 6)
    language: Language = "en"
    counterparts: bool = False
    sheet: Png = None

    def check(self) -> None:
        """Check that numbers are in range, the families with their shares, and the name of the contact sheet."""
        check_counts(self.scenes, self.expressions, self.family)
        check_counterparts(self.counterparts, self.expressions)
        check_scene(0, self.side, self.seed, self.objects)
        order_families(self.split, self.family, self.shares(), self.counterparts)
        check_png("sheet", self.sheet)

    def shares(self) -> dict[str, float] | None:
        """The families with their shares."""
        return None if self.families is None else parse_families(self.families)


def parse_families(settings: Sequence[str]) -> dict[str, float]:
    """Parse `name` or `name=share` settings.

    Raises:
        ValueError: if a share is not a number, or a family is named twice.
    """
    shares: dict[str, float] = {}
    for setting in settings:
        name, equals, share = setting.partition("=")
        if name in shares:
            raise ValueError(f"`--families` has {name!r} twice; give each family once.")
        try:
            shares[name] = read_number(float, share) if equals else 1.0
        except ValueError as error:
            raise ValueError(f"`--families` must be names or name=share with a number, got {setting!r}.") from error
    return shares


def refshapes(options: Refshapes) -> None:
    """Write the folder and, on request, the contact sheet."""
    with needs_extra("train"):
        from ..data import write_folder
        from ..data.refshapes.dataset import load_refshapes
        from ..processing_crossvlt import counted

    make_room(options.sheet, SHEET)
    dataset = load_refshapes(
        options.split,
        scenes=options.scenes,
        expressions=options.expressions,
        family=options.family,
        families=options.shares(),
        side=options.side,
        seed=options.seed,
        count=options.objects,
        language=options.language,
        counterparts=options.counterparts,
    )
    write_folder((dataset[index] for index in range(len(dataset))), options.output)
    print(f"{counted(options.scenes, 'scene')} written to {options.output}", file=sys.stderr)
    if options.sheet:
        _draw_sheet(options, Path(options.sheet))


def _draw_sheet(options: Refshapes, path: Path) -> None:
    from ..data.refshapes import contact_sheet
    from ..data.refshapes.dataset import read_scene, settle_families

    said = settle_families(options.split, options.family, options.shares(), options.counterparts)
    same = (options.side, options.seed, options.expressions, said, *options.objects, options.language)
    scenes = (read_scene(options.split, index, *same) for index in range(min(options.scenes, 36)))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_picture(contact_sheet([example for scene in scenes for example in scene]), path, SHEET)
    print(f"The contact sheet is in {path}", file=sys.stderr)
