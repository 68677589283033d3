"""CrossVLT for Hugging Face Transformers: referring image segmentation.

Importing the package registers its classes, so that `AutoConfig`, `AutoModel`, `AutoModelForSemanticSegmentation`,
`AutoProcessor` and `pipeline("referring-image-segmentation")` know them. Without a model the pipeline takes a small
one that comes with the package and knows drawn shapes, no photographs.
"""

from importlib.metadata import version

from transformers import AutoConfig, AutoModel, AutoModelForSemanticSegmentation, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_crossvlt import CrossVLTConfig, CrossVLTTextConfig, CrossVLTVisionConfig
from .conversion import convert_checkpoint
from .loading import DEFAULT_CHECKPOINT
from .modeling_crossvlt import CrossVLTModel, CrossVLTOutput, CrossVLTTextModel, CrossVLTVisionModel
from .pipeline_crossvlt import ReferringImageSegmentationPipeline
from .processing_crossvlt import CrossVLTProcessor


__version__ = version("crossvlt_hf")

TASK = "referring-image-segmentation"


def _register() -> None:
    for config_class, model_class in (
        (CrossVLTConfig, CrossVLTModel),
        (CrossVLTVisionConfig, CrossVLTVisionModel),
        (CrossVLTTextConfig, CrossVLTTextModel),
    ):
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        AutoModel.register(config_class, model_class, exist_ok=True)
    AutoModelForSemanticSegmentation.register(CrossVLTConfig, CrossVLTModel, exist_ok=True)
    AutoProcessor.register(CrossVLTConfig, CrossVLTProcessor, exist_ok=True)
    if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
        PIPELINE_REGISTRY.register_pipeline(
            TASK,
            pipeline_class=ReferringImageSegmentationPipeline,
            pt_model=AutoModelForSemanticSegmentation,
            default={"model": (str(DEFAULT_CHECKPOINT), "main")},
            type="multimodal",
        )


_register()

__all__ = [
    "DEFAULT_CHECKPOINT",
    "CrossVLTConfig",
    "CrossVLTModel",
    "CrossVLTOutput",
    "CrossVLTProcessor",
    "CrossVLTTextConfig",
    "CrossVLTTextModel",
    "CrossVLTVisionConfig",
    "CrossVLTVisionModel",
    "ReferringImageSegmentationPipeline",
    "convert_checkpoint",
]
