"""Handler of Hugging Face Inference Endpoints; published beside the weights, so it imports nothing of the package."""

import base64
import binascii
import io
from typing import Any

from PIL import Image
from transformers import pipeline


class EndpointHandler:
    """Answers `{"inputs": {"image": ..., "text": ...}, "parameters": {"threshold": 0.5}}`.

    `image` is base64 of an image file, or an http(s) URL; `text` an expression or a list of them. The answer is a list
    with `label`, `score`, `box` and `mask` (base64 of a PNG of the image's size, 255 on the object) for each.
    """

    def __init__(self, path: str = "") -> None:
        # For its types there are only Transformers' own tasks
        task: Any = "referring-image-segmentation"
        self.segmenter: Any = pipeline(task, model=path, trust_remote_code=True)

    def __call__(self, data: dict[str, Any]) -> list[dict[str, Any]]:
        """Segment.

        Raises:
            ValueError: if the request is not as above, or the image cannot be read.
        """
        inputs = data.get("inputs")
        if not isinstance(inputs, dict) or not inputs.keys() >= {"image", "text"}:
            raise ValueError('Give {"inputs": {"image": base64 or URL, "text": expression or list of expressions}}.')
        results = self.segmenter(_read(inputs["image"]), text=inputs["text"], **(data.get("parameters") or {}))
        return [{**result, "mask": _to_base64(result["mask"])} for result in results]


def _read(image: Any) -> Any:
    """A URL as it is, anything else as base64: a path of the server is never opened."""
    if not isinstance(image, str):
        raise ValueError(f"`image` is of type {type(image).__name__}; give base64 of an image file, or its URL.")
    if image.startswith(("http://", "https://")):
        return image
    try:
        opened = Image.open(io.BytesIO(base64.b64decode(image, validate=True)))
        opened.load()
    except (binascii.Error, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"`image` is not base64 of an image file: {error}") from error
    return opened


def _to_base64(mask: Image.Image) -> str:
    buffer = io.BytesIO()
    mask.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()
