"""References for labelled images: expressions for a source, as a data set or a folder, with a report."""

import json
import os
import pickle
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from datasets import Dataset
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data import Dataset as TorchDataset

from ...system import as_it_is, iterate_loader, start_worker
from ..files import content_key, new_folder, orientation
from ..flaws import Flaws
from ..masks import pack
from ..record import Record, build_dataset
from ..sources.folder import METADATA, read_metadata
from .attributes import CROWD, DOUBLE, DescribedObject
from .engine import Expression, make_expressions
from .object_record import ObjectRecord, ObjectScene, ObjectSource, open_image
from .refer_options import FAMILIES, VALIDATION, ReferOptions
from .words import in_table, lookup


Outcome = tuple[ObjectScene, list[DescribedObject], list[Expression]]
_UNSENT = "{}, image {}: the scene must be pickled to leave a worker process, or set `workers` to 0: {}"
# Reasons why objects are left out, where the report needs more words than `DescribedObject.unclear`
REASONS = {
    CROWD: "crowd (`iscrowd` 1; read as objects with the option `crowds=objects`)",
    DOUBLE: "labelled twice, or close together (85 % of the smaller box lie in another of its class)",
}


@dataclass
class Report:
    """Counts of images, objects and expressions.

    Args:
        images: images read, and images with expressions.
        objects: labelled objects, and objects that are targets.
        left_out: objects that are no target, by reason.
        broken: errors of unreadable images.
        repaired: flaws of labels that were repaired.
        splits: images with expressions of each split, if some are held out for validation.
        families: expressions per family.
        words: uses of each word.
        classes: objects of each class.
    """

    images: Counter[str] = field(default_factory=Counter)
    objects: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    repaired: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    families: Counter[str] = field(default_factory=Counter)
    words: Counter[str] = field(default_factory=Counter)
    classes: Counter[str] = field(default_factory=Counter)

    def add(self, objects: Sequence[DescribedObject], expressions: Sequence[Expression], least_area: float) -> None:
        """Count an image."""
        targets = {index for expression in expressions for index in expression.targets}
        self.images["read"] += 1
        self.images["with expressions"] += bool(expressions)
        self.objects["labelled"] += len(objects)
        self.objects["targets"] += len(targets)
        self.classes.update(thing.label for thing in objects)
        for index in set(range(len(objects))) - targets:
            small = "too small" if objects[index].area < least_area else "no expression"
            reason = objects[index].unclear or small
            self.left_out[REASONS.get(reason, reason)] += 1
        self.families.update(expression.family for expression in expressions)
        self.words.update(word for expression in expressions for word in expression.text.split())

    def as_dict(self) -> dict[str, Any]:
        """Convert to a dict for JSON."""
        return {
            "images": {**self.images, "unreadable": len(self.broken)},
            **({"splits": dict(self.splits)} if self.splits else {}),
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
            "repaired": dict(self.repaired),
        }


def refer(
    source: ObjectSource, options: ReferOptions | None = None, report: Report | None = None
) -> Iterator[tuple[int, ObjectScene, list[Expression]]]:
    """Make expressions for the images of a source.

    Args:
        source: labelled images.
        options: see `ReferOptions`.
        report: to count in.

    Yields:
        Index of the image, the scene, and its expressions, which depend only on the image, its labels (in any order),
        the classes of the data set, and the seed. At the end, a warning has the flaws of labels that were repaired.

    Raises:
        OSError: if an image cannot be read, and `on_error` is "stop".
        ValueError: if its labels are broken, and `on_error` is "stop".
    """
    options, report = options or ReferOptions(), report if report is not None else Report()
    flaws = Flaws(source.name)
    outcomes = DataLoader(
        _Outcomes(source, options),
        batch_size=None,
        num_workers=options.workers,
        collate_fn=as_it_is,
        worker_init_fn=start_worker,
    )
    for index, returned in enumerate(_while_workers_live(iterate_loader(outcomes))):
        outcome: Outcome | Exception = pickle.loads(returned) if isinstance(returned, bytes) else returned
        if isinstance(outcome, Exception):
            if options.on_error == "stop" or not isinstance(outcome, (OSError, ValueError)):
                raise outcome
            report.broken.append(" ".join(str(outcome).split()))
            continue
        scene, objects, expressions = outcome
        report.add(objects, expressions, options.least_area)
        flaws.include(scene.flaws or Flaws(source.name))
        yield index, scene, expressions
    report.repaired.update({many: len(places) for (_, many), places in flaws.met.items()})
    flaws.warn()


def _while_workers_live(outcomes: Iterable[Any]) -> Iterator[Any]:
    """The outcomes; OSError if a worker process ends before its last one."""
    try:
        yield from outcomes
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise OSError(
            f"A process that reads images has ended, perhaps for want of memory; use fewer `workers`. {error}"
        ) from error


class _Outcomes(TorchDataset):
    """Scene, described objects and expressions of each image, or the error of reading it.

    Errors are returned, since workers of a loader would raise them with a traceback in the message. Workers return
    pickled outcomes.
    """

    def __init__(self, source: ObjectSource, options: ReferOptions) -> None:
        self.source, self.options = source, options

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Outcome | Exception | bytes:
        outcome = self._read(index)
        return outcome if get_worker_info() is None else self._packed(outcome, index)

    def _read(self, index: int) -> Outcome | Exception:
        try:
            scene = self.source[index]
            if not self.options.colours:
                scene.check_size()
            objects = scene.describe(colours=self.options.colours)
            scene.unique_id()  # reads the file here, not in the main process
        except (OSError, ValueError) as error:
            return error
        return scene, objects, _expressions(scene, objects, self.source.labels, self.options)

    def _packed(self, outcome: Outcome | Exception, index: int) -> bytes:
        """An outcome for the main process, which would wait for ever for one that cannot be pickled."""
        try:
            return pickle.dumps(outcome)
        except Exception as error:  # any, of whatever a source puts into its scenes
            return pickle.dumps(TypeError(_UNSENT.format(self.source.name, index, error)))


def _expressions(
    scene: ObjectScene, objects: list[DescribedObject], labels: Sequence[str], options: ReferOptions
) -> list[Expression]:
    rng = np.random.default_rng([options.seed, crc32(scene.image_id.encode())])
    order = sorted(range(len(objects)), key=lambda index: _place_in_order(objects[index], scene.objects[index]))
    found = make_expressions(
        [objects[index] for index in order],
        rng,
        options.families,
        exhaustive=options.exhaustive and scene.exhaustive,
        labels=labels,
        per_family=options.per_family,
        least_area=options.least_area,
    )
    found = [replace(entry, targets=tuple(order[target] for target in entry.targets)) for entry in found]
    if options.per_image is None or len(found) <= options.per_image:
        return found
    return [found[place] for place in sorted(rng.permutation(len(found))[: options.per_image])]


def _place_in_order(thing: DescribedObject, record: ObjectRecord) -> tuple[Any, ...]:
    """What objects are sorted by, so that the expressions do not depend on their order in the file."""
    return thing.label, thing.box, thing.area, thing.centre, thing.unclear, record.ann_id


def choose_validation(keys: Iterable[str], share: float, seed: int) -> set[str]:
    """Choose a share of images, at least one and not all, by a hash of key and seed, whatever their order.

    Raises:
        ValueError: if there are fewer than two images.
    """
    ordered = sorted(set(keys), key=lambda key: blake2b(f"{seed} {key}".encode()).digest())
    if len(ordered) < 2:
        raise ValueError("`validation` needs at least two images with expressions; leave it out.")
    return set(ordered[: min(max(1, round(share * len(ordered))), len(ordered) - 1)])


def expressions_dataset(
    source: ObjectSource, options: ReferOptions | None = None, *, split: str = "train", report: Report | None = None
) -> Dataset:
    """Make expressions for a source, as a data set of records (see `crossvlt_hf.data.record`).

    Image files are not copied; images in rows of a data set, and in the files of LabelMe, are.

    Args:
        source: labelled images: files, or rows of a data set.
        options: see `ReferOptions`.
        split: value of `split` in the rows, but for those of `options.validation`.
        report: to count in.

    Raises:
        OSError: if an image cannot be read.
        ValueError: if labels are broken, or there are no expressions.
    """
    options = options or ReferOptions()
    options.check_split(split)
    records, keys = [], list[str]()
    for _, scene, expressions in refer(source, options, report):
        if options.validation:
            keys += [content_key(scene.unique_id(), scene.image)] * len(expressions)
        stored = {"path": scene.image} if isinstance(scene.image, str) else {"bytes": scene.image}
        for number, expression in enumerate(expressions):
            records.append(
                Record(
                    image={**stored, "upright": scene.upright},
                    image_id=scene.unique_id(),
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
    if options.validation:
        chosen = choose_validation(keys, options.validation, options.seed)
        records = [
            replace(record, split=VALIDATION) if key in chosen else record
            for record, key in zip(records, keys, strict=True)
        ]
    return build_dataset(records)


class ReferenceWriter:
    """Write references as a folder that `load_folder` reads (see `crossvlt_hf.data.sources.folder`).

    Args:
        folder: exists and is empty.
        split: of all rows.
        dataset: name of the data set, for the rows.
        copy: whether to copy images; otherwise they are linked, if the file system supports it.
    """

    def __init__(self, folder: Path, *, split: str, dataset: str, copy: bool) -> None:
        self.folder, self.split, self.dataset, self.copy = folder, split, dataset, copy
        (folder / "images").mkdir()

    def lines(self, index: int, scene: ObjectScene, expressions: Iterable[Expression]) -> Iterator[dict[str, Any]]:
        """The lines of metadata for an image, which is written first."""
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
                "image_id": scene.unique_id(),
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
        """Whether the labels are for stored pixels that readers would rotate by their EXIF orientation."""
        if scene.upright:
            return False
        with open_image(scene.image, scene.where) as image:
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
    """Write expressions for a source as a folder that `load_folder` reads; it appears when it is complete.

    Args:
        source: labelled images.
        folder: a new or empty folder, for metadata.jsonl, images, report.json and contact_sheet.png.
        options: see `ReferOptions`.
        split: of all rows but those of `options.validation`.
        copy: whether to copy images; otherwise they are linked.
        sheet: number of random examples on the contact sheet; 0 for no sheet.

    Returns:
        Counts of images, objects and expressions.

    Raises:
        FileExistsError: if the folder is not empty.
        OSError: if an image cannot be read.
        ValueError: if labels are broken, or there are no expressions.
    """
    from .sheet import Reservoir, contact_sheet

    report, options = Report(), options or ReferOptions()
    options.check_split(split)
    keys: dict[str, str] = {}  # of the content of images, by the files that are written
    shown: Reservoir[tuple[ObjectScene, Expression]] = Reservoir(sheet, options.seed)
    with new_folder(folder) as whole:
        writer = ReferenceWriter(whole, split=split, dataset=source.name, copy=copy)
        with (whole / METADATA).open("w", encoding="utf-8") as file:
            for index, scene, expressions in refer(source, options, report):
                for line in writer.lines(index, scene, expressions):
                    file.write(_as_line(line))
                    if options.validation and line["image"] not in keys:
                        keys[line["image"]] = content_key(line["image_id"], scene.image)
                for expression in expressions:
                    shown.add((scene, expression))
        if not report.families or (not report.objects["targets"] and set(options.families) != {"no_target"}):
            raise ValueError(_nothing(source, report))
        if options.validation:
            report.splits = _hold_out(whole / METADATA, keys, options)
        (whole / "report.json").write_text(json.dumps(report.as_dict(), indent=2, ensure_ascii=False) + "\n", "utf-8")
        if (drawn := contact_sheet(shown.kept, skip=options.on_error == "skip")) is not None:
            drawn.save(whole / "contact_sheet.png")
    return report


def _hold_out(path: Path, keys: dict[str, str], options: ReferOptions) -> Counter[str]:
    """Put the rows of a share of images into the split for validation; return the number of images of each split.

    Args:
        path: of the metadata.
        keys: of the content of each image in it.
        options: see `ReferOptions`.
    """
    chosen, splits = choose_validation(keys.values(), options.validation, options.seed), dict[str, str]()
    beside = path.with_suffix(".partial")
    with beside.open("w", encoding="utf-8") as file:
        for _, row in read_metadata(path):
            key = keys[row["image"]]
            if key in chosen:
                row["split"] = VALIDATION
            splits[key] = row["split"]
            file.write(_as_line(row))
    beside.replace(path)
    return Counter(splits.values())


def _as_line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n"


def _nothing(source: ObjectSource, report: Report) -> str:
    reasons = "; ".join(f"{reason}: {count}" for reason, count in report.left_out.most_common()) or "no objects"
    broken = f", {len(report.broken)} images are unreadable, the first: {report.broken[0]}" if report.broken else ""
    return f"There are no expressions for {source.name} ({re.sub('[.]$', '', reasons + broken)})."
