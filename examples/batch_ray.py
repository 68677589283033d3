"""Label a folder of images in bulk with Ray Data, on one machine or a cluster: masks as COCO run lengths, in Parquet.

    pip install ".[train]" "ray[data]"   # in the clone
    python examples/batch_ray.py my-data --output labels                    # my-data/metadata.jsonl, as below
    python examples/batch_ray.py my-data --model my-crossvlt --actors 8 --device cuda --dtype bfloat16 --batch-size 32
    python examples/batch_ray.py --scenes 12 --output labels                # drawn scenes of RefShapes

A line of metadata.jsonl names an image and what to look for: {"image": "images/1.jpg", "expressions": ["the bus"]} or
{"image": ..., "expression": ...}; whatever else stands there is not read. An image is decoded once, and its
expressions stay together. Each row of the Parquet files is an image and an expression: image, expression, score, box
(x_min, y_min, x_max, y_max), rle (`counts` and `size` of pycocotools), and error, which is empty unless the image
could not be read. The folder of labels must be new, and appears when it is complete.

On a cluster, start this with RAY_ADDRESS set, and have the data, the model and the folder of labels where all machines
find them under the same path. An actor that dies is started again, and so is its batch: each row is written once. With
as many actors as cores, writing begins when the last batch is done.

Ray joins decoding and model in one process where both ask for the same resources, as they do on a CPU; with
`--device cuda` decoding runs in tasks of its own on the other cores.
"""

import argparse
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import ray
import torch
from PIL import Image

from crossvlt_hf import DEFAULT_CHECKPOINT
from crossvlt_hf.data.files import new_folder
from crossvlt_hf.data.masks import encode_mask
from crossvlt_hf.data.refshapes import make_example
from crossvlt_hf.data.sources.folder import read_metadata
from crossvlt_hf.processing_crossvlt import to_rgb
from crossvlt_hf.weights.checkpoint import load_checkpoint, resolve_checkpoint


SCHEMA = pa.schema(
    [
        ("image", pa.string()),
        ("expression", pa.string()),
        ("score", pa.float32()),
        ("box", pa.list_(pa.int32())),
        ("rle", pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])),
        ("error", pa.string()),
    ]
)


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="with metadata.jsonl")
    parser.add_argument("--scenes", type=int, help="of RefShapes, instead of a folder")
    parser.add_argument("--model", default=str(DEFAULT_CHECKPOINT), help="folder or Hub id (the built-in one)")
    parser.add_argument("--output", type=Path, default=Path("labels"))
    parser.add_argument("--actors", type=int, default=1, help="processes that hold the model: one for each GPU")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16, float16, or auto for that of the file")
    parser.add_argument("--batch-size", type=int, default=8, help="pairs of image and expression in a forward pass")
    arguments = parser.parse_args()
    if (arguments.folder is None) == (arguments.scenes is None):
        parser.error("give a folder or --scenes")
    if Path(resolve_checkpoint(arguments.model)).is_dir():  # actors on a cluster do not run in this process's folder
        arguments.model = str(Path(resolve_checkpoint(arguments.model)).absolute())
    return arguments


def read_jobs(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """An image and all its expressions in each row: lines on one image are joined."""
    if arguments.scenes is not None:
        return [{"image": f"refshapes:{index}", "expressions": []} for index in range(arguments.scenes)]
    jobs: dict[str, list[str]] = {}
    for number, line in read_metadata(arguments.folder / "metadata.jsonl"):
        expressions = line.get("expressions") or [line.get("expression")]
        if not isinstance(line.get("image"), str) or not all(isinstance(text, str) for text in expressions):
            raise ValueError(f"Line {number} has no `image` or no `expression`.")
        jobs.setdefault(str((arguments.folder / line["image"]).resolve()), []).extend(expressions)
    return [{"image": path, "expressions": expressions} for path, expressions in jobs.items()]


def decode(job: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """Read an image and squash it to what the model reads: work for the CPUs, beside the actors.

    Three bytes a pixel go to the actor, not the twelve of normalised floats.
    """
    expressions = list(job["expressions"])
    try:
        if job["image"].startswith("refshapes:"):
            example = make_example("test", int(job["image"].removeprefix("refshapes:")))
            image, expressions = Image.fromarray(example.scene.image), [example.expression]
        else:
            image = to_rgb(job["image"])
        size, error = [image.height, image.width], ""
    except (OSError, ValueError) as problem:
        image, size, error = Image.new("RGB", (width, height)), [height, width], str(problem)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    row = {"image": job["image"], "expressions": json.dumps(expressions), "pixels": pixels}
    return {**row, "size": size, "error": error}


class Segmenter:
    """An actor: it holds the model as long as it lives."""

    def __init__(self, model: str, device: str, dtype: str, batch_size: int) -> None:
        self.model, self.processor = load_checkpoint(model, device=device, dtype=dtype)
        self.batch_size = batch_size

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        """The rows of some images; a forward pass has `batch_size` of their pairs."""
        jobs = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        pairs = [(job, text) for job in jobs for text in json.loads(job["expressions"])]
        return pa.Table.from_pylist(list(self._rows(pairs)), schema=SCHEMA)

    def _rows(self, pairs: list[tuple[dict[str, Any], str]]) -> Iterator[dict[str, Any]]:
        readable = [(job, text) for job, text in pairs if not job["error"]]
        for job, text in pairs:
            if job["error"]:
                yield {"image": job["image"], "expression": text, "error": job["error"]}
        for start in range(0, len(readable), self.batch_size):
            part = readable[start : start + self.batch_size]
            for (job, text), found in zip(part, self._segment(part), strict=True):
                rle = encode_mask(found["mask"].cpu().numpy())
                labels = {"score": found["score"], "box": found["box"], "rle": rle, "error": ""}
                yield {"image": job["image"], "expression": text, **labels}

    @torch.inference_mode()
    def _segment(self, pairs: list[tuple[dict[str, Any], str]]) -> list[dict[str, Any]]:
        words = self.processor(text=[text for _, text in pairs], return_tensors="pt").to(self.model.device)
        pixels = torch.from_numpy(np.stack([job["pixels"] for job, _ in pairs])).to(self.model.device)
        outputs = self.model(pixel_values=self._normalise(pixels), **words, return_dict=True)
        return self.processor.post_process_masks(outputs, [job["size"].tolist() for job, _ in pairs])

    def _normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """What the image processor does to (B, H, W, 3) bytes, but on the device: in numpy it takes 10 ms an image."""
        image_processor = self.processor.image_processor
        statistics = (image_processor.image_mean, image_processor.image_std)
        mean, std = (pixels.new_tensor(values, dtype=torch.float32) for values in statistics)
        return ((pixels * image_processor.rescale_factor - mean) / std).permute(0, 3, 1, 2)


def label(arguments: argparse.Namespace, output: Path) -> None:
    """Jobs through decoders and actors into Parquet.

    Ray repeats what a dead process did not finish; a file that is written twice keeps its name.
    """
    _, processor = load_checkpoint(arguments.model)
    height, width = processor.image_size
    jobs = ray.data.from_items(read_jobs(arguments))
    labels = jobs.map(partial(decode, height=height, width=width)).map_batches(
        Segmenter,
        fn_constructor_args=(arguments.model, arguments.device, arguments.dtype, arguments.batch_size),
        batch_size=arguments.batch_size,
        compute=ray.data.ActorPoolStrategy(size=arguments.actors),
        num_gpus=1 if arguments.device == "cuda" else 0,
    )
    labels.write_parquet(str(output))


def main() -> None:
    """A new folder of labels, there when it is complete: those of two runs in one folder would be doubled."""
    arguments = read_arguments()
    with new_folder(arguments.output) as output:
        label(arguments, output)
    print(f"{pa.dataset.dataset(arguments.output).count_rows()} rows in {arguments.output}")


if __name__ == "__main__":
    main()
