"""Examples of RefShapes: scenes with verified expressions."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from PIL import Image

from ...system import check_known
from .expressions import Query, sample_queries
from .families import SPLITS, Split, check_counterparts, check_scene, check_split, families_at
from .languages import LANGUAGES
from .languages.grammar import Grammar
from .scenes import COLOURS, SHAPES, Scene, Thing, draw, sample_things


SEVERAL = (2, 4)  # the fewest and the most targets of a plural
TRIES = 5000  # scenes drawn until one has the requested expressions

# Combinations that the training split never has, and `unseen_pairs` and `unseen_relations` always have
UNSEEN_PAIRS = {("red", "star"), ("blue", "triangle"), ("yellow", "square"), ("green", "cross")}
UNSEEN_RELATIONS = {("above", "star"), ("left of", "diamond"), ("below", "circle")}


@dataclass(frozen=True)
class Example:
    """One scene with one expression.

    Args:
        scene: the scene.
        expression: the text.
        targets: indices of the objects that it refers to: one, except for families of `EXTRAS`.
        family: one of `FAMILIES` or `EXTRAS`.
        counterpart: for "no_target", the expression for an object from which it differs in one word of its meaning;
            in German, articles and endings agree with the word.
    """

    scene: Scene
    expression: str
    targets: tuple[int, ...]
    family: str
    counterpart: str | None = None

    @property
    def mask(self) -> np.ndarray:
        """(side, side) bool: the visible pixels of all targets."""
        return np.asarray(self.scene.masks[list(self.targets)].any(axis=0))


def _fits(query: Query, targets: set[int] | None, things: tuple[Thing, ...], split: Split) -> bool:
    """Whether a query has the number of targets of its family, and belongs to a split."""
    fewest, most = {"plural": SEVERAL, "no_target": (0, 0)}.get(query.family, (1, 1))
    if targets is None or not fewest <= len(targets) <= most:
        return False
    meant = {(things[index].colour, things[index].shape) for index in targets}
    named = {(phrase.colour, phrase.word) for phrase in query.phrases}
    if split == "unseen_pairs":
        return meant <= UNSEEN_PAIRS if meant else bool(named & UNSEEN_PAIRS)
    if named & UNSEEN_PAIRS:  # a model would learn that pairs which are only ever denied do not exist
        return False
    if split in ("paraphrases", "longer"):
        return split == "longer" or query.has_synonyms
    return any(relation in UNSEEN_RELATIONS for relation in query.relations) == (split == "unseen_relations")


def _choose(
    rng: np.random.Generator, things: tuple[Thing, ...], families: Sequence[str], split: Split
) -> list[tuple[Query, set[int]]] | None:
    """A query of each family, all with different targets; None if the objects do not allow it."""
    chosen: list[tuple[Query, set[int]]] = []
    for family in families:
        taken = set().union(*(targets for _, targets in chosen))
        said = [query for query, _ in chosen]
        for query in sample_queries(rng, family, things):
            targets = query.select(things)
            if _fits(query, targets, things, split) and not taken & (targets or set()) and query not in said:
                chosen.append((query, targets or set()))
                break
        else:
            return None
    return chosen


def _with_counterparts(
    chosen: list[tuple[Query, set[int]]], things: tuple[Thing, ...], split: Split
) -> list[tuple[Query, set[int]]] | None:
    """Put counterparts in the places of queries with targets; None if the split or other targets do not allow it."""
    chosen = list(chosen)
    true = [query.counterpart for query, _ in chosen if query.counterpart is not None]
    places = [place for place, (query, _) in enumerate(chosen) if query.counterpart is None]
    for query, place in zip(true, places, strict=False):
        targets = query.select(things)
        others = set().union(*(taken for number, (_, taken) in enumerate(chosen) if number != place))
        if not _fits(query, targets, things, split) or others & (targets or set()):
            return None
        chosen[place] = (query, targets or set())
    return chosen


def make_scene(
    split: Split,
    index: int,
    *,
    families: Sequence[str],
    side: int = 96,
    seed: int = 0,
    count: tuple[int, int] = (3, 6),
    language: str = "en",
    counterparts: bool = False,
) -> list[Example]:
    """Draw a scene of a split with an expression of each family, all with different targets.

    Several expressions for one image teach a model to read the words.

    Args:
        split: one of `SPLITS`. "train" has neither `UNSEEN_PAIRS` nor `UNSEEN_RELATIONS`; all targets of
            "unseen_pairs" and all relations of "unseen_relations" are of these; "longer" has two relations per
            expression, "paraphrases" other words.
        index: 0 or above; every split is endless.
        families: of `FAMILIES`, `EXTRAS` or `DENIALS`, one for each expression.
        side: side of the image, in pixels.
        seed: of the scenes.
        count: the fewest and the most objects, up to 8.
        language: of the expressions, one of `LANGUAGES`; scenes, meanings and targets are the same in all.
        counterparts: whether the counterparts of expressions without a target, from which they differ in one word,
            take the places of those with one, as far as there are any.

    Returns:
        An example for each family, all of the same scene; the same on every machine and in every process.

    Raises:
        ValueError: if there is no such split, family or language, a number is out of range, or there are too few
            objects for the expressions.
    """
    _check(split, families, counterparts)
    check_scene(index, side, seed, count)
    check_known("language", language, LANGUAGES)
    grammar = LANGUAGES[language].grammar(synonyms=split == "paraphrases")
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    unseen = split == "unseen_pairs"
    kinds = [kind for kind in product(COLOURS, SHAPES) if unseen or kind not in UNSEEN_PAIRS]
    for _ in range(TRIES):
        wanted = int(rng.integers(count[0], count[1] + 1))
        things = sample_things(rng, wanted, kinds)
        if len(things) < wanted or (chosen := _choose(rng, things, families, split)) is None:
            continue
        if counterparts and (chosen := _with_counterparts(chosen, things, split)) is None:
            continue
        scene = draw(things, rng, side)
        if scene.is_visible:
            return [_example(scene, query, targets, grammar) for query, targets in chosen]
    raise ValueError(
        f"Scenes of {count[0]} to {count[1]} objects in split {split!r} have no expressions of the families "
        f"{', '.join(families)}; use more objects or fewer expressions."
    )


def _example(scene: Scene, query: Query, targets: set[int], grammar: Grammar) -> Example:
    counterpart = None if query.counterpart is None else query.counterpart.say(grammar)
    return Example(scene, query.say(grammar), tuple(sorted(targets)), query.family, counterpart)


def _check(split: str, families: Sequence[str], counterparts: bool) -> None:
    if not families:
        raise ValueError("`families` is empty; give at least one.")
    check_split(split, families)
    check_counterparts(counterparts, len(families))


def make_example(
    split: Split,
    index: int,
    *,
    side: int = 96,
    seed: int = 0,
    family: str | None = None,
    count: tuple[int, int] = (3, 6),
    language: str = "en",
) -> Example:
    """Draw a scene with one expression, of a family or of the six in turn: see `make_scene`."""
    if family is not None:
        check_split(split, [family], "family")
    families = families_at(split, index) if family is None else [family]
    return make_scene(split, index, families=families, side=side, seed=seed, count=count, language=language)[0]


def contact_sheet(examples: list[Example], columns: int = 6) -> Image.Image:
    """Draw examples in a grid: each scene with its targets outlined, and the expression below."""
    from ...visualization.overlay import arrange, draw_example

    tiles = [draw_example(Image.fromarray(e.scene.image), e.mask, e.expression, e.family) for e in examples]
    return arrange(tiles, columns)
