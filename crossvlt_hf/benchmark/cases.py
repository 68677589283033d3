"""What a benchmark measures, and its cases: the points of a grid of options. Imports nothing heavy."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.util import find_spec
from typing import Any

from ..system import check_integer, check_known, check_least, check_workers


TASKS = ("inference", "training")
# Weights and activations of matrix products in int8, those of activations with scales that are found when they are
# made (dynamic) or on examples before (static)
INT8 = ("int8-dynamic", "int8-static")
FLOATS = ("float32", "bfloat16", "float16")
DTYPES = (*FLOATS, *INT8)
ATTENTIONS = ("sdpa", "eager")
OPTIMIZERS = ("adamw", "none")
PEER_NAMES = ("clipseg", "grounding-dino-sam", "sam3")
MEASURES = ("time", "memory", "load", "agreement")
# These measure a model as a whole, not its cases
MODEL_MEASURES = ("phases", "prediction")
ALL_MEASURES = (*MEASURES, *MODEL_MEASURES)
EXPORTED = {
    "task": ("inference",),
    "device": ("cpu",),
    "attention": ("sdpa",),
    "compiled": (False,),
    "checkpointing": (False,),
}
# The values that a backend can run, by axis; any on other axes
BACKENDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "torch": {"dtype": FLOATS},
    "onnxruntime": {**EXPORTED, "dtype": ("float32", *INT8)},
    "openvino": {**EXPORTED, "dtype": ("float32",)},
}
# What pip must install for a backend
PACKAGES = {
    "torch": ("torch",),
    "onnxruntime": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
}
# of an image, in pixels: 32,768 x 32,768 take 12 GiB
LARGEST_SIDE = 2**15
LARGEST_SEED = 2**63 - 1  # of torch
# Axes of scaling curves
SCALES = ("size", "expressions", "batch")


@dataclass(frozen=True)
class Case:
    """A model and the options to run it with.

    Args:
        model: name in the report.
        task: "inference" (forward pass) or "training" (forward with loss, backward, and a step of the optimizer).
        backend: one of `BACKENDS`; all but "torch" run the network that `crossvlt export` writes as ONNX.
        device: such as "cpu" or "cuda".
        dtype: of weights and activations; for training, that of autocast, with weights in float32. With one of `INT8`,
            only those of matrix products and, if static, convolutions are in int8.
        attention: implementation of Transformers, of the backend "torch".
        compiled: whether to use `torch.compile`.
        checkpointing: whether to recompute activations in the backward pass.
        batch: number of images.
        size: height and width of the model's input in pixels; None for that of its processor.
        expressions: per image.
        tokens: per expression.
        peer: whether the model is one of `peers.PEERS`.
    """

    model: str
    task: str = "inference"
    backend: str = "torch"
    device: str = "cpu"
    dtype: str = "float32"
    attention: str = "sdpa"
    compiled: bool = False
    checkpointing: bool = False
    batch: int = 1
    size: tuple[int, int] | None = None
    expressions: int = 1
    tokens: int = 21
    peer: bool = False

    @property
    def instance(self) -> "Case":
        """A key that is the same for cases that can share a model in memory."""
        return replace(self, batch=1, size=None, expressions=1, tokens=1)

    @property
    def exported(self) -> bool:
        """Whether the backend runs an exported network."""
        return self.backend != "torch"

    @property
    def weights(self) -> str:
        """The key of its checkpoint or exported network among those of its model."""
        return f"onnx {self.dtype}" if self.exported else weights_dtype(self.task, self.dtype)

    @property
    def peak_dtype(self) -> str:
        """The dtype of the peak to compare with: float32 for int8, in which torch has no general matrix product."""
        return weights_dtype("inference", self.dtype)

    @property
    def label(self) -> str:
        """Describe the case in words."""
        size = "" if self.size is None else f"{self.size[0]}x{self.size[1]}"
        switches = [name for name in ("compiled", "checkpointing") if getattr(self, name)]
        counts = [f"batch {self.batch}", f"{self.expressions} expression{'s' if self.expressions > 1 else ''}"]
        how = [self.backend, self.device, self.dtype] if self.exported else [self.device, self.dtype, self.attention]
        words = [self.model, self.task, *how, *switches, size, *counts]
        return ", ".join(word for word in words if word)

    def to_dict(self) -> dict[str, Any]:
        """Convert to values of JSON."""
        return {**asdict(self), "size": None if self.size is None else list(self.size)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Case":
        """The inverse of `to_dict`, also after a round trip through JSON."""
        size = values["size"]
        return cls(**{**values, "size": None if size is None else tuple(size)})


@dataclass(frozen=True)
class Grid:
    """The values of all axes, which have the names of the fields of [`Case`].

    Args:
        one_at_a_time: vary batch, size and expressions one at a time around their first values, for scaling curves
            with few cases, instead of all combinations.
    """

    model: Sequence[str]
    task: Sequence[str] = ("inference",)
    backend: Sequence[str] = ("torch",)
    device: Sequence[str] = ("cpu",)
    dtype: Sequence[str] = ("float32",)
    attention: Sequence[str] = ("sdpa",)
    compiled: Sequence[bool] = (False,)
    checkpointing: Sequence[bool] = (False,)
    batch: Sequence[int] = (1,)
    size: Sequence[tuple[int, int] | None] = (None,)
    expressions: Sequence[int] = (1,)
    tokens: Sequence[int] = (21,)
    one_at_a_time: bool = False

    def __post_init__(self) -> None:
        for axis in self.axes():
            if not getattr(self, axis):
                raise ValueError(f"`{axis}` must have at least one value.")
        for axis, known in (
            ("task", TASKS),
            ("backend", BACKENDS),
            ("dtype", DTYPES),
            ("attention", ATTENTIONS),
        ):
            for value in getattr(self, axis):
                check_known(axis, value, known)
        self._check_backends()
        for axis in ("batch", "expressions", "tokens"):
            for value in getattr(self, axis):
                check_least(axis, value, 1)
        for side in itertools.chain.from_iterable(size for size in self.size if size is not None):
            check_integer("size", side, 1, LARGEST_SIDE)

    def _check_backends(self) -> None:
        """Raise ValueError if some backend can run no value of an axis, or a value can be run by none of them."""
        for axis in ("task", "device", "dtype", "attention", "compiled", "checkpointing"):
            values = getattr(self, axis)
            for backend in self.backend:
                known = BACKENDS[backend].get(axis, values)
                if not set(known) & set(values):
                    raise ValueError(_say_what_runs(axis, known, [backend], values[0]))
            known = list(dict.fromkeys(each for name in self.backend for each in BACKENDS[name].get(axis, values)))
            for value in values:
                if value not in known:
                    raise ValueError(_say_what_runs(axis, known, self.backend, value))

    @classmethod
    def axes(cls) -> list[str]:
        """Their names, from the outer to the inner loop."""
        return [field.name for field in fields(cls) if field.name != "one_at_a_time"]

    def weights_dtypes(self) -> list[str]:
        """The dtypes in which weights are needed."""
        needed = (weights_dtype(task, dtype) for task in self.task for dtype in self.dtype)
        return list(dict.fromkeys([self.loading_dtype(), *needed]))

    def loading_dtype(self) -> str:
        """The dtype in which loading is timed."""
        return weights_dtype("inference", self.dtype[0])

    def cases(self) -> list[Case]:
        """The cases that their backend can run, without duplicates."""
        found = (
            Case(**dict(zip(self.axes(), values, strict=True)))
            for grid in self._products()
            for values in itertools.product(*(getattr(grid, axis) for axis in self.axes()))
        )
        return list(dict.fromkeys(_simplify(case) for case in found if _runs(case)))

    def _products(self) -> Iterator["Grid"]:
        """The grids with all combinations to measure."""
        if not self.one_at_a_time:
            yield self
            return
        centre = replace(self, **{axis: getattr(self, axis)[:1] for axis in SCALES})
        for axis in SCALES:
            yield replace(centre, **{axis: getattr(self, axis)})


@dataclass(frozen=True)
class Options:
    """What to measure, and how.

    Args:
        grid: cases of CrossVLT models.
        peers: of `PEER_NAMES`, which run with their defaults on the devices and in the dtypes of the grid.
        measures: some of "time", "memory", "load", "agreement" (of exported networks with torch in float32, on drawn
            scenes), "phases" and "prediction" (see `measure_phases`, `measure_predictions`; they need the extra
            `train`). Parameters and operations are always counted.
        rounds: number of timings of each case.
        warm_up: number of runs of each case before timing.
        optimizer: of training steps, "adamw" or "none".
        threads: number of CPU threads; None for the default of PyTorch.
        seed: of random weights and inputs.
        rows: of "prediction", at least ten batches.
        workers: processes that load the images of "prediction".
    """

    grid: Grid
    peers: Sequence[str] = ()
    measures: Sequence[str] = MEASURES
    rounds: int = 10
    warm_up: int = 1
    optimizer: str = "adamw"
    threads: int | None = None
    seed: int = 0
    rows: int = 1000
    workers: int = 1

    def __post_init__(self) -> None:
        for name, known in (("peers", PEER_NAMES), ("measures", ALL_MEASURES)):
            for value in getattr(self, name):
                check_known(name, value, known)
        if self.peers and "torch" not in self.grid.backend:
            raise ValueError(f"`peers` needs the backend torch, got {', '.join(self.grid.backend)}.")
        check_known("optimizer", self.optimizer, OPTIMIZERS)
        for name in ("rounds", "warm_up"):
            check_least(name, getattr(self, name), 1)
        check_workers("threads", self.threads, 1)
        check_workers("workers", self.workers)
        if "prediction" in self.measures:
            check_least("rows", self.rows, 10 * max(self.grid.batch))
        check_integer("seed", self.seed, 0, LARGEST_SEED)


def weights_dtype(task: str, dtype: str) -> str:
    """The dtype of a checkpoint's weights: float32 for training, and to make int8 of them."""
    return "float32" if task == "training" or dtype in INT8 else dtype


def check_installed(backend: str) -> None:
    """Raise ValueError, with the command to install it, unless a backend is installed."""
    missing = " ".join(name for name in PACKAGES[backend] if find_spec(name) is None)
    if missing:
        raise ValueError(f"The backend {backend} needs {missing.replace(' ', ', ')}: pip install {missing}")


def _say_what_runs(axis: str, known: Sequence[Any], backends: Sequence[str], value: Any) -> str:
    several = f"backend{'s' if len(backends) > 1 else ''} {', '.join(backends)}"
    one_of = "one of " if len(known) > 1 else ""
    shown = [{True: "on", False: "off"}.get(each, str(each)) for each in (*known, value)]
    return f"`{axis}` must be {one_of}{', '.join(shown[:-1])} for the {several}, got {shown[-1]!r}."


def _runs(case: Case) -> bool:
    return all(getattr(case, axis) in known for axis, known in BACKENDS[case.backend].items())


def _simplify(case: Case) -> Case:
    """Reset the options that have no effect on the task."""
    if case.task == "inference":
        return replace(case, checkpointing=False)
    return replace(case, compiled=False, expressions=1)
