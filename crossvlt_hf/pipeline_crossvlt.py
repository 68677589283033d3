"""Pipeline `referring-image-segmentation`: masks at the size of the images, from images and expressions."""

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

from .configuration_crossvlt import take_hub_options, upload_folder
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
EXPRESSIONS_TOGETHER = 8  # default `batch_size` for a single image, to limit memory


class ReferringImageSegmentationPipeline(ChunkPipeline):
    """Segment the objects in an image that expressions refer to.

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
        """Make a pipeline of a model and its processor.

        Args:
            model: a `CrossVLTModel`.
            args: see [`Pipeline`].
            kwargs: also of [`Pipeline`], with `processor`, a `CrossVLTProcessor`, and default options of calls.

        Raises:
            ValueError: if model or processor is missing or has another type.
        """
        # Checks attributes, since code from a checkpoint folder has other classes
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
        """Segment images.

        Args:
            image: an image (path, URL, PIL image, array, tensor), or a list, generator or dataset of images; without
                `text`, a dict `{"image": ..., "text": ...}`, or a list, generator or dataset of such dicts.
            text: expression or list of expressions of an image; for several images, one expression for all, or a list
                with an expression or a list of expressions for each.
            kwargs: `threshold`, `largest_part`, `instances`, `min_area` and `return_probabilities` (see
                `CrossVLTProcessor.post_process_masks`), `presence_threshold` (the same; "auto", the default, is 0.5
                for a model with a presence head), `batch_size` (number of pairs of an image and an expression in a
                forward pass, in which consecutive pairs share their image; by default 1, or 8 for a single image),
                `timeout` in seconds for URLs.

        Returns:
            For one image a list with a dict for each expression, in order: "label" (the expression), "text_read" (the
            part within the limit of tokens), "unknown_words" (list of words that are not in the vocabulary), "score"
            (expected IoU of the mask if the checkpoint has a score calibration, otherwise mean probability of the
            object in the mask; 0.0 if it is empty), "mask" (PIL image of mode "L", 255 on the object, with the upright
            size of the image), "box" (dict of xmin, ymin, xmax, ymax in pixels, the maxima exclusive; None if the mask
            is empty), with `largest_part` "parts" (number of connected parts before removal), with a presence head
            "presence" (probability of a target) and, on request, "instances" (connected parts of the mask, largest
            first: "mask", "box" and "area" in pixels of each) and "probabilities" ((height, width) float32 array, 0 to
            1). For a list a list of these; for a generator or dataset an iterator. Expressions that are too long or
            have unknown words give a warning.

        Raises:
            OSError: if an image cannot be read.
            ValueError: if images and expressions do not match.
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
            raise ValueError("`text` must be in the dict or an argument, not both.")
        pair = image if text is None else next(_with_text([image], pair_expressions(1, text)))
        kwargs.setdefault("batch_size", self._batch_size or EXPRESSIONS_TOGETHER)
        return super().__call__([pair], **kwargs)[0]

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        if unknown := kwargs.keys() - {"timeout", *RESULT_OPTIONS}:
            names = f"text, {', '.join(RESULT_OPTIONS)}, timeout and batch_size"
            raise ValueError(f"The pipeline has no option {sorted(unknown)[0]!r}; its options are {names}.")
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
        """Save the model and its processor, to load the pipeline again.

        Transformers' method would not save the processor.

        Args:
            save_directory: folder, which is created if it does not exist.
            push_to_hub: whether to upload its files, to the repository `repo_id`, by default with its name.
            kwargs: of the model's `save_pretrained`, and of `upload_folder`.
        """
        options = take_hub_options(save_directory, kwargs) if push_to_hub else {}
        self.model.save_pretrained(save_directory, **kwargs)
        if not self.model.should_save_on_this_rank(kwargs.get("is_main_process", True)):
            return
        self.processor.save_pretrained(save_directory)
        if push_to_hub:
            upload_folder(save_directory, **options)

    def preprocess(self, inputs: dict[str, Any], timeout: float | None = 60.0) -> Iterator[dict[str, Any]]:
        """Make a chunk for each expression; the image is processed once."""
        if not isinstance(inputs, dict) or "image" not in inputs or inputs.get("text") is None:
            what = f"a dict of {sorted(inputs)}" if isinstance(inputs, dict) else f"a {type(inputs).__name__} alone"
            raise ValueError(
                f'An input must be an image and `text`, or a dict {{"image": ..., "text": ...}}, got {what}.'
            )
        (expressions,) = pair_expressions(1, inputs["text"])
        image: ImageLike = to_rgb(inputs["image"], timeout)
        prepared = self.processor(image, return_tensors="pt").to(self.dtype)
        for index, read in enumerate(self.processor.read_expressions(expressions)):
            words = self.processor(text=[expressions[index]], return_tensors="pt")
            place = {"is_first": index == 0, "is_last": index == len(expressions) - 1}
            yield {**place, "begun": _begin_result(expressions[index], read), **prepared, **words}

    def forward(self, model_inputs: dict[str, Any], **forward_params: Any) -> Any:
        """Run the model in evaluation mode, also during training."""
        with evaluating(self.model):
            return super().forward(model_inputs, **forward_params)

    def _forward(
        self,
        model_inputs: dict[str, Any],
        threshold: float | None = None,
        presence_threshold: Any = "auto",
        **options: Any,
    ) -> dict[str, Any]:
        """Run a chunk or a batch of them, and make masks here, since they take less memory than logits."""
        is_first, is_last, begun, sizes = map(model_inputs.pop, ("is_first", "is_last", "begun", "original_sizes"))
        batched = isinstance(is_first, list)
        if batched:  # keep each image once
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
        """Collect the results for the expressions of an image."""
        return [output["result"] for output in model_outputs]


def _of_one_range(rows: Sequence[Any]) -> list[Any]:
    """Convert arrays in rows to images together, since all of them decide if the range is 0 to 1 or 0 to 255."""
    rows = list(rows)
    images = {n: row.get("image") if isinstance(row, dict) else row for n, row in enumerate(rows)}
    numbers = {n: image for n, image in images.items() if _holds_numbers(image)}
    for (n, row), read in zip(((n, rows[n]) for n in numbers), to_rgb_together(list(numbers.values())), strict=True):
        rows[n] = {**row, "image": read} if isinstance(row, dict) else read
    return rows


def _holds_numbers(image: Any) -> bool:
    """Whether an image has numbers of unknown range: an array, a tensor, or a PIL image with more than 8 bits."""
    deep = isinstance(image, Image.Image) and (image.mode == "F" or image.mode.startswith("I"))
    return deep or isinstance(image, np.ndarray | Tensor)


def _is_stream(image: Any) -> bool:
    """Whether it is a dataset, a generator or another iterable of images or rows."""
    return isinstance(image, Dataset) or (
        isinstance(image, Iterable) and not isinstance(image, dict | str | bytes | np.ndarray | Tensor | Image.Image)
    )


def _stream(images: Any) -> Any:
    if isinstance(images, Dataset) and hasattr(images, "__len__"):
        return (images[index] for index in range(len(images)))  # since iterating over it may not end
    return images if isinstance(images, Dataset) else (row for row in images)  # of another library


def _groups(text: Any, length: int | None) -> Iterable[list[str]]:
    """The expressions of each of `length` images; None if the number of images is unknown."""
    if length is not None:
        return pair_expressions(length, text)
    if isinstance(text, list | tuple):
        return pair_expressions(len(text), text)
    return repeat(pair_expressions(1, text)[0])


def _with_text(images: Iterable, groups: Iterable[list[str]]) -> Iterator[dict[str, Any]]:
    """Add expressions to images, or to dicts with an image."""
    counts = "`text` must have an expression or a list of expressions for each image; the numbers differ."
    left = iter(groups)
    for image in images:
        expressions = next(left, None)
        if expressions is None:
            raise ValueError(counts)
        row = image if isinstance(image, dict) else {"image": image}
        if row.get("text") is not None:
            raise ValueError("`text` must be in the dict or an argument, not both.")
        yield {**row, "text": expressions}
    if isinstance(groups, list) and next(left, None) is not None:
        raise ValueError(counts)


def _begin_result(expression: str, read: ReadExpression) -> dict[str, Any]:
    """The part of a result that does not depend on the image."""
    if note := reading_note(expression, read):
        warnings.warn(note, stacklevel=2)
    return {"label": expression, "text_read": read.text_read, "unknown_words": list(read.unknown_words)}


def _end_result(begun: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Complete a result with that of `post_process_masks`."""
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
