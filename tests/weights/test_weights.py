"""Weight files of strangers: read if they are whole and plain data, refused if not, and never run."""

import argparse
import io
import os
import pickle
import re
import signal
import subprocess
from collections import OrderedDict
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from crossvlt_hf.weights.state_dicts import load_strictly, read_state_dict, rename


STATE_DICT = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2), "steps": torch.tensor(7)}


def saved(content, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def written(folder: Path, content: bytes, name: str = "checkpoint.pth") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def assert_same(actual: dict, expected: dict) -> None:
    assert actual.keys() == expected.keys()
    for key, tensor in expected.items():
        assert actual[key].dtype == tensor.dtype, key
        assert torch.equal(actual[key], tensor), key


def trained() -> dict:
    """What a training loop saves."""
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
    return {
        "model": STATE_DICT,
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": scheduler.state_dict(),
        "epoch": np.int64(3),
        "best": np.float64(0.5),
        "done": np.bool_(True),
        "args": argparse.Namespace(lr=3e-5, betas=(0.9, 0.999), output="x", nested=argparse.Namespace(seed=None)),
    }


FORMS = {
    "bare": STATE_DICT,
    "ordered": OrderedDict(STATE_DICT),
    "parameters": {key: nn.Parameter(value) if value.ndim else value for key, value in STATE_DICT.items()},
    "module prefix": {f"module.{key}": value for key, value in STATE_DICT.items()},
    "under model": {"model": STATE_DICT, "epoch": 3},
    "under state_dict": {"state_dict": STATE_DICT, "epoch": 3},
    "nested": {"state_dict": {"model": {f"module.{key}": value for key, value in STATE_DICT.items()}}},
    "trained": trained(),
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("form", FORMS)
def test_forms(tmp_path, form, legacy):
    path = written(tmp_path, saved(FORMS[form], legacy))
    assert_same(read_state_dict(path), STATE_DICT)
    assert_same(read_state_dict(str(path)), STATE_DICT)


def test_safetensors(tmp_path):
    content = save({f"module.{key}": value for key, value in STATE_DICT.items()})
    actual = read_state_dict(written(tmp_path, content, "checkpoint.safetensors"))
    assert_same(actual, STATE_DICT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_dtype_is_kept(tmp_path, dtype):
    state_dict = {key: value.to(dtype) for key, value in STATE_DICT.items()}
    assert_same(read_state_dict(written(tmp_path, saved(state_dict))), state_dict)


def test_only_one_prefix_is_removed(tmp_path):
    path = written(tmp_path, saved({"module.module.a": torch.ones(1), "a.module.b": torch.ones(1)}))
    assert list(read_state_dict(path)) == ["module.a", "a.module.b"]


def test_prefix_hides_no_key(tmp_path):
    """`a` and `module.a` would be one key."""
    path = written(tmp_path, saved({"a": torch.ones(1), "module.a": torch.zeros(1)}))
    with pytest.raises(ValueError, match="must have 'a' either with or without"):
        read_state_dict(path)


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        torch.ones(2),
        3,
        None,
        {},
        {"model": {}},
        {"a": torch.ones(1), "b": "text"},
        {"model": torch.ones(1), "x": 1},
    ],
    ids=["list", "tensor", "number", "None", "empty", "empty model", "text inside", "tensor as model"],
)
def test_no_state_dict(tmp_path, content):
    path = written(tmp_path, saved(content))
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read_state_dict(path)


@contextmanager
def time_limit(seconds: float):
    def stop(*args):
        raise AssertionError(f"still running after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs a timer that interrupts a loop")
def test_dict_within_itself(tmp_path):
    content: dict = {}
    content["model"] = content
    path = written(tmp_path, saved(content))
    with time_limit(5), pytest.raises(ValueError, match=re.escape(str(path))):
        read_state_dict(path)


# ---- hostile


class Hostile:
    """Runs something when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


KINDS = {
    "system": lambda path: Hostile(os.system, f"echo > '{path}'"),
    "call": lambda path: Hostile(subprocess.call, ["touch", str(path)]),
    "exec": lambda path: Hostile(exec, f"open({str(path)!r}, 'w').close()"),
    "eval": lambda path: Hostile(eval, f"open({str(path)!r}, 'w').close()"),
    "open": lambda path: Hostile(open, str(path), "w"),
    "mkdir": lambda path: Hostile(os.mkdir, str(path)),
    "getattr": lambda path: Hostile(Path.touch, Path(path)),
}
PLACES = {
    "bare": lambda hostile: hostile,
    "in args": lambda hostile: {"model": dict(STATE_DICT), "args": hostile},
    "in a namespace": lambda hostile: {"model": dict(STATE_DICT), "args": argparse.Namespace(hook=hostile)},
    "as model": lambda hostile: {"model": hostile},
    "as tensor": lambda hostile: {**STATE_DICT, "b": hostile},
    "as key": lambda hostile: {**STATE_DICT, (hostile,): torch.ones(1)},
}
WRITERS = {
    "zip": saved,
    "legacy": lambda content: saved(content, legacy=True),
    **{f"pickle {protocol}": lambda content, p=protocol: pickle.dumps(content, p) for protocol in range(6)},
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("kind", KINDS)
def test_hostile(tmp_path, kind, writer):
    victim = tmp_path / "victim"
    for place in PLACES.values():
        path = written(tmp_path, WRITERS[writer](place(KINDS[kind](victim))))
        with pytest.raises(ValueError, match=re.escape(str(path))):
            read_state_dict(path)
        assert not victim.exists()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.skipif(os.name != "posix", reason="the calls are those of a POSIX shell")
@pytest.mark.parametrize("kind", KINDS)
def test_hostile_is_hostile(tmp_path, kind):
    """A reader that trusts the file falls for it."""
    victim = tmp_path / "victim"
    torch.load(written(tmp_path, saved({"args": KINDS[kind](victim)})), weights_only=False)
    assert victim.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_refusal_names_what_the_file_asks_for(tmp_path, kind):
    path = written(tmp_path, saved({"model": STATE_DICT, "args": KINDS[kind](tmp_path / "victim")}))
    with pytest.raises(ValueError, match=rf"`[\w.]*{kind}`") as refusal:
        read_state_dict(path)
    assert "weights_only" not in str(refusal.value)  # never tell anyone to switch the protection off
    assert str(refusal.value).isprintable()


def test_refusal_warns_of_nothing_else(tmp_path, recwarn):
    """The command line promises one line."""
    path = written(tmp_path, pickle.dumps(KINDS["system"](tmp_path / "victim"), protocol=4))
    with pytest.raises(ValueError, match="refused"):
        read_state_dict(path)
    assert [str(warning.message) for warning in recwarn] == []


# ---- damaged

SMALL = {
    "model": {"a": torch.ones(2), "b": torch.zeros(1)},
    "best": np.float64(1.5),
    "args": argparse.Namespace(lr=1.0),
}
FILES = {
    "zip.pth": saved(SMALL),
    "legacy.pth": saved(SMALL, legacy=True),
    "pickle.pth": pickle.dumps({"a": [1, 2.0], "b": "text"}, protocol=2),
    "checkpoint.safetensors": save(SMALL["model"]),
}


def assert_read_or_refused(path: Path) -> None:
    try:
        state_dict = read_state_dict(path)
    except (ValueError, OSError):
        return
    assert state_dict
    assert all(isinstance(value, torch.Tensor) for value in state_dict.values())


@pytest.mark.parametrize("name", FILES)
def test_truncated(tmp_path, name):
    """At every place, where the file is short."""
    content = FILES[name]
    for size in range(0, len(content), max(1, len(content) // 400)):
        with pytest.raises(ValueError, match=re.escape(name)):
            read_state_dict(written(tmp_path, content[:size], name))


DAMAGE = {
    "empty": b"",
    "text": b"hello world\n",
    "page": b"<!DOCTYPE html><html><title>404</title></html>",
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 945000000\n",
    "picture": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",
    "zip without end": b"PK\x03\x04",
    "zeros": bytes(1000),
}


@pytest.mark.parametrize("name", ["checkpoint.pth", "checkpoint.bin", "checkpoint.safetensors"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_no_checkpoint(tmp_path, damage, name):
    path = written(tmp_path, DAMAGE[damage], name)
    with pytest.raises(ValueError, match=re.escape(str(path))) as refusal:
        read_state_dict(path)
    assert "weights_only" not in str(refusal.value)


@pytest.mark.parametrize("name", ["", ".", "missing.pth", "missing/checkpoint.pth", "missing.safetensors"])
def test_no_file(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match="no checkpoint file"):
        read_state_dict(name)


def changed(content: bytes, place: int, byte: int) -> bytes:
    return content[:place] + bytes([byte]) + content[place + 1 :]


def _damaged_storage_key() -> bytes:
    content = saved({"a": torch.ones(2)}, legacy=True)
    *_, key = re.finditer(rb"\d{8,}", content)
    return changed(content, key.end() - 1, ord("x"))


BYTES = {
    "codec": FILES["legacy.pth"].replace(b"latin1", b"latix1"),
    "storage key": _damaged_storage_key(),
    "disks": changed(FILES["zip.pth"], FILES["zip.pth"].index(b"PK\x06\x07") + 16, 2),
    "crc": changed(FILES["zip.pth"], FILES["zip.pth"].index(b"PK\x01\x02") + 16, 0),
    "unknown dtype": FILES["checkpoint.safetensors"].replace(b'"F32"', b'"F4" ', 1),
}


@pytest.mark.parametrize("case", BYTES)
def test_damaged_byte(tmp_path, case):
    name = "checkpoint.safetensors" if case == "unknown dtype" else "checkpoint.pth"
    assert_read_or_refused(written(tmp_path, BYTES[case], name))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FILES)
@settings(max_examples=100, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(data=st.data())
def test_random_damage(scratch, name, data):
    content = bytearray(FILES[name])
    places = st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255))
    for place, byte in data.draw(st.lists(places, max_size=8)):
        content[place] = byte
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    assert_read_or_refused(written(scratch, bytes(content), name))


# ---- renaming and loading


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("a.0.weight", "b.0.w"),
        ("a.12.weight", "b.12.w"),
        ("a.weight", None),
        ("a.0.weight.x", None),
        ("x.a.0.weight", None),
        ("both", "first"),
        ("", None),
    ],
)
def test_rename(key, expected):
    rules = [(r"a\.(\d+)\.weight", r"b.\1.w"), (r"bo(th)", "first"), (r"both", "second")]
    assert rename(key, rules) == expected


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("derived", torch.zeros(4), persistent=False)


def fitting() -> dict[str, torch.Tensor]:
    return {"layer.weight": torch.randn(2, 3), "layer.bias": torch.randn(2), "count": torch.tensor(5)}


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_load_strictly(device):
    with torch.device(device):
        model = Net()
    model.layer.bias.requires_grad_(False)
    state_dict = fitting()
    load_strictly(model, state_dict, "here")
    assert_same(dict(model.state_dict()), state_dict)
    assert model.layer.weight.data_ptr() == state_dict["layer.weight"].data_ptr()
    assert (model.layer.weight.requires_grad, model.layer.bias.requires_grad) == (True, False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer.bias": None}, r"missing keys: layer\.bias\)"),
        ({"count": None}, r"missing keys: count\)"),
        ({"other": torch.ones(1)}, r"unknown keys: other\)"),
        ({"derived": torch.ones(4)}, r"unknown keys: derived\)"),
        ({"layer.weight": torch.ones(3, 2)}, r"layer\.weight has shape \[3, 2\] instead of \[2, 3\]"),
        ({"count": torch.ones(1)}, r"count has shape \[1\] instead of \[\]"),
        (
            {"layer.bias": None, "other": torch.ones(1), "count": torch.ones(1)},
            "missing.*layer.*unknown.*other.*shapes",
        ),
        ({f"extra.{index}": torch.ones(1) for index in range(20)}, "and 12 more"),
    ],
)
def test_load_strictly_names_what_does_not_fit(change, message):
    model = Net()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state_dict = {key: value for key, value in (fitting() | change).items() if value is not None}
    with pytest.raises(ValueError, match=message) as error:
        load_strictly(model, state_dict, "over there")
    assert "over there" in str(error.value)
    assert_same(dict(model.state_dict()), before)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
def test_load_strictly_refuses_weights_that_are_no_real_numbers(dtype):
    with pytest.raises(ValueError, match=r"layer\.weight"):
        load_strictly(Net(), fitting() | {"layer.weight": torch.ones(2, 3, dtype=dtype)}, "here")


def test_the_built_in_checkpoint_has_one_name():
    from crossvlt_hf import configuration_crossvlt
    from crossvlt_hf.weights import names

    assert names.BUILT_IN == configuration_crossvlt.BUILT_IN
