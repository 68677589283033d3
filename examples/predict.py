"""Segment a whole folder of images, in batches: masks as PNG, and a line of JSON for each.

python examples/predict.py pictures "the largest object" --output masks
python examples/predict.py photos "the dog" "the left person" --model my-crossvlt --batch-size 8
"""

import argparse
import json
from pathlib import Path

from transformers import pipeline

import crossvlt_hf  # noqa: F401  makes Transformers know the task


def main() -> None:
    """Every expression in every image of the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("expressions", nargs="+")
    parser.add_argument("--model", help="folder or Hub id (default: the built-in one)")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--output", type=Path, default=Path("masks"))
    arguments = parser.parse_args()

    images = [path for path in sorted(arguments.folder.iterdir()) if path.suffix.lower() in (".jpg", ".jpeg", ".png")]
    paths = [path for path in images if not path.name.startswith(".")]  # hidden, such as ._1.jpg
    segmenter = pipeline("referring-image-segmentation", model=arguments.model)
    arguments.output.mkdir(parents=True, exist_ok=True)
    rows = ({"image": str(path), "text": arguments.expressions} for path in paths)
    for path, results in zip(paths, segmenter(rows, batch_size=arguments.batch_size), strict=True):
        for number, result in enumerate(results, start=1):
            target = arguments.output / f"{path.stem}-{number}.png"
            result.pop("mask").save(target)
            print(json.dumps({"image": path.name, **result, "mask": str(target)}))


if __name__ == "__main__":
    main()
