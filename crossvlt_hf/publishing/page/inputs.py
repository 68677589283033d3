"""Check the inputs of a user: an image file and expressions, one per line.

The page shows the message of an `InputError`, so it must not contain texts of users or paths of the server.
"""

import re
from collections.abc import Sequence

from PIL import Image

from ...processing_crossvlt import ImageDepthError, ImageTooLargeError, is_damaged, opening, says_nothing, to_rgb


MAX_UPLOAD = 20 * 2**20  # bytes
MAX_PIXELS = 50_000_000
MAX_EXPRESSIONS = 8
MAX_LETTERS = 300


class InputError(ValueError):
    """An invalid input; the message is for the user."""


def _check_size(path: str) -> None:
    """Check the size in the header of a file, before pixels are decoded."""
    try:
        with opening("the upload"), Image.open(path) as header:
            too_large = header.width * header.height > MAX_PIXELS
    except ImageTooLargeError:
        too_large = True
    if too_large:
        raise InputError(f"The image is too large: the limit is {MAX_PIXELS // 10**6} million pixels.")


def read_image(path: str | None) -> Image.Image:
    """Read the upright RGB image in an uploaded file.

    Raises:
        InputError: if there is no file, or it is no image, or too large.
    """
    if path is None:
        raise InputError("There is no image yet: upload one, or pick an example.")
    try:
        _check_size(path)
        return to_rgb(path)
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError("The image is no longer here: please upload it again.") from error
    except ImageDepthError as error:
        raise InputError("This file has 16 bits, but holds an image of 8 bits: please save it with 8 bits.") from error
    except (OSError, ValueError) as error:
        kinds = "it is damaged or not supported. Use JPEG, PNG or WebP."
        raise InputError(f"This file cannot be read as an image: {kinds}") from error


def read_expressions(text: str | None) -> list[str]:
    """Split a text into expressions, one per line; empty lines are left out.

    Raises:
        InputError: if there are none or too many, or one is too long or not valid text.
    """
    lines = [" ".join(line.split()) for line in (text or "").splitlines()]
    expressions = [line for line in lines if not says_nothing(line)]
    if not expressions:
        raise InputError("There is no expression yet: describe an object, one expression per line.")
    if len(expressions) > MAX_EXPRESSIONS:
        raise InputError(f"There are {len(expressions):,} expressions; the limit is {MAX_EXPRESSIONS}.")
    for number, line in enumerate(lines, start=1):
        if len(line) > MAX_LETTERS:
            raise InputError(f"Line {number} has {len(line):,} characters; the limit is {MAX_LETTERS}.")
        if is_damaged(line):
            raise InputError(f"Line {number} is not valid text; please type it again.")
    return expressions


def name_masks(expressions: Sequence[str]) -> list[str]:
    """A file name for the mask of each expression: its number, and its ASCII letters and digits."""
    slugs = [re.sub(r"[^a-z0-9]+", "-", expression.lower())[:40].strip("-") for expression in expressions]
    return [f"{number}-{slug or 'expression'}.png" for number, slug in enumerate(slugs, start=1)]
