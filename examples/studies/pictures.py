"""Small photographs and compositions with rule-made expressions, as folders to train and measure the ablations on.

python examples/studies/pictures.py train.parquet --test test.parquet --output pictures

The tables are those of `examples/photographs.py`. Writes three folders of one's own data: `train`, with
photographs and compositions of the first table, and `photographs` and `compositions`, of the second.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from copy import copy
from pathlib import Path
from typing import Any

from datasets import Dataset
from PIL import Image


sys.path.append(str(Path(__file__).parents[1]))  # of examples
from photographs import read_photographs

from crossvlt_hf.data.objects import ReferOptions, backgrounds_of, cutouts_of, expressions_dataset, load_compositions
from crossvlt_hf.data.objects.rows import HubObjects


TEST_SCENES = 250


def split_table(path: Path) -> tuple[HubObjects, HubObjects]:
    """The photographs of a table with all objects labelled, and its cut-outs on white."""
    source = read_photographs(path)
    kinds = [{thing["kind"] for thing in things} for things in source.dataset["objects"]]
    cutout = [number for number, kind in enumerate(kinds) if "cutout" in kind]
    natural = [
        number
        for number, (kind, complete) in enumerate(zip(kinds, source.dataset["exhaustive"], strict=True))
        if complete and kind == {"instance"}
    ]
    return select(source, natural), select(source, cutout)


def select(source: HubObjects, numbers: list[int]) -> HubObjects:
    """Some rows of a source."""
    part = copy(source)
    part.dataset = source.dataset.select(numbers)
    return part


def natural_rows(source: HubObjects) -> Dataset:
    """Expressions for photographs."""
    return expressions_dataset(source, ReferOptions(least_area=0.012, per_image=6, on_error="skip"))


def composed_rows(natural: HubObjects, cutouts: HubObjects, scenes: int, seed: int) -> Dataset:
    """Expressions for compositions, on the photographs."""
    things = [*cutouts_of(natural), *cutouts_of(cutouts)]
    return load_compositions(things, backgrounds_of(natural), scenes=scenes, expressions=3, size=192, seed=seed)


def write(rows: Iterable[dict[str, Any]], folder: Path, side: int) -> int:
    """Write rows as one's own data, the images as small JPEGs; returns how many."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    lines, images = [], {}
    for number, row in enumerate(rows):
        if (image_id := row["image_id"]) not in images:
            images[image_id] = f"images/{len(images):06d}.jpg"
            row["image"].convert("RGB").resize((side, side), Image.Resampling.BILINEAR).save(
                folder / images[image_id], quality=88
            )
        mask = f"masks/{number:06d}.png"
        shown = Image.fromarray((row["mask"] == 1).astype("uint8") * 255)
        shown.resize((side, side), Image.Resampling.NEAREST).convert("1").save(folder / mask)
        names = {name: row[name] for name in ("expressions", "image_id", "ref_id", "family", "has_target")}
        lines.append(json.dumps({**names, "image": images[image_id], "mask": mask}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return len(lines)


def main() -> None:
    """Write the folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("pictures"))
    parser.add_argument("--scenes", type=int, default=2500, help="compositions for training (%(default)s)")
    parser.add_argument("--side", type=int, default=64, help="of the images in pixels (%(default)s)")
    arguments = parser.parse_args()
    natural, cutouts = split_table(arguments.table)
    composed = composed_rows(natural, cutouts, arguments.scenes, seed=1)
    unseen, unseen_cutouts = split_table(arguments.test)
    written = {
        "train": write([*natural_rows(natural), *composed], arguments.output / "train", arguments.side),
        "photographs": write(natural_rows(unseen), arguments.output / "photographs", arguments.side),
        "compositions": write(
            composed_rows(unseen, unseen_cutouts, TEST_SCENES, seed=2),
            arguments.output / "compositions",
            arguments.side,
        ),
    }
    print(json.dumps(written))


if __name__ == "__main__":
    main()
