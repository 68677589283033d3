"""The checks that packages share: one behaviour wherever options are read."""

import ctypes
import gc
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TypedDict, Unpack

import pytest
from torch.utils.data import DataLoader, Dataset

from crossvlt_hf.benchmark.machine import read_bytes
from crossvlt_hf.cli import read_options
from crossvlt_hf.system import (
    as_it_is,
    call_with_options,
    check_known,
    check_least,
    did_you_mean,
    iterate_loader,
    keep_memory,
    read_number,
    start_worker,
)
from crossvlt_hf.training.settings import convert, read_yaml


INTEGERS = {"0": 0, "7": 7, "+7": 7, "-3": -3, "120": 120}
NO_INTEGERS = ["010", "1_0", "0x10", "1e1", "1.0", "+-1", "\u0661", "\uff11", "ten", "", "true", "1 0", " 1", "1 "]
FLOATS = {"0": 0.0, "1.5": 1.5, ".5": 0.5, "5.": 5.0, "3e-5": 3e-5, "1E3": 1000.0, "-0.25": -0.25, "inf": float("inf")}
NO_FLOATS = ["010.5", "1_0.5", "1e1_0", "0x10", "\u0661", "ten", "", "true", ".", "e5", "1e", "infinity"]


@pytest.mark.parametrize(("kind", "numbers"), [(int, INTEGERS), (float, FLOATS)])
def test_numbers_are_read(kind, numbers):
    for text, number in numbers.items():
        found = read_number(kind, text)
        assert (found, type(found)) == (number, kind)
    for text in NO_INTEGERS if kind is int else NO_FLOATS:
        with pytest.raises(ValueError):  # noqa: PT011 the caller says what is wrong
            read_number(kind, text)


def from_the_command_line(kind: type, text: str) -> float:
    """What an option reads."""
    arguments = ["refshapes", "x", f"--seed={text}"] if kind is int else ["segment", "a", "b", f"--threshold={text}"]
    options = read_options(arguments)[1]
    return options.seed if kind is int else options.threshold


def from_yaml(kind: type, text: str) -> float:
    """What a setting of a training configuration reads."""
    return convert(read_yaml(text, "YAML"), kind, "setting")


@pytest.mark.parametrize(("kind", "numbers"), [(int, INTEGERS), (float, FLOATS)])
def test_the_command_line_and_yaml_read_the_same_numbers(kind, numbers):
    for text, number in numbers.items():
        assert from_the_command_line(kind, text) == from_yaml(kind, text) == number


@pytest.mark.parametrize(
    ("kind", "text"), [*((int, text) for text in NO_INTEGERS), *((float, text) for text in NO_FLOATS)]
)
def test_the_command_line_and_yaml_refuse_the_same(capsys, kind, text):
    with pytest.raises(SystemExit):
        from_the_command_line(kind, text)
    assert f"must be {'an integer' if kind is int else 'a number'}, got {text!r}." in capsys.readouterr().err
    if text == text.strip():  # which YAML would take away
        with pytest.raises(ValueError, match=f"must be {'an integer' if kind is int else 'a number'}, got "):
            from_yaml(kind, text)


def test_the_nearest_known_name_is_suggested():
    assert did_you_mean("valdation", ["train", "validation"]) == " Did you mean validation?"
    assert did_you_mean("WandB", ["wandb"]) == " Did you mean wandb?"
    assert did_you_mean("testa", ["testA"]) == " Did you mean testA?"
    for other in ("riddle", "", None, 3, ["train"]):
        assert did_you_mean(other, ["train", "validation"]) == ""


@pytest.mark.parametrize("value", ["trian", None, 3, ["train"], {}])
def test_unknown_values_are_named(value):
    check_known("split", "train", ("train", "val"))
    with pytest.raises(ValueError, match=r"`split` must be one of train, val, got "):
        check_known("split", value, {"train": 1, "val": 2})


@pytest.mark.parametrize("value", [0, -1, 1.5, "2", True])
def test_numbers_that_are_too_small_are_named(value):
    for good in (1, 2, None):
        check_least("scenes", good, 1)
    with pytest.raises(ValueError, match="`scenes` must be an integer of at least 1, got "):
        check_least("scenes", value, 1)


class Flags(TypedDict, total=False):
    """Options that several readers share."""

    depth: int
    tall: bool


def read_by_name(path: str, *, width: int = 1, **flags: Unpack[Flags]) -> tuple:
    return path, width, flags


def read_by_place(path: str, width: int = 1, depth: int = 0) -> tuple:
    return path, width, depth


def test_options_are_passed_on():
    assert call_with_options(read_by_name, "notes", {"tall": True}, "a", width=3) == ("a", 3, {"tall": True})
    assert call_with_options(read_by_place, "notes", {"depth": 2}, "a", 3) == ("a", 3, 2)


@pytest.mark.parametrize(
    ("function", "own", "option", "message"),
    [
        (
            read_by_name,
            {},
            "widht",
            "notes has no option 'widht'; its options are width, depth, tall. Did you mean width?",
        ),
        (read_by_name, {"width": 1}, "width", "notes has no option 'width'; its options are depth, tall."),
        (read_by_place, {}, "path", "notes has no option 'path'; its options are width, depth."),
        (read_by_place, {}, "x", "notes has no option 'x'; its options are width, depth."),
        (len, {}, "x", "notes has no option 'x'."),
    ],
)
def test_unknown_options_are_named(function, own, option, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call_with_options(function, "notes", {option: 1}, "a", **own)


def copied_by_a_collection() -> int:
    """Bytes that become private to this process by a full garbage collection."""
    before = read_bytes(Path("/proc/self/smaps_rollup"), "Private_Dirty")
    gc.collect()
    return read_bytes(Path("/proc/self/smaps_rollup"), "Private_Dirty") - before


class Collecting(Dataset):
    """Rows are what a collection in a worker copies."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        return copied_by_a_collection()


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: reads the memory of a process")
def test_neither_a_worker_nor_its_main_process_copies_what_they_share():
    shared = [[number] for number in range(1_000_000)]  # at least 64 bytes each
    loader = DataLoader(Collecting(), num_workers=1, worker_init_fn=start_worker, collate_fn=as_it_is)
    for (copied,) in iterate_loader(loader):
        assert copied < 8 * 2**20
        assert copied_by_a_collection() < 8 * 2**20
    del shared


def test_the_collector_visits_objects_again_when_a_loader_ends():
    seen = """
import gc
from crossvlt_hf.system import FROZEN_BY_PYTHON, iterate_loader

def frozen():
    return gc.get_freeze_count() > FROZEN_BY_PYTHON

def broken():
    yield 1
    raise ValueError

def read(loader):
    return [frozen() for _ in iterate_loader(loader)]

assert not frozen() and read("ab") == [True, True] and not frozen()
loader = iterate_loader("ab")
next(loader)
assert read("a") == [True] and frozen()  # a loader in another, as a validation in a training
loader.close()
assert not frozen()
try:
    read(broken())
except ValueError:
    assert not frozen()
gc.freeze()
assert read("a") == [True] and frozen()  # frozen by somebody else
print("all seen")
"""
    assert subprocess.run([sys.executable, "-c", seen], capture_output=True, text=True).stdout == "all seen\n"


@pytest.mark.parametrize(
    "kept",
    [
        "kept = open_loader(); next(kept)",
        "import gc; kept = [open_loader()]; next(kept[0]); kept.append(kept); del kept; gc.freeze()",
        "try: list(open_loader(broken=True))\nexcept ValueError as error: kept = error",
    ],
    ids=["iterator", "frozen garbage", "error"],
)
def test_python_does_not_wait_for_workers_when_it_ends(kept):
    program = f"""
from torch.utils.data import DataLoader
from crossvlt_hf.system import iterate_loader, start_worker

class Rows:
    def __init__(self, broken):
        self.broken = broken
    def __len__(self):
        return 100
    def __getitem__(self, index):
        if self.broken:
            raise ValueError("broken")
        return index

def open_loader(broken=False):
    return iterate_loader(DataLoader(Rows(broken), num_workers=1, worker_init_fn=start_worker))

{kept}
print("ends")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "ends\n", "")


# ---- memory

PAGES = """
import ctypes
import resource
from crossvlt_hf import system

C = ctypes.CDLL(None)
C.malloc.restype = ctypes.c_void_p


def use(size):
    memory = ctypes.c_void_p(C.malloc(ctypes.c_size_t(size)))
    C.memset(memory, 1, ctypes.c_size_t(size))
    C.free(memory)


if {keeps}:
    system.keep_memory()
use(31 * 2**20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use(24 * 2**20)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults * resource.getpagesize() // 2**20)
"""
HAS_GLIBC = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")


@pytest.mark.skipif(not HAS_GLIBC, reason="only glibc has these settings")
@pytest.mark.parametrize(
    ("keeps", "variables", "again"),
    [
        (True, {}, 0),
        (False, {}, 24),
        (True, {"MALLOC_MMAP_THRESHOLD_": "262144"}, 24),  # of the user
        (True, {"MALLOC_TRIM_THRESHOLD_": "1048576"}, 24),
        (True, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=262144"}, 24),
    ],
)
def test_the_pages_of_a_map_are_made_again(keeps, variables, again):
    """How many MiB of a map of 24 MiB are got from the system, although a larger one was freed before.

    Both are below 32 MiB, the highest threshold of older versions of glibc.
    """
    kept = {name: value for name, value in os.environ.items() if "MALLOC" not in name and name != "GLIBC_TUNABLES"}
    command = [sys.executable, "-c", PAGES.format(keeps=keeps)]
    done = subprocess.run(command, env=kept | variables, capture_output=True, text=True, check=True)
    assert int(done.stdout) == pytest.approx(again, abs=4)


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_memory_of_other_systems_is_left_alone(platform, monkeypatch):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: 1 / 0)
    keep_memory()


def test_memory_of_another_c_library_is_left_alone(monkeypatch):
    """That of Alpine Linux has no `mallopt`."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    keep_memory()


@pytest.mark.parametrize(
    ("refused", "expected"),
    [
        ([], [(-3, 64), (-1, 512)]),
        ([64], [(-3, 64), (-3, 32), (-1, 512)]),
        ([64, 32], [(-3, 64), (-3, 32)]),
    ],
)
def test_older_versions_of_glibc_take_lower_thresholds(refused, expected, monkeypatch):
    """What to keep is not set alone, since that would fix the first threshold, which is low."""
    calls = []

    def mallopt(option, value):
        calls.append((option, value // 2**20))
        return int(value // 2**20 not in refused)

    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    keep_memory()
    assert calls == expected
