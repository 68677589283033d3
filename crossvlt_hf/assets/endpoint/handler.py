"""Handler for Hugging Face Inference Endpoints, published beside the weights; it does not import this package."""

import base64
import io
from typing import Any

from PIL import Image
from transformers import pipeline


USAGE = 'A request must be {"inputs": {"image": base64 of an image file, "text": expression or list of expressions}}.'
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
UNREADABLE = f"`image` must be base64 of an image file ({', '.join(FORMATS)})."
MAX_PIXELS = 50_000_000
MAX_EXPRESSIONS = 64


class EndpointHandler:
    """Answer requests `{"inputs": {"image": ..., "text": ...}, "parameters": {"threshold": 0.5}}`.

    `image` is base64 of an image file, or a `data:` URL; paths and other URLs are refused. `text` is an expression or
    a list of them. The answer is a list with `label`, `score`, `box` and `mask` (base64 of a PNG of the image's
    size, 255 on the object) for each, and `presence` with a presence head. Below the parameter `presence_threshold`
    (0.5 by default), masks are empty; with null, none are.
    """

    def __init__(self, path: str = "") -> None:
        # The type hints of `pipeline` only have the tasks of Transformers
        task: Any = "referring-image-segmentation"
        self.segmenter: Any = pipeline(task, model=path, trust_remote_code=True)

    def __call__(self, data: dict[str, Any]) -> list[dict[str, Any]]:
        """Answer a request.

        Raises:
            ValueError: if the request is invalid, or the image cannot be read.
        """
        inputs = data.get("inputs") if isinstance(data, dict) else None
        if not isinstance(inputs, dict) or not inputs.keys() >= {"image", "text"}:
            raise ValueError(USAGE)
        text = inputs["text"]
        if isinstance(text, list) and len(text) > MAX_EXPRESSIONS:
            raise ValueError(f"There are {len(text)} expressions; the limit is {MAX_EXPRESSIONS}.")
        image, thresholds = _read(inputs["image"]), _thresholds(data.get("parameters"))
        try:
            results = self.segmenter(image, text=text, **thresholds)
        except OSError as error:
            raise ValueError(UNREADABLE) from error
        return [{**result, "mask": _to_base64(result["mask"])} for result in results]


def _thresholds(parameters: Any) -> dict[str, float | None]:
    parameters = parameters or {}
    if not isinstance(parameters, dict) or parameters.keys() - {"threshold", "presence_threshold"}:
        raise ValueError("`parameters` must have only `threshold` and `presence_threshold`, numbers between 0 and 1.")
    for name, value in parameters.items():
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise ValueError(f"`{name}` must be a number between 0 and 1, got {value!r:.40}.")
    return parameters


def _read(image: Any) -> Image.Image:
    """Open the image. The pipeline decodes it, after a check of its bit depth."""
    if not isinstance(image, str):
        raise ValueError(f"`image` must be base64 of an image file, got a {type(image).__name__}.")
    code = "".join((image.partition(",")[2] if image.startswith("data:") else image).split())
    try:
        opened = Image.open(io.BytesIO(base64.b64decode(code, validate=True)), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ValueError(f"The image has more than {MAX_PIXELS:,} pixels.") from error
    except Exception as error:  # Pillow's readers raise any exception on corrupt files
        raise ValueError(UNREADABLE) from error
    if opened.width * opened.height > MAX_PIXELS:
        raise ValueError(f"The image has {opened.width}x{opened.height} pixels; the limit is {MAX_PIXELS:,}.")
    return opened


def _to_base64(mask: Image.Image) -> str:
    buffer = io.BytesIO()
    mask.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()
