"""Pipeline `referring-image-segmentation`: images and expressions in, masks at the images' own size out."""

import warnings
from collections.abc import Iterable, Iterator, Sequence, Sized
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from transformers.pipelines.base import ChunkPipeline

from .configuration_crossvlt import take_hub_options
from .modeling_crossvlt import evaluating
from .processing_crossvlt import (
    ImageLike,
    ReadExpression,
    check_min_area,
    check_threshold,
    pair_expressions,
    reading_note,
    resolve_presence_threshold,
    to_rgb,
    to_rgb_together,
)


RESULT_OPTIONS = ("threshold", "presence_threshold", "largest_part", "instances", "min_area", "return_probabilities")
EXPRESSIONS_TOGETHER = 8  # of one image, where no `batch_size` is given: their memory grows with their number


class ReferringImageSegmentationPipeline(ChunkPipeline):
    """Segment in an image the objects that expressions refer to.

    Example:
    ```python
    >>> from transformers import pipeline
    >>> import crossvlt_hf

    >>> segmenter = pipeline("referring-image-segmentation", model="path/to/checkpoint")
    >>> segmenter("coffee.jpg", text=["the white cup", "the spoon"])
    [{'label': 'the white cup', 'score': 0.93, 'mask': <PIL.Image.Image ...>, 'box': {'xmin': 172, ...}}, ...]
    ```
    """

    _load_processor: Any = True
    _load_image_processor: Any = False
    _load_feature_extractor: Any = False
    _load_tokenizer: Any = False
    processor: Any
    model: Any

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        """Join a model and its processor.

        Args:
            model: a `CrossVLTModel`.
            args: see [`Pipeline`].
            kwargs: the same, `processor` among them, a `CrossVLTProcessor`, and options of a call.

        Raises:
            ValueError: if one of the two is missing or something else; says what must be given.
        """
        # by what they have, as classes differ where the code comes out of a checkpoint folder
        if not hasattr(getattr(model, "config", None), "presence_head"):
            load = "such as `CrossVLTModel.from_pretrained(checkpoint)`"
            raise ValueError(f"`model` must be a CrossVLTModel, {load}, got {type(model).__name__}.")
        super().__init__(model, *args, **kwargs)
        if not hasattr(self.processor, "read_expressions"):
            parts = {"tokenizer": self.tokenizer, "image_processor": self.image_processor}
            given = ", ".join(f"`{name}`" for name, part in parts.items() if part is not None)
            none = f"{given} alone" if given else "none"
            got = none if self.processor is None else type(self.processor).__name__
            raise ValueError(
                "`processor` must be a CrossVLTProcessor, which has the image processor and the tokenizer, such as "
                "`CrossVLTProcessor.from_pretrained(checkpoint)` or `CrossVLTProcessor(image_processor, tokenizer)`, "
                f"got {got}."
            )

    def __call__(
        self, image: Any, text: str | Sequence[str] | Sequence[Sequence[str]] | None = None, **kwargs: Any
    ) -> Any:
        """Segment.

        Args:
            image: an image (path, URL, PIL image, array, tensor), with `text` given; a list, generator or dataset of
                images, with `text` one expression for all, or a list with an expression or a list of expressions for
                each; or, without `text`, a dict `{"image": ..., "text": ...}`, or a list, generator or dataset of
                such dicts.
            text: the expressions, where they are not in `image`.
            kwargs: `threshold`, `largest_part`, `instances`, `min_area` and `return_probabilities` (see
                `CrossVLTProcessor.post_process_masks`), `presence_threshold` (the same; "auto", the default, is 0.5
                for a model with a presence head), `batch_size` (pairs of image and expression that go through the
                model together, where consecutive ones share their image; 1, or 8 for the expressions of a single
                image), `timeout` in seconds for URLs.

        Returns:
            For one image a list with one dict for each of its expressions, in their order: "label" (the expression),
            "text_read" (the part of it that the model read: all of it, unless it is too long), "unknown_words" (list
            of the words that the vocabulary does not know), "score" (expected IoU of the mask where the checkpoint
            has a score calibration, else the mean probability of the object over it; 0.0 if it is empty), "mask" (PIL
            image of mode "L", 255 on the object, of the image's own upright size), "box" (dict of xmin, ymin, xmax,
            ymax in pixels, the maxima exclusive; None if the mask is empty), with `largest_part` "parts" (number of
            connected parts that were found, those left out included), with a presence head "presence" (probability
            that something fits) and, on request, "instances" (the separate parts of the mask, from the
            largest: "mask", "box" and "area" in pixels of each) and "probabilities" (float32 array, (height, width),
            0 to 1). For a list a list of these; for a generator or dataset an iterator over these. A warning says
            which expressions are not read as they are.

        Raises:
            OSError: if an image cannot be read.
            ValueError: if images and expressions do not fit each other.
        """
        if isinstance(image, np.ndarray | Tensor) and image.ndim == 4:
            image = list(image)
        if isinstance(image, list | tuple):
            rows = _of_one_range(image)
            rows = list(rows if text is None or not rows else _with_text(rows, _groups(text, len(rows))))
            return super().__call__(rows, **kwargs) if rows else []
        if _is_stream(image):
            length = len(image) if isinstance(image, Sized) else None
            stream = _stream(image) if text is None else _with_text(_stream(image), _groups(text, length))
            return super().__call__(stream, **kwargs)
        if text is not None and isinstance(image, dict):
            raise ValueError("`text` is given twice, in the dict and beside it; give it once.")
        pair = image if text is None else next(_with_text([image], pair_expressions(1, text)))
        kwargs.setdefault("batch_size", self._batch_size or EXPRESSIONS_TOGETHER)
        return super().__call__([pair], **kwargs)[0]

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        if unknown := kwargs.keys() - {"timeout", *RESULT_OPTIONS}:
            names = f"text, {', '.join(RESULT_OPTIONS)}, timeout and batch_size"
            raise ValueError(f"The pipeline has no option {sorted(unknown)[0]!r}; it has {names}.")
        check_threshold(kwargs.get("threshold"))
        for name in ("largest_part", "instances", "return_probabilities"):
            if not isinstance(kwargs.get(name, False), bool):
                raise ValueError(f"`{name}` must be True or False, got {kwargs[name]!r}.")
        preprocess = {"timeout": kwargs["timeout"]} if "timeout" in kwargs else {}
        forward = {name: kwargs[name] for name in RESULT_OPTIONS if name in kwargs}
        options = {**getattr(self, "_forward_params", {}), **forward}  # with those of the constructor
        check_min_area(options.get("instances", False), options.get("min_area"))
        resolve_presence_threshold(options.get("presence_threshold", "auto"), self.model.config.presence_head)
        return preprocess, forward, {}

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Save the model and its processor, from which the pipeline can be made again.

        Transformers' own would leave the processor out and bind the folder to a copy of this file.

        Args:
            save_directory: folder; it is made where there is none.
            push_to_hub: whether to upload all of it, as a repository `repo_id`, or of the folder's name.
            kwargs: of the model's `save_pretrained`, and of `push_to_hub`.
        """
        options = take_hub_options(save_directory, kwargs) if push_to_hub else {}
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)
        if push_to_hub:
            self.push_to_hub(**options)

    def preprocess(self, inputs: dict[str, Any], timeout: float | None = 60.0) -> Iterator[dict[str, Any]]:
        """One chunk for each expression; the image is prepared once."""
        if not isinstance(inputs, dict) or "image" not in inputs or inputs.get("text") is None:
            what = f"dict of {sorted(inputs)}" if isinstance(inputs, dict) else type(inputs).__name__
            usage = 'give an image and `text`, or a dict {"image": ..., "text": ...}'
            raise ValueError(f"An input is a {what}; {usage}.")
        (expressions,) = pair_expressions(1, inputs["text"])
        image: ImageLike = to_rgb(inputs["image"], timeout)
        prepared = self.processor(image, return_tensors="pt").to(self.dtype)
        for index, read in enumerate(self.processor.read_expressions(expressions)):
            words = self.processor(text=[expressions[index]], return_tensors="pt")
            place = {"is_first": index == 0, "is_last": index == len(expressions) - 1}
            yield {**place, "begun": _begin_result(expressions[index], read), **prepared, **words}

    def forward(self, model_inputs: dict[str, Any], **forward_params: Any) -> Any:
        """Predict; a model that is being trained does so as if it were not, and goes on training."""
        with evaluating(self.model):
            return super().forward(model_inputs, **forward_params)

    def _forward(
        self,
        model_inputs: dict[str, Any],
        threshold: float | None = None,
        presence_threshold: Any = "auto",
        **options: Any,
    ) -> dict[str, Any]:
        """The results of a chunk, or of a batch of them: masks, which are kept, are smaller than logits."""
        is_first, is_last, begun, sizes = map(model_inputs.pop, ("is_first", "is_last", "begun", "original_sizes"))
        batched = isinstance(is_first, list)
        if batched:  # every image is needed once
            first = [row for row, starts in enumerate(is_first) if starts or row == 0]
            counts = torch.tensor([*first[1:], len(is_first)]) - torch.tensor(first)
            model_inputs["pixel_values"] = model_inputs["pixel_values"][first]
            model_inputs["expressions_per_image"] = counts.to(self.device)
        output = self.model(**model_inputs, return_dict=True)
        least = resolve_presence_threshold(presence_threshold, self.model.config.presence_head)
        found = self.processor.post_process_masks(output, sizes, threshold, presence_threshold=least, **options)
        results = list(map(_end_result, begun if batched else [begun], found))
        if options.get("largest_part"):
            for result, each in zip(results, found, strict=True):
                result["parts"] = each["parts"]
        return {"is_last": is_last, "result": results if batched else results[0]}

    def postprocess(self, model_outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """One result for each expression of an image."""
        return [output["result"] for output in model_outputs]


def _of_one_range(rows: Sequence[Any]) -> list[Any]:
    """Images, or dicts with one, whose numbers are read together: what is 0 to 1 and what 0 to 255 is told by all."""
    rows = list(rows)
    images = {n: row.get("image") if isinstance(row, dict) else row for n, row in enumerate(rows)}
    numbers = {n: image for n, image in images.items() if _holds_numbers(image)}
    for (n, row), read in zip(((n, rows[n]) for n in numbers), to_rgb_together(list(numbers.values())), strict=True):
        rows[n] = {**row, "image": read} if isinstance(row, dict) else read
    return rows


def _holds_numbers(image: Any) -> bool:
    """Whether it is an image of numbers whose range is judged of all images of a call."""
    deep = isinstance(image, Image.Image) and (image.mode == "F" or image.mode.startswith("I"))
    return deep or isinstance(image, np.ndarray | Tensor)


def _is_stream(image: Any) -> bool:
    """Whether it is a dataset, a generator or another iterable of images or rows, no image or row itself."""
    return isinstance(image, Dataset) or (
        isinstance(image, Iterable) and not isinstance(image, dict | str | bytes | np.ndarray | Tensor | Image.Image)
    )


def _stream(images: Any) -> Any:
    if isinstance(images, Dataset) and hasattr(images, "__len__"):
        return (images[index] for index in range(len(images)))  # iteration over it need not end
    return images if isinstance(images, Dataset) else (row for row in images)  # a data set of another library


def _groups(text: Any, length: int | None) -> Iterable[list[str]]:
    """The expressions of each of `length` images; None means that nobody knows yet how many they are."""
    if length is not None:
        return pair_expressions(length, text)
    if isinstance(text, list | tuple):
        return pair_expressions(len(text), text)
    return repeat(pair_expressions(1, text)[0])


def _with_text(images: Iterable, groups: Iterable[list[str]]) -> Iterator[dict[str, Any]]:
    """Rows of images, or of dicts with an image, and their expressions."""
    counts = "There are not as many images as (lists of) expressions; give one or one list for each."
    left = iter(groups)
    for image in images:
        expressions = next(left, None)
        if expressions is None:
            raise ValueError(counts)
        row = image if isinstance(image, dict) else {"image": image}
        if row.get("text") is not None:
            raise ValueError("`text` is given twice, in the dict and beside it; give it once.")
        yield {**row, "text": expressions}
    if isinstance(groups, list) and next(left, None) is not None:
        raise ValueError(counts)


def _begin_result(expression: str, read: ReadExpression) -> dict[str, Any]:
    """What is known of a result before the model has seen the image."""
    if note := reading_note(expression, read):
        warnings.warn(note, stacklevel=2)
    return {"label": expression, "text_read": read.text_read, "unknown_words": list(read.unknown_words)}


def _end_result(begun: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """The result of an expression: what `_begin_result` gave, and what `post_process_masks` found."""
    result = {**begun, "score": found["score"], "mask": _to_pil(found["mask"]), "box": _named(found["box"])}
    if "presence" in found:
        result["presence"] = found["presence"]
    if "instances" in found:
        result["instances"] = [
            {"mask": _to_pil(part["mask"]), "box": _named(part["box"]), "area": part["area"]}
            for part in found["instances"]
        ]
    if "probabilities" in found:
        result["probabilities"] = found["probabilities"].float().cpu().numpy()
    return result


def _named(box: list[int] | None) -> dict[str, int] | None:
    return None if box is None else dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))


def _to_pil(mask: Tensor) -> Image.Image:
    return Image.fromarray(mask.cpu().numpy().astype(np.uint8) * 255)


__all__ = ["ReferringImageSegmentationPipeline"]
