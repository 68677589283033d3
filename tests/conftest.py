"""Small models, tokenizers and images made on the spot; nothing is fetched."""

import copy
import gc
import io
import json
import os
import pickle
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any


os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import torch
from parity.fill import fill_state_dict
from PIL import Image
from transformers import BertTokenizer

from crossvlt_hf import CrossVLTConfig, CrossVLTModel, CrossVLTProcessor


try:
    from xdist.scheduler import LoadScopeScheduling
except ModuleNotFoundError:
    LoadScopeScheduling = object

torch.set_num_threads(1)  # the models are tiny: more threads only wait for each other

WORDS = [
    "the",
    "a",
    "left",
    "right",
    "of",
    "cup",
    "spoon",
    "man",
    "in",
    "red",
    "white",
    "bus",
    "above",
    "below",
    "table",
]


def tiny_config(**kwargs) -> CrossVLTConfig:
    """A model of 0.2 million parameters, without anything random in training."""
    vision = {
        "embed_dim": 8,
        "depths": [1, 2, 1, 1],
        "num_heads": [1, 2, 2, 4],
        "window_size": 4,
        "drop_path_rate": 0.0,
        **kwargs.pop("vision_config", {}),
    }
    text = {
        "vocab_size": 64,
        "hidden_size": 16,
        "depths": [2, 1, 1, 1],
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 40,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        **kwargs.pop("text_config", {}),
    }
    defaults = {"fusion_head_dim": 4, "alignment_dim": 16, "decoder_hidden_size": 16}
    return CrossVLTConfig(vision_config=vision, text_config=text, **{**defaults, **kwargs})


def tiny_tokenizer() -> BertTokenizer:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    return BertTokenizer(vocab={word: index for index, word in enumerate(vocabulary)})


def fake_batch(config: CrossVLTConfig, batch: int = 2, height: int = 32, width: int = 48, words: int = 7) -> dict:
    """Inputs and labels for a model; the second half of the batch has padding."""
    generator = torch.Generator().manual_seed(batch * height + width)
    mask = torch.ones(batch, words, dtype=torch.long)
    mask[batch // 2 :, words // 2 + 1 :] = 0
    shape = (batch, config.vision_config.num_channels, height, width)
    return {
        "pixel_values": torch.randn(shape, generator=generator),
        "input_ids": torch.randint(1, config.text_config.vocab_size, (batch, words), generator=generator) * mask,
        "attention_mask": mask,
        "labels": (torch.rand(batch, height, width, generator=generator) > 0.6).long(),
    }


def pytest_runtest_setup():
    """Start from the same state whichever tests ran before in this process: before any fixture is made."""
    torch.default_generator.manual_seed(0)  # `torch.manual_seed` also keeps a call stack for each kind of device
    torch.set_flush_denormal(False)  # training switches it on, and Hypothesis draws subnormal numbers
    if "accelerate.state" in sys.modules:  # one precision for each process, but several runs in the tests'
        sys.modules["accelerate.state"].AcceleratorState._reset_state(reset_partial_state=True)


class Copies(pickle.Pickler):
    """Copies of a model, or of what contains one, in half the time that `copy.deepcopy` takes: its hooks and configs
    are read by C code.
    """

    def __init__(self, original: object):
        self.file, self.tensors = io.BytesIO(), {}
        super().__init__(self.file, protocol=5)
        self.dump(original)

    def persistent_id(self, obj: object) -> int | None:
        if isinstance(obj, torch.Tensor):
            self.tensors[id(obj)] = obj
            return id(obj)
        return None

    def make(self) -> Any:
        copied = {key: copy.deepcopy(tensor) for key, tensor in self.tensors.items()}
        unpickler = pickle.Unpickler(io.BytesIO(self.file.getvalue()))
        unpickler.persistent_load = copied.__getitem__
        return unpickler.load()


@pytest.fixture(scope="session")
def shared_model() -> CrossVLTModel:
    torch.manual_seed(0)
    return CrossVLTModel(tiny_config()).eval()


@pytest.fixture(scope="session")
def model_copies(shared_model) -> Copies:
    return Copies(shared_model)


@pytest.fixture
def model(model_copies) -> CrossVLTModel:
    return model_copies.make()


@pytest.fixture
def processor() -> CrossVLTProcessor:
    return CrossVLTProcessor.from_tokenizer(tiny_tokenizer(), image_size=64, max_length=9)


@pytest.fixture(scope="session")
def shared_checkpoint(tmp_path_factory, shared_model) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    copy.deepcopy(shared_model).save_pretrained(folder)
    CrossVLTProcessor.from_tokenizer(tiny_tokenizer(), image_size=64, max_length=9).save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoint(tmp_path, shared_checkpoint) -> Path:
    """A folder with the tiny model and its processor, which a test may change: to copy is faster than to save."""
    return Path(shutil.copytree(shared_checkpoint, tmp_path / "checkpoint"))


@pytest.fixture
def photo() -> Image.Image:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((80, 60), Image.Resampling.BICUBIC)


@pytest.fixture
def write_original():
    """Writes a small checkpoint as the authors' code does, with the vocabulary of bert-base-uncased."""

    def write(path: Path) -> None:
        shapes = json.loads((Path(__file__).parent / "parity" / "tiny.json").read_text())["shapes"]
        words = {"lang_stage1.embeddings.word_embeddings.weight": torch.zeros(30522, 64)}
        torch.save({"model": fill_state_dict(shapes) | words}, path)

    return write


def pytest_collection_finish():
    """Let the garbage collector pass over what was imported, which stays: it would visit it again and again."""
    gc.collect()
    gc.freeze()


# ---- several processes of pytest-xdist

# Their fixtures of a module cost seconds; all other tests go one by one to the process that is free
TOGETHER = {
    "cards",
    "evaluation",
    "export",
    "page",
    "parity",
    "pipeline",
    "reproduction",
    "training",
    "visualization_figures",
}


class Scheduling(LoadScopeScheduling):
    """xdist's own mark for this, `xdist_group`, has no effect with pytest 9.2."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        return file if Path(file).stem.removeprefix("test_") in TOGETHER else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return Scheduling(config, log)


def pytest_terminal_summary(terminalreporter):
    """List why tests were skipped, which says how to run them, and the processor, on which rounding depends."""
    skipped = terminalreporter.getreports("skipped")
    reasons = Counter(report.longrepr[-1].removeprefix("Skipped: ") for report in skipped)
    if reasons:
        terminalreporter.section("skipped tests")
        for reason, count in reasons.most_common():
            terminalreporter.line(f"{count:4} {reason}")
    kind = torch.backends.cpu.get_cpu_capability()
    terminalreporter.line(f"torch {torch.__version__} on {os.cpu_count()} cores, vector instructions {kind}")


@pytest.fixture
def interruptible():
    """Ctrl-C is heard, also where the tests run in the background of a script, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
