"""Pipeline `referring-image-segmentation`: images and expressions in, masks at the images' own size out."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from transformers.pipelines.base import ChunkPipeline

from .processing_crossvlt import (
    ImageLike,
    check_min_area,
    check_threshold,
    pair_expressions,
    resolve_presence_threshold,
    to_rgb,
)


RESULT_OPTIONS = ("presence_threshold", "instances", "min_area")
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

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.model.training:
            self.model.fuse()

    def __call__(
        self, image: Any, text: str | Sequence[str] | Sequence[Sequence[str]] | None = None, **kwargs: Any
    ) -> Any:
        """Segment.

        Args:
            image: an image (path, URL, PIL image, array, tensor), with `text` given; a list of images, with `text` a
                list of expressions or lists of expressions, one for each; or, without `text`, a dict
                `{"image": ..., "text": ...}`, or a list, generator or dataset of such dicts.
            text: the expressions, where they are not in `image`.
            kwargs: `threshold`, `instances` and `min_area` (see `CrossVLTProcessor.post_process_masks`),
                `presence_threshold` (the same; "auto", the default, is 0.5 for a model with a presence head),
                `batch_size` (pairs of image and expression that go through the model together, where consecutive ones
                share their image; 1, or 8 for the expressions of a single image), `timeout` in seconds for URLs.

        Returns:
            For one image a list with one dict for each of its expressions, in their order: "label" (the expression),
            "score" (expected IoU of the mask where the checkpoint has a score calibration, else the mean probability
            of the object over it; 0.0 if it is empty), with a presence head "presence" (probability that something
            fits), with `instances` "instances" (the separate parts of the mask, from the largest: "mask", "box" and
            "area" in pixels of each), "mask" (PIL image of mode "L",
            255 on the object, of the image's own upright size), "box" (dict of xmin, ymin, xmax, ymax in pixels, the
            maxima exclusive; None if the mask is empty). For a list a list of these; for a generator or dataset an
            iterator over these.

        Raises:
            OSError: if an image cannot be read.
            ValueError: if images and expressions do not fit each other.
        """
        if isinstance(image, np.ndarray | Tensor) and image.ndim == 4:
            image = list(image)
        if text is not None and isinstance(image, dict):
            raise ValueError("`text` is given twice, in the dict and beside it; give it once.")
        if text is not None:
            single = not isinstance(image, list | tuple)
            if not single and not image:
                return []
            groups = pair_expressions(1 if single else len(image), text)
            pairs = [{"image": i, "text": g} for i, g in zip([image] if single else image, groups, strict=True)]
            return self._of_one_image(pairs[0], **kwargs) if single else super().__call__(pairs, **kwargs)
        if isinstance(image, dict):
            return self._of_one_image(image, **kwargs)
        if isinstance(image, list | tuple):
            return super().__call__(list(image), **kwargs) if len(image) else []
        rows = image
        if isinstance(image, Dataset) and hasattr(image, "__len__"):
            rows = (image[index] for index in range(len(image)))  # iteration over it need not end
        elif isinstance(image, Iterable) and not isinstance(image, dict | Dataset | str | bytes | np.ndarray | Tensor):
            rows = (row for row in image)  # a data set of another library
        return super().__call__(rows, **kwargs)

    def _of_one_image(self, pair: dict[str, Any], **kwargs: Any) -> list[dict[str, Any]]:
        kwargs.setdefault("batch_size", self._batch_size or EXPRESSIONS_TOGETHER)
        return super().__call__([pair], **kwargs)[0]

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        if unknown := kwargs.keys() - {"threshold", "timeout", *RESULT_OPTIONS}:
            names = f"text, threshold, {', '.join(RESULT_OPTIONS)}, timeout and batch_size"
            raise ValueError(f"The pipeline has no option {sorted(unknown)[0]!r}; it has {names}.")
        check_threshold(kwargs.get("threshold"))
        preprocess = {"timeout": kwargs["timeout"]} if "timeout" in kwargs else {}
        check_min_area(kwargs.get("instances", False), kwargs.get("min_area"))
        resolve_presence_threshold(kwargs.get("presence_threshold", "auto"), self.model.config.presence_head)
        postprocess = {name: kwargs[name] for name in ("threshold", *RESULT_OPTIONS) if name in kwargs}
        return preprocess, {}, postprocess

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save the model and its processor, from which the pipeline can be made again.

        Transformers' own would leave the processor out and bind the folder to a copy of this file.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)

    def preprocess(self, inputs: dict[str, Any], timeout: float | None = 60.0) -> Iterator[dict[str, Any]]:
        """One chunk for each expression; the image is prepared once."""
        if not isinstance(inputs, dict) or "image" not in inputs or inputs.get("text") is None:
            what = f"dict of {sorted(inputs)}" if isinstance(inputs, dict) else type(inputs).__name__
            usage = 'give an image and `text`, or a dict {"image": ..., "text": ...}'
            raise ValueError(f"An input is a {what}; {usage}.")
        (expressions,) = pair_expressions(1, inputs["text"])
        image: ImageLike = to_rgb(inputs["image"], timeout)
        prepared = self.processor(image, return_tensors="pt").to(self.dtype)
        for index, expression in enumerate(expressions):
            words = self.processor(text=[expression], return_tensors="pt")
            place = {"is_first": index == 0, "is_last": index == len(expressions) - 1}
            yield {**place, "label": expression, **prepared, **words}

    def forward(self, model_inputs: dict[str, Any], **forward_params: Any) -> Any:
        """Predict; a model that is being trained does so as if it were not, and goes on training."""
        training = self.model.training
        if not training:
            return super().forward(model_inputs, **forward_params)
        self.model.eval()
        try:
            return super().forward(model_inputs, **forward_params)
        finally:
            self.model.train()

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        kept = {name: model_inputs.pop(name) for name in ("is_last", "label", "original_sizes")}
        is_first = model_inputs.pop("is_first")
        if isinstance(is_first, list):  # a batch, in which every image is needed once
            first = [row for row, starts in enumerate(is_first) if starts or row == 0]
            counts = torch.tensor([*first[1:], len(is_first)]) - torch.tensor(first)
            model_inputs["pixel_values"] = model_inputs["pixel_values"][first]
            model_inputs["expressions_per_image"] = counts.to(self.device)
        output = self.model(**model_inputs)
        return {**kept, **{name: output[name] for name in ("logits", "presence_logits") if name in output}}

    def postprocess(
        self,
        model_outputs: list[dict[str, Any]],
        threshold: float | None = None,
        presence_threshold: Any = "auto",
        **options: Any,
    ) -> list[dict[str, Any]]:
        """One result for each expression of an image."""
        least = resolve_presence_threshold(presence_threshold, self.model.config.presence_head)
        return [self._result(output, threshold, presence_threshold=least, **options) for output in model_outputs]

    def _result(self, output: dict[str, Any], threshold: float | None, **options: Any) -> dict[str, Any]:
        label = output["label"] if isinstance(output["label"], str) else output["label"][0]
        (found,) = self.processor.post_process_masks(output, output["original_sizes"], threshold, **options)
        result = {"label": label, "score": found["score"], "mask": _to_pil(found["mask"]), "box": _named(found["box"])}
        if "presence" in found:
            result["presence"] = found["presence"]
        if "instances" in found:
            result["instances"] = [
                {"mask": _to_pil(part["mask"]), "box": _named(part["box"]), "area": part["area"]}
                for part in found["instances"]
            ]
        return result


def _named(box: list[int] | None) -> dict[str, int] | None:
    return box and dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))


def _to_pil(mask: Tensor) -> Image.Image:
    return Image.fromarray(mask.cpu().numpy().astype(np.uint8) * 255)


__all__ = ["ReferringImageSegmentationPipeline"]
