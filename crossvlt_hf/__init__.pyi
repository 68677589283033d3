from .configuration_crossvlt import (
    CrossVLTConfig as CrossVLTConfig,
)
from .configuration_crossvlt import (
    CrossVLTTextConfig as CrossVLTTextConfig,
)
from .configuration_crossvlt import (
    CrossVLTVisionConfig as CrossVLTVisionConfig,
)
from .modeling_crossvlt import (
    CrossVLTModel as CrossVLTModel,
)
from .modeling_crossvlt import (
    CrossVLTOutput as CrossVLTOutput,
)
from .modeling_crossvlt import (
    CrossVLTTextModel as CrossVLTTextModel,
)
from .modeling_crossvlt import (
    CrossVLTVisionModel as CrossVLTVisionModel,
)
from .pipeline_crossvlt import ReferringImageSegmentationPipeline as ReferringImageSegmentationPipeline
from .processing_crossvlt import CrossVLTProcessor as CrossVLTProcessor
from .weights.checkpoint import DEFAULT_CHECKPOINT as DEFAULT_CHECKPOINT
from .weights.checkpoint import load_checkpoint as load_checkpoint
from .weights.original import convert_checkpoint as convert_checkpoint
from .weights.vocabulary import add_words as add_words

__version__: str
