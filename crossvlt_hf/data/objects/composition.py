"""Composed images: cut-outs pasted on backgrounds (Dwibedi et al., 2017; Ghiasi et al., 2021).

Every scene has at least two objects of one class, so that the noun alone is not enough. Pasted edges are feathered by
different widths, since a model would otherwise learn to find the seams.
"""

import math
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from ...system import check_integer, check_pair
from ..refshapes.families import LARGEST_SIDE
from .attributes import DescribedObject, describe
from .words import lookup, word_fits


MOST_PIXELS = 192  # longest side of a cut-out
VISIBLE = 0.75  # smallest share of an object that stays visible
MOST_TRIES = 2000  # to draw a scene: enough for a class with one of a thousand cut-outs


@dataclass(frozen=True)
class CutOut:
    """An object without its surroundings.

    Args:
        pixels: (height, width, 4) uint8, RGB and alpha, at most 192 pixels a side.
        label: its class.
    """

    pixels: NDArray[np.uint8]
    label: str


@dataclass(frozen=True)
class Background:
    """An image to paste cut-outs on.

    Args:
        pixels: (height, width, 3) uint8.
        labels: all classes of objects in it; these are not pasted on it.
    """

    pixels: NDArray[np.uint8]
    labels: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ComposedScene:
    """A composed image.

    Args:
        image: (size, size, 3) uint8.
        masks: (objects, size, size) bool: the visible part of each.
        classes: class of each object.
        cutouts: index of each object's cut-out.
        behind: classes of the background, of which the part that is used may show objects.
    """

    image: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    classes: tuple[str, ...]
    cutouts: tuple[int, ...]
    behind: tuple[str, ...] = ()

    def describe(self) -> list[DescribedObject]:
        """Measure the objects; after them, each class of the background has an unclear object without pixels.

        Thus, expressions neither call such a class absent, nor use words that may also mean it.
        """
        unseen = np.zeros((len(self.behind), *self.image.shape[:2]), dtype=bool)
        return describe(self.image, [*self.masks, *unseen], [*self.classes, *self.behind], doubles=False)


def cut_out(image: NDArray[np.uint8], mask: NDArray, label: str, most: int = MOST_PIXELS) -> CutOut | None:
    """Cut an object out of an image; None if it has no pixels.

    Args:
        image: (height, width, 3) uint8.
        mask: (height, width), not zero on the object.
        label: its class.
        most: longest side in pixels; larger ones are scaled down.
    """
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not ys.size:
        return None
    window = np.s_[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]
    alpha = (np.asarray(mask[window]) != 0).astype(np.uint8) * 255
    picture = Image.fromarray(np.dstack([image[window], alpha]))
    if max(picture.size) > most:
        scale = most / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.BOX)
    return CutOut(np.asarray(picture), label)


def _plain_background(rng: np.random.Generator, size: int) -> Image.Image:
    """A gradient between two colours."""
    ends = rng.uniform(60, 245, (2, 1, 1, 1)) + rng.uniform(-25, 25, (2, 1, 1, 3))
    ramp = np.linspace(0, 1, size, dtype=np.float32)
    ramp = (ramp[:, None] if rng.random() < 0.5 else ramp[None, :])[..., None]
    noise = rng.normal(0, 3, (size, size, 1))
    return Image.fromarray((ends[0] * (1 - ramp) + ends[1] * ramp + noise).clip(0, 255).astype(np.uint8))


class Composer:
    """Draw scenes of cut-outs, the same for the same seed and index on every machine.

    Args:
        cutouts: objects to paste.
        backgrounds: images to paste them on; gradients if there are none.
        size: side of a scene, in pixels, from 32 to 4096.
        seed: of the scenes.
        count: the fewest and the most objects.
        plain: share of the scenes on a gradient.
        scale: the smallest and the largest side of an object, relative to the scene.

    Raises:
        ValueError: if there are no cut-outs, one has no opaque pixel, all backgrounds have the classes of all cut-outs
            and `plain` is 0, or a number is out of range.
    """

    def __init__(
        self,
        cutouts: Sequence[CutOut],
        backgrounds: Sequence[Background] = (),
        size: int = 224,
        seed: int = 0,
        *,
        count: tuple[int, int] = (2, 5),
        plain: float = 0.15,
        scale: tuple[float, float] = (0.18, 0.5),
    ) -> None:
        if not cutouts:
            raise ValueError("`cutouts` must have one or more cut-outs, got none.")
        check_integer("size", size, 32, LARGEST_SIDE)
        check_integer("seed", seed, 0)
        check_pair("count", count, 2, 12)
        check_pair("scale", scale, 0.01, 1, Real)
        if isinstance(plain, bool) or not isinstance(plain, int | float) or not 0 <= plain <= 1:
            raise ValueError(f"`plain` must be a number from 0 to 1, got {plain!r}.")
        self.cutouts, self.backgrounds = list(cutouts), list(backgrounds)
        self.size, self.seed, self.count, self.plain, self.scale = size, seed, count, plain, scale
        self.of_class: dict[str, list[int]] = {}
        for number, cutout in enumerate(self.cutouts):
            self.of_class.setdefault(lookup(cutout.label).name, []).append(number)
            if not (cutout.pixels[..., 3] >= 128).any():
                raise ValueError(
                    f"Each of `cutouts` must have opaque pixels; number {number} ({cutout.label}) has none."
                )
        self.labels = sorted(self.of_class)
        self._check_backgrounds()
        shares = np.cumsum(np.sqrt([len(self.of_class[label]) for label in self.labels]))
        self.shares = shares / shares[-1]

    def _check_backgrounds(self) -> None:
        """Refuse, or warn of, backgrounds that can never be used, as they have the classes of all cut-outs."""
        if not self.backgrounds or any(self._free(self.labels, ground.labels) for ground in self.backgrounds):
            return
        why = (
            f"All {len(self.backgrounds)} backgrounds may show objects of all classes of the cut-outs "
            f"({', '.join(self.labels[:5])}{', ...' if len(self.labels) > 5 else ''})"
        )
        if self.plain == 0:
            raise ValueError(f"{why}; `backgrounds` must have one without, or `plain` must be above 0.")
        warnings.warn(f"{why}: none is used, and all scenes are on gradients.", stacklevel=3)
        self.plain = 1.0

    def scene(self, index: int, attempt: int = 0) -> ComposedScene:
        """Draw a scene.

        Args:
            index: 0 or above.
            attempt: number of the attempt; each draws another scene.

        Raises:
            ValueError: if the objects never fit into a scene.
        """
        rng = np.random.default_rng([self.seed, index, attempt])
        for _ in range(MOST_TRIES):
            background, seen = self._background(rng)
            chosen = self._choose(rng, seen)
            scene = self._compose(rng, background, chosen, tuple(sorted(seen)))
            if scene is not None:
                return scene
        raise ValueError(
            f"None of {MOST_TRIES} scenes of {self.size} pixels could be composed: `count` and `scale` must leave "
            f"room, and `backgrounds` must lack some classes of `cutouts`, got {self.count}, {self.scale} and "
            f"{len(self.backgrounds)} backgrounds."
        )

    @staticmethod
    def _free(labels: Collection[str], seen: Collection[str]) -> list[str]:
        """The classes of which a background shows nothing."""
        return [label for label in labels if all(word_fits(label, s) is False for s in seen)]

    def _background(self, rng: np.random.Generator) -> tuple[Image.Image, frozenset[str]]:
        if not self.backgrounds or rng.random() < self.plain:
            return _plain_background(rng, self.size), frozenset()
        background = self.backgrounds[int(rng.integers(len(self.backgrounds)))]
        height, width = background.pixels.shape[:2]
        side = min(height, width) * rng.uniform(0.6, 1.0)
        left, top = rng.uniform(0, width - side), rng.uniform(0, height - side)
        picture = Image.fromarray(background.pixels).resize(
            (self.size, self.size), Image.Resampling.BILINEAR, (left, top, left + side, top + side)
        )
        if rng.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return picture, background.labels

    def _choose(self, rng: np.random.Generator, seen: Collection[str]) -> list[int]:
        """Choose cut-outs: at least two of one class, and others of one or two more classes."""
        labels = [self.labels[place] for place in np.searchsorted(self.shares, rng.random(8), side="right")]
        free = self._free(dict.fromkeys(labels), seen)
        if not free:
            return []
        total = int(rng.integers(self.count[0], self.count[1] + 1))
        same = int(rng.integers(2, total + 1)) if total > 2 else 2
        kinds = [free[0]] * same
        kinds += [
            free[1 + int(rng.integers(min(2, len(free) - 1)))] if len(free) > 1 else free[0]
            for _ in range(total - same)
        ]
        return [self.of_class[kind][int(rng.integers(len(self.of_class[kind])))] for kind in kinds]

    def _compose(
        self, rng: np.random.Generator, background: Image.Image, chosen: list[int], behind: tuple[str, ...]
    ) -> ComposedScene | None:
        if not chosen:
            return None
        canvas = _Canvas(background)
        base = rng.uniform(*self.scale)
        order = [chosen[place] for place in rng.permutation(len(chosen))]
        for number in order:
            piece = _Piece(self._prepare(rng, self.cutouts[number].pixels, base))
            if not any(canvas.paste(piece, *_place(rng, piece.solid.shape, self.size)) for _ in range(12)):
                return None
        classes = tuple(self.cutouts[number].label for number in order)
        return ComposedScene(np.array(canvas.picture), np.stack(canvas.masks), classes, tuple(order), behind)

    def _prepare(self, rng: np.random.Generator, pixels: NDArray[np.uint8], base: float) -> Image.Image:
        """Scale, rotate, light and feather a cut-out."""
        picture = Image.fromarray(pixels)
        side = self.size * min(self.scale[1] * 1.1, base * math.exp(rng.normal(0, 0.3)))
        ratio = max(8.0, side) / math.sqrt(picture.width * picture.height)
        ratio = min(ratio, 0.85 * self.size / max(picture.size))
        size = (max(4, round(picture.width * ratio)), max(4, round(picture.height * ratio)))
        picture = picture.resize(size, Image.Resampling.BILINEAR)
        if rng.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if rng.random() < 0.3:
            picture = picture.rotate(rng.uniform(-20, 20), Image.Resampling.BILINEAR, expand=True)
        light, contrast = rng.uniform(0.85, 1.12), rng.uniform(0.85, 1.15)
        levels = (((np.arange(256) - 128) * contrast + 128) * light).clip(0, 255).astype(np.uint8)
        values = np.array(picture)
        values[..., :3] = levels.take(values[..., :3])
        values[..., 3] = _feather(picture.getchannel("A"), rng)
        return Image.fromarray(values)


def _feather(alpha: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Erode large masks by a pixel, and blur the edge by a random radius."""
    if min(alpha.size) > 24 and rng.random() < 0.7:
        framed = Image.new("L", (alpha.width + 2, alpha.height + 2))
        framed.paste(alpha, (1, 1))
        alpha = framed.filter(ImageFilter.MinFilter(3)).crop((1, 1, alpha.width + 1, alpha.height + 1))
    radius = (0.0, 0.6, 1.0, 1.6)[int(rng.integers(4))]
    return alpha.filter(ImageFilter.GaussianBlur(radius)) if radius else alpha


def _place(rng: np.random.Generator, shape: tuple[int, ...], size: int) -> tuple[int, int]:
    """Random top and left of an object; one in six may extend beyond the image, by up to a fifth."""
    height, width = shape[:2]
    out = 0.2 if rng.random() < 1 / 6 else 0.0
    top = rng.integers(-int(out * height), max(1, size - height + int(out * height) + 1))
    left = rng.integers(-int(out * width), max(1, size - width + int(out * width) + 1))
    return int(top), int(left)


class _Piece:
    """An object to paste, and which of its pixels are opaque."""

    def __init__(self, picture: Image.Image) -> None:
        self.picture = picture
        self.solid = np.asarray(picture.getchannel("A")) >= 128
        self.area = int(self.solid.sum())


class _Canvas:
    """An image with pasted objects, and the visible part of each."""

    def __init__(self, background: Image.Image) -> None:
        self.picture = background
        self.masks: list[NDArray[np.bool_]] = []
        self.spare: list[float] = []  # pixels of each object that may still be covered

    def paste(self, piece: _Piece, top: int, left: int) -> bool:
        """Paste an object, unless it would cover too much of another."""
        size = self.picture.width
        rows = slice(max(0, top), min(size, top + piece.solid.shape[0]))
        columns = slice(max(0, left), min(size, left + piece.solid.shape[1]))
        solid = piece.solid[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        area = int(solid.sum())
        covered = [int((mask[rows, columns] & solid).sum()) for mask in self.masks]
        if area < max(16, VISIBLE * piece.area) or any(c > s for c, s in zip(covered, self.spare, strict=True)):
            return False
        self.picture.paste(piece.picture, (left, top), piece.picture)
        for mask in self.masks:
            mask[rows, columns] &= ~solid
        mask = np.zeros((size, size), dtype=bool)
        mask[rows, columns] = solid
        self.masks.append(mask)
        self.spare = [s - c for c, s in zip(covered, self.spare, strict=True)]
        self.spare.append(area - VISIBLE * piece.area)
        return True
