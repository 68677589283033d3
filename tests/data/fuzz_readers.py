"""Readers of files from strangers, each fed with broken bytes. Every answer but the documented errors is a crash.

python fuzz_readers.py READER [--inputs 10000] [--seed 0]     mutations of valid files, from a seed
python fuzz_readers.py READER --atheris [libFuzzer options]   guided by coverage (`pip install atheris`)

A crash is written beside as crash-READER-<hash>, and read again by `--input FILE`.
"""

import argparse
import hashlib
import json
import pickle
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from io import BytesIO
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from fabricate import box, photo, write_refer
from parity.fill import fill_state_dict
from PIL import Image
from safetensors.torch import save

import crossvlt_hf
from crossvlt_hf.data.files import header_size, read_json
from crossvlt_hf.data.masks import decode_mask, encode_mask, read_mask
from crossvlt_hf.data.sources import folder as folders
from crossvlt_hf.data.sources import phrasecut, refer
from crossvlt_hf.processing_crossvlt import to_rgb
from crossvlt_hf.training.config import load_config
from crossvlt_hf.weights.original import convert_state_dict, infer_config
from crossvlt_hf.weights.state_dicts import read_state_dict


DOCUMENTED = (ValueError, OSError)
SLOW = 20.0  # seconds after which an input counts as a crash
HEIGHT, WIDTH = 24, 32
MASK = (photo(HEIGHT, WIDTH)[..., 0] > 128).astype("uint8")
ODD_VALUES: list[Any] = [
    *(None, True, [], {}, "", " ", "a\0b", "\ud800", "../../x", "/etc/passwd", "é" * 300, [[]], [None], {"size": 1}),
    *(0, -1, 1, 2**31, 2**63, 10**30, -0.5, 1e308, float("nan"), float("inf"), "0", "nan"),
]
ODD_BYTES = [
    b"",
    b"\0",
    b"\xff" * 8,
    b"\x7f\xff\xff\xff",
    b'"',
    b"{",
    b"]",
    b"\n",
    b"\\u",
    b"-1",
    b"1e999",
    b"NaN",
    b"../",
]


class Reader:
    """A reader with valid files of its kind in a folder of its own."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.prepare()

    def prepare(self) -> None:
        """Write what lies around the file, and set `seeds`."""
        raise NotImplementedError

    def read(self, data: bytes) -> None:
        """Read a file of these bytes; raise what the reader raises."""
        raise NotImplementedError

    def write(self, name: str, data: bytes) -> Path:
        path = self.work / name
        path.write_bytes(data)
        return path

    seeds: list[bytes]


class _Refer(Reader):
    def prepare(self) -> None:
        things = [(MASK, ["the cup", "left"]), ([box(2, 2, 8, 6)], ["a plate"])]
        write_refer(self.work, {"train": [(photo(HEIGHT, WIDTH), things)]})
        self.folder = self.work / "refcoco"

    def load(self) -> None:
        _decode(refer.load_refer("refcoco", "train", root=self.work))


class ReferPickle(_Refer):
    """`refs(unc).p`."""

    def prepare(self) -> None:
        super().prepare()
        refs = (self.folder / "refs(unc).p").read_bytes()
        self.seeds = [refs, pickle.dumps(pickle.loads(refs), 0), pickle.dumps(pickle.loads(refs), 5)]

    def read(self, data: bytes) -> None:
        (self.folder / "refs(unc).p").write_bytes(data)
        self.load()


class ReferInstances(_Refer):
    """`instances.json`."""

    def prepare(self) -> None:
        super().prepare()
        self.seeds = [(self.folder / "instances.json").read_bytes()]

    def read(self, data: bytes) -> None:
        (self.folder / "instances.json").write_bytes(data)
        self.load()


class Metadata(Reader):
    """`metadata.jsonl` of a user's folder."""

    def prepare(self) -> None:
        Image.fromarray(photo(HEIGHT, WIDTH)).save(self.work / "a.png")
        Image.fromarray(MASK * 255).save(self.work / "mask.png")
        rows: list[dict[str, Any]] = [
            {"image": "a.png", "expression": "the cup", "mask": "mask.png"},
            {"file_name": "a.png", "expressions": ["a", "b"], "polygons": [[[2, 2], [8, 2], [8, 9]]], "split": "test"},
            {"image": "a.png", "expression": "x", "segmentation": encode_mask(MASK), "ref_id": 5, "family": "f"},
            {"image": "a.png", "expression": "none", "no_target": True},
        ]
        self.seeds = [json.dumps(row).encode() for row in rows] + ["\n".join(map(json.dumps, rows)).encode()]

    def read(self, data: bytes) -> None:
        self.write("metadata.jsonl", data)
        _decode(folders.load_folder(self.work))


class Segmentation(Reader):
    """Polygons and run lengths, as JSON."""

    def prepare(self) -> None:
        counts = [10, 20, HEIGHT * WIDTH - 30]
        parts: list[Any] = [[box(2, 2, 8, 6)], encode_mask(MASK), {"size": [HEIGHT, WIDTH], "counts": counts}]
        self.seeds = [json.dumps(part).encode() for part in [*parts, parts[1:], [box(1, 1, 4, 4), box(9, 9, 2, 2)]]]

    def read(self, data: bytes) -> None:
        decode_mask(read_json(self.write("segmentation.json", data)), HEIGHT, WIDTH)


class PhraseCut(Reader):
    """`refer_*.json`."""

    def prepare(self) -> None:
        (self.work / "images").mkdir()
        Image.fromarray(photo(HEIGHT, WIDTH)).save(self.work / "images" / "61.jpg")
        table = [{"image_id": 61, "coco_id": 9, "width": WIDTH, "height": HEIGHT}]
        self.write("image_data_split3000.json", json.dumps(table).encode())
        polygons = [[[[2, 2], [8, 2], [8, 6]]], [[[20, 4], [26.7, 4], [26, 9.2]]]]
        task = {"task_id": "61__1", "image_id": 61, "ann_ids": [1, 2], "Polygons": polygons, "phrase": "cups"}
        self.seeds = [json.dumps([task]).encode()]

    def read(self, data: bytes) -> None:
        self.write("refer_miniv.json", data)
        _decode(phrasecut.load_phrasecut("miniv", root=self.work))


class Checkpoint(Reader):
    """The authors' `.pth`, in both of PyTorch's formats."""

    name = "original.pth"

    def prepare(self) -> None:
        shapes = json.loads((Path(__file__).parents[1] / "parity" / "tiny.json").read_text())["shapes"]
        tensors = {f"module.{key}": value for key, value in fill_state_dict(shapes).items()}
        contents = [{"model": tensors, "args": argparse.Namespace(lr=1.0), "epoch": 3}, tensors]
        self.seeds = []
        for content in contents:
            for zipped in (True, False):
                file = BytesIO()
                torch.save(content, file, _use_new_zipfile_serialization=zipped)
                self.seeds.append(file.getvalue())

    def read(self, data: bytes) -> None:
        state_dict = read_state_dict(self.write(self.name, data))
        infer_config(state_dict)
        convert_state_dict(state_dict)


class Safetensors(Checkpoint):
    """The same as safetensors."""

    name = "original.safetensors"

    def prepare(self) -> None:
        shapes = json.loads((Path(__file__).parents[1] / "parity" / "tiny.json").read_text())["shapes"]
        self.seeds = [save(fill_state_dict(shapes))]


MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F")


@cache
def pictures() -> dict[tuple[str, str], bytes]:
    """A file in each format and mode that Pillow both writes and reads here."""
    Image.init()
    files = {}
    for form in sorted(Image.SAVE.keys() & Image.OPEN.keys()):
        # ICNS files hold ten PNGs of up to 1024 pixels, in any mode
        for mode in ("L", "RGBA") if form == "ICNS" else MODES:
            file = BytesIO()
            # A format has few of the modes, or needs a program that is not installed
            with suppress(Exception), warnings.catch_warnings(action="ignore"):
                image = Image.fromarray(photo(HEIGHT, WIDTH))
                deep = np.asarray(image.convert("L")).astype(np.uint16) * 257
                deep = {"I;16": deep, "I": deep.astype(np.int32)}
                (Image.fromarray(deep[mode]) if mode in deep else image.convert(mode)).save(file, form)
                Image.open(file).load()
                files[form, mode] = file.getvalue()
    return files


class Picture(Reader):
    """Images and masks."""

    def prepare(self) -> None:
        self.seeds = list(pictures().values())

    def read(self, data: bytes) -> None:
        path = self.write("picture", data)
        for read in (read_mask, header_size):
            with suppress(DOCUMENTED):
                read(str(path))
        header_size.cache_clear()
        to_rgb(path)


class Configuration(Reader):
    """A training run's YAML."""

    def prepare(self) -> None:
        self.seeds = [
            *(
                path.read_bytes()
                for path in sorted((Path(crossvlt_hf.__file__).parent / "training" / "configs").glob("*.yaml"))
            ),
        ]

    def read(self, data: bytes) -> None:
        load_config(self.write("run.yaml", data))


READERS: dict[str, type[Reader]] = {
    **{"refer-pickle": ReferPickle, "refer-instances": ReferInstances, "metadata": Metadata, "phrasecut": PhraseCut},
    **{"segmentation": Segmentation, "checkpoint": Checkpoint, "safetensors": Safetensors, "picture": Picture},
    "configuration": Configuration,
}


def _decode(dataset: Any) -> None:
    """Every row, with its image and mask."""
    for row in dataset:
        assert row["mask"].shape == (row["image"].height, row["image"].width)


# ---- mutations


def _mutate_bytes(data: bytes, source: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(source.choice((1, 1, 2, 4, 8))):
        start = source.randrange(len(out) + 1)
        end = min(len(out), start + source.choice((0, 1, 2, 4, 16, len(out))))
        piece = source.choice((bytes([source.randrange(256)]), source.choice(ODD_BYTES), bytes(out[start:end]) * 2))
        out[start:end] = piece
    return bytes(out)


def _mutate_value(value: Any, source: random.Random) -> Any:
    """The same JSON with an odd value somewhere."""
    inner = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not inner or source.random() < 0.2:
        return source.choice(ODD_VALUES)
    key, copy = source.choice(inner), value.copy()
    chance = source.random()
    if chance < 0.1:
        del copy[key]
    elif chance < 0.2 and isinstance(copy, list):
        copy.insert(key, copy[key])
    else:
        copy[key] = _mutate_value(copy[key], source)
    return copy


def mutate(seed: bytes, source: random.Random) -> bytes:
    """A broken file: bytes changed anywhere, or, of JSON and plain pickles, a value."""
    if source.random() < 0.5:
        return _mutate_bytes(seed, source)
    lines = seed.split(b"\n")
    for loads, dumps in ((json.loads, lambda x: json.dumps(x).encode()), (pickle.loads, pickle.dumps)):
        try:
            line = source.randrange(len(lines)) if loads is json.loads else 0
            changed = dumps(_mutate_value(loads(lines[line] if loads is json.loads else seed), source))
        except Exception:
            continue
        return b"\n".join([*lines[:line], changed, *lines[line + 1 :]]) if loads is json.loads else changed
    return _mutate_bytes(seed, source)


def attempt(reader: Reader, data: bytes) -> str:
    """How the reader answers: "read", or the name of the documented error. Whatever else it raises comes through."""
    start = time.monotonic()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader.read(data)
        answer = "read"
    except UnicodeError:
        raise  # a ValueError, but no sentence of ours
    except DOCUMENTED as error:
        answer = type(error).__name__
    if time.monotonic() - start > SLOW:
        raise TimeoutError(f"An input of {len(data)} bytes took more than {SLOW} s.")
    return answer


def fuzz(
    name: str, inputs: int, seed: int, work: Path, on_crash: Callable[[bytes], None] = lambda data: None
) -> Counter[str]:
    """Feed a reader with so many broken files; how often it answered what, "CRASH ..." among it."""
    reader, source, answers = READERS[name](work), random.Random(seed), Counter[str]()
    for valid in reader.seeds:
        reader.read(valid)
    for _ in range(inputs):
        data = mutate(source.choice(reader.seeds), source)
        try:
            answers[attempt(reader, data)] += 1
        except BaseException as error:
            answers[f"CRASH {type(error).__name__}: {str(error)[:80]}"] += 1
            on_crash(data)
            if isinstance(error, KeyboardInterrupt):
                raise
    return answers


# Whose coverage guides the fuzzer
GUIDES = ("crossvlt_hf", "json", "pickletools", "yaml")


def _functions(module: ModuleType) -> Iterator[FunctionType]:
    """The functions and methods that a module defines."""
    for value in vars(module).values():
        members = vars(value).values() if isinstance(value, type) else (value,)
        for member in members:
            if isinstance(member, FunctionType) and member.__module__ == module.__name__:
                yield member


def _guided(name: str, work: Path, options: list[str]) -> None:
    import atheris

    # All that torch brings would take minutes
    for module in [module for name, module in list(sys.modules.items()) if name.split(".")[0] in GUIDES]:
        for function in _functions(module):
            atheris.instrument_func(function)
    reader = READERS[name](work / "files")
    corpus = work / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(reader.seeds):
        (corpus / str(number)).write_bytes(seed)
    atheris.Setup([sys.argv[0], *options, str(corpus)], lambda data: attempt(reader, data))
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reader", choices=READERS)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--input", help="one file, instead")
    parser.add_argument("--atheris", action="store_true", help="guided by coverage; what follows goes to libFuzzer")
    arguments, rest = parser.parse_known_args()

    def keep(data: bytes) -> None:
        path = Path(f"crash-{arguments.reader}-{hashlib.sha256(data).hexdigest()[:12]}")
        path.write_bytes(data)
        print(f"{path}: {traceback.format_exc(limit=-3)}", file=sys.stderr)

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if arguments.atheris:
            (work / "files").mkdir()
            _guided(arguments.reader, work, rest)
        if arguments.input:
            print(attempt(READERS[arguments.reader](work), Path(arguments.input).read_bytes()))
            return 0
        answers = fuzz(arguments.reader, arguments.inputs, arguments.seed, work, keep)
    print(json.dumps({"reader": arguments.reader, "seed": arguments.seed, "answers": answers}))
    return int(any(answer.startswith("CRASH") for answer in answers))


if __name__ == "__main__":
    sys.exit(main())
