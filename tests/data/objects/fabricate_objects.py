"""Writes labelled pictures in the forms that people have."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from crossvlt_hf.data.masks import encode_mask


HEIGHT, WIDTH = 60, 80
# Label, colour and box of each object; a box is left, top, right and bottom in pixels
SCENE = (
    ("cup", (205, 25, 35), (5, 20, 25, 40)),
    ("cup", (40, 80, 200), (55, 20, 75, 40)),
    ("dog", (115, 65, 35), (30, 42, 52, 56)),
)
CLASSES = ("cup", "dog", "cat", "horse")


def picture() -> Image.Image:
    image = np.full((HEIGHT, WIDTH, 3), 230, dtype=np.uint8)
    for _, colour, (left, top, right, bottom) in SCENE:
        image[top:bottom, left:right] = colour
    return Image.fromarray(image)


def mask(number: int) -> np.ndarray:
    left, top, right, bottom = SCENE[number][2]
    found = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    found[top:bottom, left:right] = 1
    return found


def corners(number: int) -> list[float]:
    left, top, right, bottom = SCENE[number][2]
    return [left, top, right, top, right, bottom, left, bottom]


def write_coco(root: Path, images: int = 2, **extra) -> Path:
    (root / "images").mkdir(parents=True)
    table = {"images": [], "annotations": [], "categories": [{"id": 7 + n, "name": c} for n, c in enumerate(CLASSES)]}
    for image_id in range(1, images + 1):
        picture().save(root / "images" / f"{image_id:03d}.png")
        table["images"].append({"id": image_id, "file_name": f"{image_id:03d}.png", "height": HEIGHT, "width": WIDTH})
        for number, (label, _, _) in enumerate(SCENE):
            segmentation = encode_mask(mask(number)) if number == 1 else [corners(number)]
            table["annotations"].append(
                {
                    "id": image_id * 10 + number,
                    "image_id": image_id,
                    "category_id": 7 + CLASSES.index(label),
                    "segmentation": segmentation,
                    "iscrowd": 0,
                    **extra,
                }
            )
    path = root / "instances.json"
    path.write_text(json.dumps(table))
    return path


def write_yolo(root: Path) -> Path:
    (root / "images" / "train").mkdir(parents=True)
    (root / "labels" / "train").mkdir(parents=True)
    picture().save(root / "images" / "train" / "a.png")
    lines = []
    for number, (label, _, _) in enumerate(SCENE):
        shares = [value / (WIDTH if place % 2 == 0 else HEIGHT) for place, value in enumerate(corners(number))]
        lines.append(" ".join([str(CLASSES.index(label)), *(f"{share:.6f}" for share in shares)]))
    (root / "labels" / "train" / "a.txt").write_text("\n".join(lines) + "\n")
    names = "\n".join(f"  {number}: {name}" for number, name in enumerate(CLASSES))
    (root / "data.yaml").write_text(f"path: .\ntrain: images/train\nnames:\n{names}\n")
    return root


def write_labelme(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    picture().save(root / "a.png")
    shapes = [
        {
            "label": label,
            "points": np.reshape(corners(number), (-1, 2)).tolist(),
            "group_id": None,
            "shape_type": "polygon",
            "flags": {},
        }
        for number, (label, _, _) in enumerate(SCENE)
    ]
    left, top, right, bottom = SCENE[2][2]
    shapes[2] |= {"points": [[left, top], [right, bottom]], "shape_type": "rectangle"}
    table = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": "a.png", "imageData": None}
    (root / "a.json").write_text(json.dumps(table | {"imageHeight": HEIGHT, "imageWidth": WIDTH}))
    return root


def write_voc(root: Path) -> Path:
    for name in ("JPEGImages", "SegmentationClass", "SegmentationObject", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    picture().save(root / "JPEGImages" / "a.jpg", quality=95)
    classes, instances = np.zeros((HEIGHT, WIDTH), dtype=np.uint8), np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    for number, value in enumerate((5, 5, 12)):  # two bottles and a dog
        left, top, right, bottom = SCENE[number][2]
        for table, inner in ((classes, value), (instances, number + 1)):
            table[top:bottom, left:right] = 255
            table[top + 1 : bottom - 1, left + 1 : right - 1] = inner
    for name, table in (("SegmentationClass", classes), ("SegmentationObject", instances)):
        image = Image.fromarray(table)
        image.putpalette([level for level in range(256) for _ in range(3)])
        image.save(root / name / "a.png")
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("a\n")
    return root


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, format="PNG")
    return file.getvalue()


def hub_row() -> dict:
    """A row with a list of objects whose masks are PNG files."""
    objects = [{"class": label, "mask": png(mask(n) * 255)} for n, (label, _, _) in enumerate(SCENE)]
    return {"image": png(np.asarray(picture())), "objects": objects, "exhaustive": True}
