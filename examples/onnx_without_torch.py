# /// script
# dependencies = ["numpy", "onnxruntime", "pillow", "tokenizers"]
# ///
"""Segment with an exported network: neither torch nor Transformers nor this package is needed.

crossvlt export --output exported
python examples/onnx_without_torch.py exported photo.jpg "the white cup" "the spoon" --output masks
"""

import argparse
import json
import sys
import unicodedata
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from tokenizers import Tokenizer


LEAST_OF_16_BITS = 4096  # below this, an image of 0 to 65535 is nearly black in 8 bits


def read(path: Path) -> Image.Image:
    """The upright image of 8 bits, as the package reads it; what is transparent shows white."""
    try:
        image = Image.open(path)
        deep = ";16" in str(image.tile) and image.mode in ("RGB", "RGBA", "LA")  # of which Pillow keeps the upper 8
        image.load()
    except Exception as error:  # of any kind, for damaged files
        raise SystemExit(f"{path} cannot be read as an image: {error}") from error
    if deep and max(high for _, high in image.getextrema()[:3]) < LEAST_OF_16_BITS >> 8:
        raise SystemExit(f"{path} has 16 bits but looks like an image of 8 to 12 bits; save it in 8 bits.")
    with suppress(Exception):  # of any kind, for damaged EXIF data
        image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):  # Pillow would clip these to 255
        values, hidden = np.asarray(image), image.info.get("transparency")
        white = white_of(path, values)
        grey = (values.astype(np.float64).clip(0, white) * (255 / white)).round()
        return Image.fromarray(np.where(values == hidden, 255, grey).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert({"La": "LA"}.get(image.mode, "RGBA")).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def white_of(path: Path, values: np.ndarray) -> int:
    """The value of white in floats and in integers of more than 8 bits: 1, 255 or 65535."""
    low, high, floats = values.min(), values.max(), values.dtype.kind == "f"
    if values.dtype.char == "H":
        if 0 < high < LEAST_OF_16_BITS:
            raise SystemExit(f"{path} has 16 bits but looks like an image of 8 to 12 bits; save it in 8 bits.")
        return 65535
    slack = 0.01 if floats else 0
    if low >= -slack and floats and high <= 1 + slack:
        return 1
    if low >= -slack and high <= 255 + slack and (not floats or high >= 4 or (values % 1 == 0).all()):
        return 255
    if low >= -slack and LEAST_OF_16_BITS <= high <= 65535:
        return 65535
    raise SystemExit(f"{path} must be from 0 to 1 (floats), 0 to 255 or 0 to 65535, got values from {low} to {high}.")


def pixels(image: Image.Image, summary: dict) -> np.ndarray:
    """The image squashed and normalised: (1, 3, height, width) float32."""
    height, width = summary["image_size"]
    resample = Image.Resampling[summary["resample"].upper()]
    values = np.asarray(image.resize((width, height), resample), dtype=np.float32) / 255
    mean, std = (np.array(summary[name], dtype=np.float32) for name in ("image_mean", "image_std"))
    return ((values - mean) / std).transpose(2, 0, 1)[None]


def words(folder: Path, expressions: list[str], summary: dict) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and what of them is no padding: (expressions, tokens) int64 each. Tells what is not read."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True  # "[PAD]" in an expression is text
    for expression in expressions:
        if note := reading_note(tokenizer, expression, summary["max_tokens"]):
            print(note, file=sys.stderr)
    tokenizer.enable_truncation(summary["max_tokens"])
    tokenizer.enable_padding(length=summary["max_tokens"], pad_id=summary["pad_token_id"])
    encoded = tokenizer.encode_batch(expressions)
    return np.array([entry.ids for entry in encoded]), np.array([entry.attention_mask for entry in encoded])


def reading_note(tokenizer: Tokenizer, expression: str, longest: int) -> str | None:
    """A sentence about words that the vocabulary does not have, and about an expression that is cut."""
    whole = tokenizer.encode(expression, add_special_tokens=False)
    if not whole.ids:
        raise SystemExit(f"An expression must describe an object, got {expression!r}, which has no tokens.")
    known = [token != getattr(tokenizer.model, "unk_token", None) for token in whole.tokens]
    count = longest - tokenizer.num_special_tokens_to_add(is_pair=False)
    parts = [
        expression[start:end] for (start, end), is_known in zip(whole.offsets, known, strict=True) if not is_known
    ]
    unknown = [part for part in dict.fromkeys(parts) if any(is_of_a_word(character) for character in part)]
    notes = []
    if unknown or not any(known[:count]):
        nothing = "" if any(known[:count]) else ", nor any other part of it"
        notes.append(f"the vocabulary does not know {', '.join(map(repr, unknown or [expression.strip()]))}{nothing}")
    if len(whole.ids) > count:
        kept = expression[whole.offsets[0][0] : whole.offsets[count - 1][1]].strip()
        notes.append(f"it is too long, and only {kept!r} is read")
    return f"The expression {expression!r} is not read completely: {'; '.join(notes)}." if notes else None


def is_of_a_word(character: str) -> bool:
    """Whether it is a letter, a digit or an emoji."""
    category = unicodedata.category(character)
    return category[0] in "LN" or category == "So"


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
