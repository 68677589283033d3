"""From labelled pictures to references: expressions for a whole source, as records or as a folder, with a report."""

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

import numpy as np
from datasets import Dataset
from PIL import Image

from ...checks import check_known
from ...processing_crossvlt import opening
from ..files import new_folder
from ..masks import pack
from ..record import Record, build_dataset
from ..sources.folder import METADATA
from .attributes import DescribedObject
from .engine import FAMILIES, Expression, make_expressions
from .object_record import ObjectScene, ObjectSource, orientation
from .rows import HubObjects
from .words import in_table, lookup


OnError = Literal["stop", "skip"]
SMALLEST_MEANT = 0.008  # share of the picture of an object that an expression means, at least


@dataclass(frozen=True)
class ReferOptions:
    """How expressions are made.

    Args:
        families: of `FAMILIES`.
        per_family: expressions of each family and picture, at most.
        per_image: expressions of a picture, at most; None for all.
        least_area: share of the picture of an object that is meant, at least.
        colours: whether to look at the pictures for colours.
        exhaustive: false if objects of the named classes are unlabelled in the data set.
        seed: of all chance.
        on_error: "stop" at a picture that cannot be read, or "skip" and count it.
    """

    families: Sequence[str] = FAMILIES
    per_family: int = 1
    per_image: int | None = None
    least_area: float = SMALLEST_MEANT
    colours: bool = True
    exhaustive: bool = True
    seed: int = 0
    on_error: OnError = "stop"

    def __post_init__(self) -> None:
        for family in self.families:
            check_known("families", family, FAMILIES)
        if self.per_family < 1 or (self.per_image is not None and self.per_image < 1) or not 0 <= self.least_area < 1:
            raise ValueError(
                f"`per_family` and `per_image` must be 1 or more and `least_area` within [0, 1), got "
                f"{self.per_family}, {self.per_image}, {self.least_area}."
            )


@dataclass
class Report:
    """What became of a source.

    Args:
        images: read, and with expressions.
        objects: labelled, and those that some expression means.
        left_out: objects by the reason why none means them.
        broken: pictures that could not be read, with the reason.
        families: expressions of each.
        words: how often each was used.
        classes: objects of each class, and how they are called.
    """

    images: Counter[str] = field(default_factory=Counter)
    objects: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    families: Counter[str] = field(default_factory=Counter)
    words: Counter[str] = field(default_factory=Counter)
    classes: Counter[str] = field(default_factory=Counter)

    def add(self, objects: Sequence[DescribedObject], expressions: Sequence[Expression], least_area: float) -> None:
        """Count a picture."""
        meant = {index for expression in expressions for index in expression.targets}
        self.images["read"] += 1
        self.images["with expressions"] += bool(expressions)
        self.objects["labelled"] += len(objects)
        self.objects["meant"] += len(meant)
        self.classes.update(thing.label for thing in objects)
        for index in set(range(len(objects))) - meant:
            small = "too small to be meant" if objects[index].area < least_area else "no expression chosen or certain"
            self.left_out[objects[index].unclear or small] += 1
        self.families.update(expression.family for expression in expressions)
        self.words.update(word for expression in expressions for word in expression.text.split())

    def as_dict(self) -> dict[str, Any]:
        """What JSON takes."""
        return {
            "images": {**self.images, "could not be read": len(self.broken)},
            "objects": dict(self.objects),
            "objects left out": dict(self.left_out.most_common()),
            "expressions": {
                "all": self.families.total(),
                **{f: self.families[f] for f in FAMILIES if self.families[f]},
            },
            "classes": {
                label: {"objects": count, "said as": list(lookup(label).names), "in the table": in_table(label)}
                for label, count in self.classes.most_common()
            },
            "words": dict(self.words.most_common()),
            "broken": self.broken[:100],
        }


def refer(
    source: ObjectSource, options: ReferOptions | None = None, report: Report | None = None
) -> Iterator[tuple[int, ObjectScene, list[Expression]]]:
    """Make expressions for the pictures of a source.

    Args:
        source: of labels.
        options: how.
        report: counts what became of them.

    Yields:
        Number of the picture in the source, the picture, and its expressions; those of a picture depend on it and the
        seed alone.

    Raises:
        OSError: if a picture cannot be read, and `on_error` is "stop".
        ValueError: if its labels are broken, likewise.
    """
    options, report = options or ReferOptions(), report if report is not None else Report()
    for index in range(len(source)):
        try:
            scene = source[index]
            if options.colours:
                objects = scene.describe()
            else:
                scene.check_size()
                objects = scene.describe(colours=False)
        except (OSError, ValueError) as error:
            if options.on_error == "stop":
                raise
            report.broken.append(" ".join(str(error).split()))
            continue
        expressions = _expressions(scene, objects, source.labels, options)
        report.add(objects, expressions, options.least_area)
        yield index, scene, expressions


def _expressions(
    scene: ObjectScene, objects: list[DescribedObject], labels: Sequence[str], options: ReferOptions
) -> list[Expression]:
    rng = np.random.default_rng([options.seed, crc32(scene.image_id.encode())])
    found = make_expressions(
        objects,
        rng,
        options.families,
        exhaustive=options.exhaustive and scene.exhaustive,
        labels=labels,
        per_family=options.per_family,
        least_area=options.least_area,
    )
    if options.per_image is None or len(found) <= options.per_image:
        return found
    return [found[place] for place in sorted(rng.permutation(len(found))[: options.per_image])]


def expressions_dataset(
    source: ObjectSource, options: ReferOptions | None = None, *, split: str = "train", report: Report | None = None
) -> Dataset:
    """Expressions for a source as a data set of records (see `crossvlt_hf.data.record`).

    Files of images are left where they are; the bytes of images in rows of a data set are copied.

    Args:
        source: of labels, whose pictures are files or rows of a data set.
        options: how expressions are made.
        split: what the rows' `split` shall be.
        report: counts what became of the objects.

    Raises:
        OSError: if a picture cannot be read.
        ValueError: if labels are broken, or nothing can be said.
    """
    upright = True
    records = []
    for index, scene, expressions in refer(source, options, report):
        image: Any = scene.image
        if isinstance(source, HubObjects):
            image = source.dataset[index][source.image_column]
        elif not isinstance(image, str):
            raise ValueError(f"{scene.where} has its image inside; write it as a folder with `write_references`.")
        upright = scene.upright
        for number, expression in enumerate(expressions):
            records.append(
                Record(
                    image=image,
                    image_id=scene.image_id,
                    ref_id=f"{scene.image_id}-{number}",
                    expressions=[expression.text],
                    mask=pack([scene.objects[target].segmentation for target in expression.targets], *scene.size),
                    split=split,
                    dataset=source.name,
                    where=f"{scene.where}, {expression.text!r}",
                    ann_ids=tuple(scene.objects[target].ann_id for target in expression.targets),
                    has_target=bool(expression.targets),
                    family=expression.family,
                )
            )
    return build_dataset(records, upright=upright)


class ReferenceWriter:
    """Writes references as a folder in the format of one's own data (see `crossvlt_hf.data.sources.folder`).

    Args:
        folder: that exists and is empty.
        split: of all rows.
        dataset: name of the data set, for the rows.
        copy: whether images are copied; else they are linked to, where the file system can.
    """

    def __init__(self, folder: Path, *, split: str, dataset: str, copy: bool) -> None:
        self.folder, self.split, self.dataset, self.copy = folder, split, dataset, copy
        (folder / "images").mkdir()

    def lines(self, index: int, scene: ObjectScene, expressions: Iterable[Expression]) -> Iterator[dict[str, Any]]:
        """The lines of a picture, which is written before the first of them."""
        image = None
        for number, expression in enumerate(expressions):
            image = image or self._image(index, scene)
            target = (
                {"segmentation": scene.segmentation(expression.targets)} if expression.targets else {"no_target": True}
            )
            yield {
                "image": image,
                "expression": expression.text,
                **target,
                "family": expression.family,
                "image_id": scene.image_id,
                "ref_id": f"{scene.image_id}-{number}",
                "split": self.split,
                "dataset": self.dataset,
                **({} if expression.certain else {"certain": False}),
            }

    def _image(self, index: int, scene: ObjectScene) -> str:
        path = f"images/{index:08d}"
        if isinstance(scene.image, str) and not self._turned(scene):
            path += Path(scene.image).suffix
            if self.copy or not _link(Path(scene.image), self.folder / path):
                shutil.copyfile(scene.image, self.folder / path)
            return path
        scene.open().save(self.folder / f"{path}.png")
        return f"{path}.png"

    @staticmethod
    def _turned(scene: ObjectScene) -> bool:
        """Whether a reader that turns images by their EXIF data would show other pixels than the labels mean."""
        if scene.upright:
            return False
        with opening(str(scene.image), "image"), Image.open(str(scene.image)) as image:
            return orientation(image) != 1


def _link(source: Path, target: Path) -> bool:
    try:
        os.symlink(source.resolve(), target)
    except (OSError, NotImplementedError):
        return False
    return True


def write_references(
    source: ObjectSource,
    folder: str | Path,
    options: ReferOptions | None = None,
    *,
    split: str = "train",
    copy: bool = False,
    sheet: int = 36,
) -> Report:
    """Write expressions for a source as a folder that `load_folder` reads; it appears when it is whole.

    Args:
        source: of labels.
        folder: a new or empty folder. It gets metadata.jsonl, images, report.json, and contact_sheet.png.
        options: how expressions are made.
        split: of all rows.
        copy: whether images are copied; else they are linked to.
        sheet: how many random examples the contact sheet shows; 0 for none.

    Returns:
        What became of the objects.

    Raises:
        FileExistsError: if the folder is not empty.
        OSError: if a picture cannot be read.
        ValueError: if labels are broken, or nothing can be said.
    """
    from .sheet import Reservoir, contact_sheet

    report, options = Report(), options or ReferOptions()
    shown: Reservoir[tuple[ObjectScene, Expression]] = Reservoir(sheet, options.seed)
    with new_folder(folder) as whole:
        writer = ReferenceWriter(whole, split=split, dataset=source.name, copy=copy)
        with (whole / METADATA).open("w", encoding="utf-8") as file:
            for index, scene, expressions in refer(source, options, report):
                for line in writer.lines(index, scene, expressions):
                    file.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")
                for expression in expressions:
                    shown.add((scene, expression))
        if not report.families or (not report.objects["meant"] and set(options.families) != {"no_target"}):
            raise ValueError(_nothing(source, report))
        (whole / "report.json").write_text(json.dumps(report.as_dict(), indent=2, ensure_ascii=False) + "\n", "utf-8")
        if shown.kept:
            contact_sheet(shown.kept).save(whole / "contact_sheet.png")
    return report


def _nothing(source: ObjectSource, report: Report) -> str:
    reasons = "; ".join(f"{reason}: {count}" for reason, count in report.left_out.most_common()) or "no objects"
    broken = (
        f", {len(report.broken)} pictures could not be read, the first: {report.broken[0]}" if report.broken else ""
    )
    return f"Nothing can be said of {source.name} ({re.sub('[.]$', '', reasons + broken)})."
