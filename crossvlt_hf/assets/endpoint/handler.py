"""Handler of Hugging Face Inference Endpoints; published beside the weights, so it imports nothing of the package."""

import base64
import io
from typing import Any

from PIL import Image
from transformers import pipeline


USAGE = 'Give {"inputs": {"image": base64 of an image file, "text": expression or list of expressions}}.'
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
UNREADABLE = f"`image` is not base64 of an image file ({', '.join(FORMATS)})."
MAX_PIXELS = 50_000_000
MAX_EXPRESSIONS = 64


class EndpointHandler:
    """Answers `{"inputs": {"image": ..., "text": ...}, "parameters": {"threshold": 0.5}}`.

    `image` is base64 of an image file, also as a `data:` URL; `text` an expression or a list of them. The answer is a
    list with `label`, `score`, `box` and `mask` (base64 of a PNG of the image's size, 255 on the object) for each, and
    with a presence head `presence`; the parameter `presence_threshold` says from where on a mask is drawn. It opens no
    file and no address that a request names.
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
        inputs = data.get("inputs") if isinstance(data, dict) else None
        if not isinstance(inputs, dict) or not inputs.keys() >= {"image", "text"}:
            raise ValueError(USAGE)
        text = inputs["text"]
        if isinstance(text, list) and len(text) > MAX_EXPRESSIONS:
            raise ValueError(f"There are {len(text)} expressions; {MAX_EXPRESSIONS} are the most.")
        image, thresholds = _read(inputs["image"]), _thresholds(data.get("parameters"))
        try:
            results = self.segmenter(image, text=text, **thresholds)
        except OSError as error:
            raise ValueError(UNREADABLE) from error
        return [{**result, "mask": _to_base64(result["mask"])} for result in results]


def _thresholds(parameters: Any) -> dict[str, float]:
    parameters = parameters or {}
    if not isinstance(parameters, dict) or parameters.keys() - {"threshold", "presence_threshold"}:
        raise ValueError("The parameters are `threshold` and `presence_threshold`, numbers between 0 and 1.")
    given = {name: value for name, value in parameters.items() if value is not None}
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"`{name}` is {value!r:.40}; give a number between 0 and 1.")
    return given


def _read(image: Any) -> Image.Image:
    """The image, opened; the pipeline loads its pixels, as it looks at their depth before."""
    if not isinstance(image, str):
        raise ValueError(f"`image` is of type {type(image).__name__}; give base64 of an image file.")
    code = "".join((image.partition(",")[2] if image.startswith("data:") else image).split())
    try:
        opened = Image.open(io.BytesIO(base64.b64decode(code, validate=True)), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ValueError(f"The image has more than {MAX_PIXELS:,} pixels.") from error
    except Exception as error:  # Pillow's readers raise any exception on corrupt files
        raise ValueError(UNREADABLE) from error
    if opened.width * opened.height > MAX_PIXELS:
        raise ValueError(f"The image has {opened.width}x{opened.height} pixels; {MAX_PIXELS:,} are the most.")
    return opened


def _to_base64(mask: Image.Image) -> str:
    buffer = io.BytesIO()
    mask.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()
