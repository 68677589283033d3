"""`crossvlt refshapes`: scenes of RefShapes as a folder in the format of the user's own data."""

import argparse
import sys
from pathlib import Path
from typing import Any

from ..data.refshapes import EXTRAS, FAMILIES, SPLITS, contact_sheet
from ..processing_crossvlt import counted
from ..training.settings import integer, number
from .extras import needs_extra


def parse_families(settings: list[str]) -> dict[str, float]:
    """`name` or `name=share` settings.

    Raises:
        ValueError: if a share is no number, or a family is named twice.
    """
    shares: dict[str, float] = {}
    for setting in settings:
        name, equals, share = setting.partition("=")
        if name in shares:
            raise ValueError(f"--families names {name!r} twice; give each family once.")
        try:
            shares[name] = number(share) if equals else 1.0
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"--families has {setting!r}; give a name, or name=share with a number.") from error
    return shares


def write_scenes(arguments: argparse.Namespace) -> None:
    """Write the folder and, where asked for, the contact sheet."""
    with needs_extra("train"):
        from ..data import write_folder
        from ..data.refshapes.dataset import load_refshapes, read_scene, settle_families

    low, high = arguments.objects
    options = {"side": arguments.side, "seed": arguments.seed, "count": (low, high)}
    families = None if arguments.families is None else parse_families(arguments.families)
    dataset = load_refshapes(
        arguments.split,
        scenes=arguments.scenes,
        expressions=arguments.expressions,
        family=arguments.family,
        families=families,
        **options,
    )
    write_folder((dataset[index] for index in range(len(dataset))), arguments.output)
    print(f"{counted(arguments.scenes, 'scene')} written to {arguments.output}", file=sys.stderr)
    if arguments.sheet:
        said = settle_families(arguments.family, families)
        same = (arguments.side, arguments.seed, arguments.expressions, said, low, high)
        scenes = (read_scene(arguments.split, index, *same) for index in range(min(arguments.scenes, 36)))
        examples = [example for scene in scenes for example in scene]
        path = Path(arguments.sheet)
        path.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(examples).save(path)
        print(f"The contact sheet is in {path}", file=sys.stderr)


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser("refshapes", help="write drawn scenes with expressions and masks")
    command.add_argument("output", metavar="OUT_DIR", help="a new folder")
    command.add_argument("--scenes", type=integer, default=100, help="how many (%(default)s)")
    command.add_argument(
        "--expressions", type=integer, default=1, help="of each scene, of other objects (%(default)s)"
    )
    command.add_argument("--split", default="train", choices=SPLITS)
    command.add_argument("--side", type=integer, default=96, help="of a picture, in pixels (%(default)s)")
    command.add_argument("--seed", type=integer, default=0)
    command.add_argument("--family", choices=[*FAMILIES, *EXTRAS], help="of all expressions (default: six in turn)")
    command.add_argument(
        "--families",
        nargs="+",
        metavar="NAME[=SHARE]",
        help=f"of the expressions, in these shares: {', '.join([*FAMILIES, *EXTRAS])}",
    )
    command.add_argument("--objects", type=integer, nargs=2, default=(3, 6), metavar=("FEWEST", "MOST"))
    command.add_argument("--sheet", metavar="PNG", help="a contact sheet of the first 36 scenes")
    command.set_defaults(run=write_scenes)
