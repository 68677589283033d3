# /// script
# dependencies = ["numpy", "onnxruntime", "pillow", "tokenizers"]
# ///
"""Segment with an exported network: neither torch nor Transformers nor this package is needed.

crossvlt export --output exported
python examples/onnx_without_torch.py exported photo.jpg "the white cup" "the spoon" --output masks
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from tokenizers import Tokenizer


def read(path: Path) -> Image.Image:
    """The upright image of 8 bits; what is transparent shows white."""
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode == "F" or image.mode.startswith("I"):  # Pillow would clip these to 255
        values, hidden = np.asarray(image, dtype=np.float64), image.info.get("transparency")
        white = 65535 if image.mode.startswith("I;16") or values.max() > 255 else 255
        if white == 65535 and 0 < values.max() < 1020:
            raise SystemExit(f"{path} has 16 bits but looks like an image of 8 bits; save it as such.")
        grey = np.where(values == hidden, 255, (values.clip(0, white) * (255 / white)).round())
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert({"La": "LA"}.get(image.mode, "RGBA")).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def pixels(image: Image.Image, summary: dict) -> np.ndarray:
    """The image squashed and normalised: (1, 3, height, width) float32."""
    height, width = summary["image_size"]
    values = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), dtype=np.float32) / 255
    mean, std = (np.array(summary[name], dtype=np.float32) for name in ("image_mean", "image_std"))
    return ((values - mean) / std).transpose(2, 0, 1)[None]


def words(folder: Path, expressions: list[str], summary: dict) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and what of them is no padding: (expressions, tokens) int64 each."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(summary["max_tokens"])
    tokenizer.enable_padding(length=summary["max_tokens"], pad_id=summary["pad_token_id"])
    encoded = tokenizer.encode_batch(expressions)
    for expression, entry in zip(expressions, encoded, strict=True):
        if all(entry.special_tokens_mask):
            raise SystemExit(f"An expression must describe an object, got {expression!r}, which has no tokens.")
    return np.array([entry.ids for entry in encoded]), np.array([entry.attention_mask for entry in encoded])


def interpolation(source: int, target: int) -> np.ndarray:
    """Bilinear resizing of an axis (corners not aligned) as a (target, source) matrix."""
    position = ((np.arange(target, dtype=np.float32) + 0.5) * (source / target) - 0.5).clip(0, source - 1)
    return (1 - abs(position[:, None] - np.arange(source, dtype=np.float32))).clip(0).astype(np.float32)


def main() -> None:
    """A mask of the image's own size for each expression."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what `crossvlt export` wrote")
    parser.add_argument("image", type=Path)
    parser.add_argument("expressions", nargs="+")
    parser.add_argument("--output", type=Path, default=Path("masks"))
    arguments = parser.parse_args()

    summary = json.loads((arguments.folder / "export.json").read_text())
    session = onnxruntime.InferenceSession(arguments.folder / summary["file"], providers=["CPUExecutionProvider"])
    image = read(arguments.image)
    ids, mask = words(arguments.folder, arguments.expressions, summary)
    repeated = pixels(image, summary).repeat(len(ids), axis=0)  # a copy of the image for each expression
    names = list(summary["outputs"])
    inputs = {"pixel_values": repeated, "input_ids": ids, "attention_mask": mask}
    outputs = dict(zip(names, session.run(names, inputs), strict=True))

    margins = outputs["logits"][:, 1] - outputs["logits"][:, 0]
    rows, columns = (interpolation(*sizes) for sizes in zip(margins.shape[1:], image.size[::-1], strict=True))
    arguments.output.mkdir(parents=True, exist_ok=True)
    for number, (expression, margin) in enumerate(zip(arguments.expressions, margins, strict=True), start=1):
        target = arguments.output / f"{arguments.image.stem}-{number}.png"
        found = rows @ margin @ columns.T > 0
        line = {"expression": expression}
        if "presence_logits" in outputs:  # the probability that something fits
            line["presence"] = float(1 / (1 + np.exp(-outputs["presence_logits"][number - 1])))
            found &= line["presence"] >= summary["presence_threshold"]
        Image.fromarray(found.astype(np.uint8) * 255).save(target)
        print(json.dumps({**line, "pixels": int(found.sum()), "mask": str(target)}))


if __name__ == "__main__":
    main()
