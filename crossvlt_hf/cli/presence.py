"""The options `--presence-threshold` and `--largest-part` of several commands."""

import argparse

from ..training.settings import number


def presence_threshold(text: str) -> float | str | None:
    """What the option says: "auto", "none" or a number.

    Raises:
        argparse.ArgumentTypeError: if it is something else.
    """
    if text in ("auto", "none"):
        return None if text == "none" else text
    try:
        return number(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"must be auto, none or a number between 0 and 1, got {text!r}.") from error


def add_largest_part_option(command: argparse.ArgumentParser) -> None:
    """Add the option `--largest-part` to a command."""
    command.add_argument(
        "--largest-part",
        action="store_true",
        help="keep only the largest connected part of each mask; what is printed or written says how many there were",
    )


def add_presence_option(command: argparse.ArgumentParser) -> None:
    """Add the option to a command."""
    command.add_argument(
        "--presence-threshold",
        type=presence_threshold,
        default="auto",
        metavar="P",
        help="the mask is empty where something fits with a lower probability; auto is 0.5 for models with a presence "
        "head, none always draws (%(default)s)",
    )
