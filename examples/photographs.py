"""Rule-made expressions for a table of photographs with labelled objects, and compositions of its cut-outs.

The table is a parquet file with the columns `image` (a file's bytes) and `objects` (a list of `class` and `mask`, a
PNG of the image's size; a `kind` of "semantic" says that it may hold several objects), and, where there are any,
`photo_id` and `exhaustive`:

    python examples/photographs.py photographs.parquet --output sheet.png
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image

from crossvlt_hf.data.objects import ReferOptions, backgrounds_of, cutouts_of, expressions_dataset, load_compositions
from crossvlt_hf.data.objects.rows import HubObjects
from crossvlt_hf.visualization import overlay
from crossvlt_hf.visualization.overlay import arrange


def mark_several(objects: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Mark masks of a whole class as COCO marks them, so that no expression calls them one object."""
    return {"objects": [{**thing, "iscrowd": thing.get("kind") == "semantic"} for thing in objects]}


def read_photographs(path: str | Path) -> HubObjects:
    """The table as a source of labelled pictures."""
    rows = Dataset.from_parquet(str(path)).map(mark_several, input_columns="objects")
    options = {name: name for name in ("exhaustive",) if name in rows.column_names}
    image_id = "photo_id" if "photo_id" in rows.column_names else None
    return HubObjects(rows, kind="objects", labels="objects", image_id=image_id, name=Path(path).stem, **options)


def draw(dataset: Dataset, count: int) -> list[Image.Image]:
    """Some rows with what is meant."""
    places = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int).tolist()
    rows = (dataset[place] for place in places)
    return [overlay(row["image"], [row["mask"] == 1], row["expressions"][:1]) for row in rows]


def main() -> None:
    """Write a sheet of photographs and compositions with their expressions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table")
    parser.add_argument("--output", default="photographs.png")
    parser.add_argument("--limit", type=int, default=500, help="photographs that are read (%(default)s)")
    arguments = parser.parse_args()
    source = read_photographs(arguments.table)
    source.dataset = source.dataset.select(range(min(arguments.limit, len(source))))
    natural = expressions_dataset(source, ReferOptions(on_error="skip"))
    composed = load_compositions(cutouts_of(source), backgrounds_of(source), scenes=100, expressions=2)
    print(f"{len(natural)} expressions for {len(source)} photographs")
    arrange([*draw(natural, 12), *draw(composed, 12)], columns=4).save(arguments.output)


if __name__ == "__main__":
    main()
