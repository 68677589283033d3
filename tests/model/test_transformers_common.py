"""Transformers' own common tests, from its source distribution, pointed at our classes."""

import subprocess
import sys
import unittest
from contextlib import nullcontext

import pytest
import testkit
import torch
from conftest import fake_batch, tiny_config, tiny_tokenizer
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

from crossvlt_hf import CrossVLTConfig, CrossVLTModel, CrossVLTProcessor, CrossVLTTextConfig, CrossVLTVisionConfig


try:
    sys.path.insert(0, str(testkit.build()))
except subprocess.CalledProcessError:
    pytest.skip("needs the package index once, to download Transformers' own tests", allow_module_level=True)

import tests.test_modeling_common as common
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin
from tests.test_processing_common import ProcessorTesterMixin


# Which labels a class takes, the tests look up by its name
common.MODEL_MAPPING_NAMES = {**common.MODEL_MAPPING_NAMES, "crossvlt": "CrossVLTModel"}
common.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES = {
    **common.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
    "crossvlt": "CrossVLTModel",
}


class ModelTester:
    """What the mixin asks of a model's tests."""

    batch_size, seq_length, image_size, is_training = 2, 7, 32, True
    num_hidden_layers, num_attention_heads, hidden_size = 2, 2, 16

    def __init__(self, parent):
        self.parent = parent

    def get_config(self):
        return tiny_config()

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        inputs = fake_batch(config, self.batch_size, self.image_size, self.image_size, self.seq_length)
        inputs.pop("labels")
        return config, inputs


class CrossVLTModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (CrossVLTModel,)
    additional_model_inputs = ("input_ids", "attention_mask")
    test_can_init_all_missing_weights_before_2023 = True
    skip_test_image_features_output_shape = (
        True  # it takes `embed_dim`, the width of the first stage, for the last one's
    )
    _is_composite = True

    def subTest(self, msg=None, **parameters):
        """No report of each: one test has thousands, which pytest would take most of its time for."""
        return nullcontext()

    def setUp(self):
        torch.set_printoptions(threshold=0, edgeitems=1)  # messages about parameters are made before they are needed
        self.addCleanup(torch.set_printoptions, profile="default")
        self.model_tester = ModelTester(self)
        self.config_tester = ConfigTester(
            self, config_class=CrossVLTConfig, has_text_modality=False, fusion_direction="late", alignment_dim=32
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_vision_config(self):
        ConfigTester(
            self, config_class=CrossVLTVisionConfig, has_text_modality=False, embed_dim=32, window_size=5
        ).run_common_tests()

    def test_text_config(self):
        ConfigTester(
            self, config_class=CrossVLTTextConfig, hidden_size=48, vocab_size=99, depths=[3, 0, 1, 2]
        ).run_common_tests()

    def _text_features_get_expected_num_attentions(self, model_tester=None):
        return sum(self.model_tester.get_config().text_config.depths)

    def _text_features_get_expected_num_hidden_states(self, model_tester=None):
        return self.model_tester.get_config().text_config.num_stages

    def _image_features_get_expected_num_attentions(self, model_tester=None):
        return sum(self.model_tester.get_config().vision_config.depths)

    def _image_features_get_expected_num_hidden_states(self, model_tester=None):
        return self.model_tester.get_config().vision_config.num_stages + 1

    def test_attention_outputs(self):
        """As in Swin's tests: the shapes are hierarchical."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for by_argument in (True, False):
            model = CrossVLTModel._from_config(config, attn_implementation="eager").eval()
            if not by_argument:
                model.config.output_attentions = True
            with torch.no_grad():
                outputs = model(**inputs, **({"output_attentions": True} if by_argument else {}))
            vision, text = config.vision_config, config.text_config
            heads = [n for n, depth in zip(vision.num_heads, vision.depths, strict=True) for _ in range(depth)]
            assert [a.shape[1] for a in outputs.attentions] == heads
            assert all(a.shape[2:] == (16, 16) for a in outputs.attentions)
            assert [tuple(a.shape) for a in outputs.text_attentions] == [(2, 2, 7, 7)] * sum(text.depths)
            assert [tuple(a.shape) for a in outputs.cross_attentions] == [(2, 2, 7, n) for n in (16, 4, 1)]
            assert [tuple(a.shape) for a in outputs.fusion_attentions] == [
                (2, heads, positions, 7)
                for heads, positions in ((4, 64), (4, 16), (4, 16), (8, 4), (8, 4), (16, 1), (16, 1))
            ]

    def test_hidden_states_output(self):
        """As in Swin's tests: the shapes are hierarchical."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for by_argument in (True, False):
            model = CrossVLTModel(config).eval()
            model.config.output_hidden_states = not by_argument
            with torch.no_grad():
                outputs = model(**inputs, **({"output_hidden_states": True} if by_argument else {}))
            grids = [(2, 8, 8, 8), (2, 8, 8, 8), (2, 4, 4, 16), (2, 2, 2, 32), (2, 1, 1, 64)]
            assert [tuple(h.shape) for h in outputs.hidden_states] == grids
            assert [tuple(h.shape) for h in outputs.text_hidden_states] == [(2, 7, 16)] * 4
            assert [h.shape[-1] for h in outputs.fusion_hidden_states] == [8, 16, 16, 32, 32, 64, 64]


class PresenceModelTester(ModelTester):
    """The same with the optional head."""

    def get_config(self):
        return tiny_config(presence_head=True)


@pytest.mark.slow
class CrossVLTPresenceModelTest(CrossVLTModelTest):
    def setUp(self):
        super().setUp()
        self.model_tester = PresenceModelTester(self)


class CrossVLTProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = CrossVLTProcessor

    @classmethod
    def _setup_tokenizer(cls):
        tokenizer = tiny_tokenizer()
        tokenizer.add_tokens(["lower", "newer", "upper", "older", "longer", "string"])
        return tokenizer

    @classmethod
    def _setup_image_processor(cls):
        return SegformerImageProcessorPil(size={"height": 20, "width": 20})

    @unittest.skip("an expression without an image is nothing that could be segmented")
    def test_processor_text_has_no_visual(self):
        pass


del ModelTesterMixin, ProcessorTesterMixin  # they are no tests of their own here
