"""The metrics of referring image segmentation as a metric of the library `evaluate`.

Load it from the package, or by the path of this file; both work with evaluate 0.4.6 and datasets 5.2:

    metric = ReferringSegmentation()
    metric = evaluate.load("crossvlt_hf/evaluation/hf_metric.py")

The library writes masks to an Arrow file in its cache and reads them back as nested lists, which takes 0.05 s for two
masks of 480x480 pixels. `ReferringSegmentationMetric`, which `evaluation.evaluate` uses, does not.
"""

import datasets
import evaluate
import numpy as np
import torch

# evaluate.load copies this file, so relative imports would fail
from crossvlt_hf.metrics import ReferringSegmentationMetric


DESCRIPTION = """\
Referring image segmentation: overall IoU (the sum of all intersections over that of all unions; oIoU, cIoU), mean IoU
over the expressions (mIoU, gIoU), P@0.5 to P@0.9, and, where some expressions have no target, N-acc and T-acc (GRES).
"""

INPUTS = """\
Args:
    predictions: masks (height, width) of any size: true or 1 on the object.
    references: masks of the same sizes: 1 on the object, 0 off it, 255 ignored.
    has_target: in `compute` only: for each mask, whether its expression has a target; all have one by default.

Returns:
    overall_iou, mean_iou, precision@0.5, ..., precision@0.9, no_target_accuracy, target_accuracy: from 0 to 1, None if
    undefined; samples: number of masks.
"""

CITATION = """\
@article{cho2023crossvlt,
  title = {Cross-aware Early Fusion with Stage-divided Vision and Language Transformer Encoders for Referring Image
           Segmentation},
  author = {Cho, Yubin and Yu, Hyunwoo and Kang, Suk-Ju},
  journal = {IEEE Transactions on Multimedia},
  year = {2023}
}
@inproceedings{liu2023gres,
  title = {GRES: Generalized Referring Expression Segmentation},
  author = {Liu, Chang and Ding, Henghui and Jiang, Xudong},
  booktitle = {CVPR},
  year = {2023}
}
"""


class ReferringSegmentation(evaluate.Metric):
    """See `DESCRIPTION` and `INPUTS`."""

    def _info(self) -> evaluate.MetricInfo:
        mask = datasets.Sequence(datasets.Sequence(datasets.Value("uint8")))
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": mask, "references": mask}),
        )

    def _compute(
        self, predictions: list, references: list, has_target: list[bool] | None = None
    ) -> dict[str, float | int | None]:
        flags = [True] * len(references) if has_target is None else has_target
        metric = ReferringSegmentationMetric()
        for prediction, reference, flag in zip(predictions, references, flags, strict=True):
            masks = (torch.from_numpy(np.asarray(mask, dtype=np.uint8))[None] for mask in (prediction, reference))
            metric.update(*masks, has_target=[flag])
        return metric.compute()
