"""Writes data sets in their authors' formats, as far as the readers look at them, and images of 16 bits."""

import json
import pickle
import re
import struct
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from crossvlt_hf.data.masks import encode_mask


COCO_IMAGES = "images/mscoco/images/train2014"

# an image (height, width, 3) uint8, and what is said of it: masks (arrays, or segmentations of COCO) and expressions
Scene = tuple[np.ndarray, list[tuple[Any, list[str]]]]


def sentence(text: str, sent_id: int) -> dict[str, Any]:
    sent = re.sub(r"[^\w\s]", "", text.lower()).strip()
    return {"sent_id": sent_id, "raw": text, "sent": sent, "tokens": sent.split()}


class ReferWriter:
    """Collects images, objects and references, and writes them as a folder of REFER."""

    def __init__(self, root: Path, images: str = COCO_IMAGES, first_image_id: int = 9) -> None:
        self.root, self.images_folder = Path(root), Path(root) / images
        self.images_folder.mkdir(parents=True, exist_ok=True)
        self.images: list[dict] = []
        self.annotations: list[dict] = []
        self.refs: list[dict] = []
        self.sent_id = 0
        self.first_image_id = first_image_id

    def add_image(self, image: np.ndarray) -> int:
        """Write an image and return its id."""
        image_id = self.first_image_id + len(self.images)
        name = f"COCO_train2014_{image_id:012d}.jpg"
        Image.fromarray(image).save(self.images_folder / name, quality=95)
        height, width = image.shape[:2]
        self.images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        return image_id

    def add_object(self, image_id: int, mask: Any) -> int:
        """Note an object and return its id."""
        segmentation = [encode_mask(mask)] if isinstance(mask, np.ndarray) else mask
        ann_id = 100 + len(self.annotations)
        self.annotations.append(
            {
                "id": ann_id,
                "image_id": image_id,
                "category_id": 1,
                "bbox": [0.0, 0.0, 1.0, 1.0],
                "area": 1.0,
                "iscrowd": int(isinstance(segmentation, dict)),
                "segmentation": segmentation,
            }
        )
        return ann_id

    def add_ref(self, image_id: int, ann_id: int | list[int], expressions: list[str], split: str) -> dict:
        """Note a reference; `ann_id` is a list for gRefCOCO."""
        sentences = [sentence(text, self.sent_id + number) for number, text in enumerate(expressions)]
        self.sent_id += len(sentences)
        ref = {
            "ref_id": len(self.refs),
            "ann_id": ann_id,
            "image_id": image_id,
            "category_id": [1] * len(ann_id) if isinstance(ann_id, list) else 1,
            "file_name": f"COCO_train2014_{image_id:012d}_{len(self.refs)}.jpg",  # of no file, as in the originals
            "split": split,
            "sent_ids": [entry["sent_id"] for entry in sentences],
            "sentences": sentences,
        }
        if isinstance(ann_id, list):
            ref["no_target"] = ann_id == [-1]
        self.refs.append(ref)
        return ref

    def write(self, folder: str = "refcoco", refs: str = "refs(unc).p") -> Path:
        """Write the files of annotations and return the root."""
        target = self.root / folder
        target.mkdir(parents=True, exist_ok=True)
        instances = {
            "info": {},
            "licenses": [],
            "images": self.images,
            "annotations": self.annotations,
            "categories": [{"id": 1, "name": "thing", "supercategory": "thing"}],
        }
        (target / "instances.json").write_text(json.dumps(instances))
        if refs.endswith(".json"):
            (target / refs).write_text(json.dumps(self.refs))
        else:
            (target / refs).write_bytes(pickle.dumps(self.refs, protocol=2))
        return self.root


def write_refer(
    root: Path,
    scenes: Mapping[str, Iterable[Scene]],
    *,
    folder: str = "refcoco",
    refs: str = "refs(unc).p",
    images: str = COCO_IMAGES,
) -> Path:
    """Write scenes, by split, as a data set of REFER; return the root.

    Masks may be (height, width) arrays (kept as run lengths) or segmentations of COCO.
    """
    writer = ReferWriter(root, images)
    for split, of_split in scenes.items():
        for image, things in of_split:
            image_id = writer.add_image(image)
            for mask, expressions in things:
                writer.add_ref(image_id, writer.add_object(image_id, mask), expressions, split)
    return writer.write(folder, refs)


def photo(height: int = 24, width: int = 32, seed: int = 0) -> np.ndarray:
    """(height, width, 3) uint8 noise."""
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def box(x: float, y: float, width: float, height: float) -> list[float]:
    """A rectangle as a polygon of COCO."""
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def write_full_size(root: Path) -> Path:
    """A RefCOCO of full size whose images are empty files.

    Of its objects, as in the original, only a quarter is referred to; of these every hundredth is a crowd.
    """
    images, referred, others, expressions = 19_994, 50_000, 146_771, 142_209
    rng = np.random.default_rng(0)
    writer = ReferWriter(root)
    for image_id in range(images):
        name = f"COCO_train2014_{image_id:012d}.jpg"
        (writer.images_folder / name).touch()
        writer.images.append({"id": image_id, "file_name": name, "height": 480, "width": 640, "license": 1})
    splits = np.repeat(["train", "val", "testA", "testB"], [referred - 7596, 3811, 1975, 1810])
    said = np.diff(np.linspace(0, expressions, referred + 1).astype(int))
    crowd = {"size": [480, 640], "counts": [1000, 480 * 640 - 2000, 1000]}
    for number in range(referred):
        polygon = rng.uniform(0, 480, 2 * (20 + number % 21)).round(2).tolist()
        ann_id = writer.add_object(number % images, [polygon] if number % 100 else crowd)
        texts = [f"the {number} thing on the left of {each}" for each in range(said[number])]
        writer.add_ref(number % images, ann_id, texts, str(splits[number]))
    for number in range(others):
        writer.add_object(number % images, [polygon])
    return writer.write()


def png_of_16_bits(values: np.ndarray) -> bytes:
    """A PNG of (height, width, channels), 1 grey, 2 with alpha, 3 RGB, 4 with alpha, which Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
