"""From your own pictures, sentences and masks to a checkpoint: the folder format, and training on it.

python examples/custom_data.py my-data --steps 20    # writes an example of such a folder, if there is none; trains

The folder has `metadata.jsonl`, a line for each object: {"image": "images/1.jpg", "expressions": ["the man in red"],
"mask": "masks/1.png", "split": "train"}; instead of a mask's file, "polygons" or COCO's "segmentation".
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from crossvlt_hf import DEFAULT_CHECKPOINT


def draw_example(folder: Path) -> None:
    """Pictures of two discs, as your own would lie there."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    rng = np.random.default_rng(0)
    lines = []
    for number in range(12):
        image = Image.new("RGB", (96, 96), "white")
        masks = []
        for side, (left, colour) in enumerate(zip((8, 56), rng.permutation(["red", "blue"]), strict=True)):
            box = (left, int(rng.integers(8, 50)), left + 32, 82)
            ImageDraw.Draw(image).ellipse(box, fill=str(colour))
            mask = Image.new("L", image.size)
            ImageDraw.Draw(mask).ellipse(box, fill=255)
            masks.append((f"masks/{number}-{side}.png", f"the {colour} circle", mask))
        image.save(folder / f"images/{number}.png")
        for name, expression, mask in masks:
            mask.save(folder / name)
            split = "train" if number < 10 else "validation"
            line = {"image": f"images/{number}.png", "expression": expression, "mask": name, "split": split}
            lines.append(json.dumps(line))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def main() -> None:
    """Go on from the built-in checkpoint on the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default=str(DEFAULT_CHECKPOINT), help="checkpoint to go on from")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--output", default="runs/custom")
    arguments = parser.parse_args()
    if not arguments.folder.exists():
        draw_example(arguments.folder)
    settings = [
        f"model.checkpoint={arguments.model}",
        "model.image_size=null",  # that of the checkpoint
        f"data.train=[{{name: {arguments.folder}, split: train}}]",
        f"data.validation=[{{name: {arguments.folder}, split: validation}}]",
        "data.workers=0",
        f"optimization.max_steps={arguments.steps}",
        "optimization.batch_size=4",
        "optimization.learning_rate=1e-4",
        f"output.folder={arguments.output}",
    ]
    # `refshapes` is the recipe; its data are replaced
    subprocess.run([sys.executable, "-m", "crossvlt_hf", "train", "refshapes", *settings], check=True)


if __name__ == "__main__":
    main()
