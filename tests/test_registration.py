"""Importing the package registers its classes with Transformers, in whatever order modules are imported."""

import pytest
from processes import run_python


FEW = ["import crossvlt_hf.layers_crossvlt", "import crossvlt_hf; from transformers import BertModel"]
OTHERS = [
    "import crossvlt_hf.weights.encoders",
    "import crossvlt_hf; import transformers.modeling_layers",
    "import importlib.util, crossvlt_hf; importlib.util.find_spec('crossvlt_hf.layers_crossvlt'); "
    "import crossvlt_hf.layers_crossvlt",
    "import crossvlt_hf; from transformers import Trainer",
    "import crossvlt_hf.pipeline_crossvlt",
    "import transformers.pipelines; import crossvlt_hf.training.run",
    "import transformers.models.auto.processing_auto; import crossvlt_hf.processing_crossvlt",
    "import crossvlt_hf; from transformers import AutoModel, pipeline",
]
REGISTERED = """
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING, MODEL_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.pipelines import PIPELINE_REGISTRY
from crossvlt_hf import CrossVLTConfig, CrossVLTModel, CrossVLTProcessor

assert CONFIG_MAPPING["crossvlt"] is CrossVLTConfig
assert MODEL_MAPPING[CrossVLTConfig] is MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING[CrossVLTConfig] is CrossVLTModel
assert PROCESSOR_MAPPING[CrossVLTConfig] is CrossVLTProcessor
assert "referring-image-segmentation" in PIPELINE_REGISTRY.get_supported_tasks()
"""


@pytest.mark.parametrize("first", [*FEW, *(pytest.param(other, marks=pytest.mark.slow) for other in OTHERS)])
def test_any_module_can_be_the_first(first):
    done = run_python("-c", first + REGISTERED, plain=True)
    assert done.returncode == 0, done.stderr
