"""CrossVLT for Hugging Face Transformers: referring image segmentation.

Importing the package registers its classes, so that `AutoConfig`, `AutoModel`, `AutoModelForSemanticSegmentation`,
`AutoProcessor` and `pipeline("referring-image-segmentation")` know them. Without a model the pipeline takes a small
one that comes with the package and knows some 500 words, for everyday things in photographs and for drawn shapes.
"""

import logging
from importlib.metadata import version

from transformers import AutoConfig, AutoModel, AutoModelForSemanticSegmentation, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_crossvlt import CrossVLTConfig, CrossVLTTextConfig, CrossVLTVisionConfig
from .conversion import convert_checkpoint
from .loading import BUILT_IN_NOTE, DEFAULT_CHECKPOINT
from .modeling_crossvlt import CrossVLTModel, CrossVLTOutput, CrossVLTTextModel, CrossVLTVisionModel
from .pipeline_crossvlt import ReferringImageSegmentationPipeline
from .processing_crossvlt import CrossVLTProcessor
from .tokenization import add_words


__version__ = version("crossvlt_hf")

TASK = "referring-image-segmentation"


def _name_the_built_in(record: logging.LogRecord) -> bool:
    """Let Transformers' warning that no model was named say which one that means, and what it knows."""
    if str(record.msg).startswith(f"No model was supplied, defaulted to {DEFAULT_CHECKPOINT}"):
        record.msg = f"No model was named: {BUILT_IN_NOTE}"
    return True


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
# Transformers writes the warning where it chooses the model, and no pipeline can tell a chosen model from a named one
logging.getLogger("transformers.pipelines").addFilter(_name_the_built_in)

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
    "add_words",
    "convert_checkpoint",
]
