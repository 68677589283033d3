"""What is measured: a case is one point of a grid."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ..checks import check_known, check_least


TASKS = ("inference", "training")
DTYPES = ("float32", "bfloat16", "float16")
ATTENTIONS = ("sdpa", "eager")
# Of an image: 32,768 pixels a side fill 12 GiB
LARGEST_SIDE = 2**15
# Axes along which figures grow, and that a scaling curve follows
SCALES = ("size", "expressions", "batch")


@dataclass(frozen=True)
class Case:
    """One way of running one model.

    Args:
        model: its name in the report.
        task: "inference" is a forward pass; "training" forward with loss, backward and a step of the optimizer.
        device: such as "cpu" or "cuda".
        dtype: of weights and activations; in training that of autocast, the weights being float32.
        attention: implementation in Transformers.
        compiled: whether by `torch.compile`.
        checkpointing: whether activations are computed again in the backward pass.
        batch: images.
        size: height and width in pixels that the model reads; None is what its processor makes.
        expressions: of each image.
        tokens: of each expression.
        peer: whether the model is one of Transformers and not ours.
    """

    model: str
    task: str = "inference"
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
        """The same for all cases that can share a model in memory."""
        return replace(self, batch=1, size=None, expressions=1, tokens=1)

    @property
    def label(self) -> str:
        """What it is, in words."""
        size = "" if self.size is None else f"{self.size[0]}x{self.size[1]}"
        switches = [name for name in ("compiled", "checkpointing") if getattr(self, name)]
        counts = [f"batch {self.batch}", f"{self.expressions} expression{'s' if self.expressions > 1 else ''}"]
        words = [self.model, self.task, self.device, self.dtype, self.attention, *switches, size, *counts]
        return ", ".join(word for word in words if word)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "size": None if self.size is None else list(self.size)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Case":
        """From what `to_dict` gave, perhaps through JSON."""
        size = values["size"]
        return cls(**{**values, "size": None if size is None else tuple(size)})


@dataclass(frozen=True)
class Grid:
    """The values of every axis, named as the fields of a case; see there.

    Args:
        one_at_a_time: vary batch, size and expressions one after the other around the first value of each, which
            gives scaling curves with few cases; else every combination.
    """

    model: Sequence[str]
    task: Sequence[str] = ("inference",)
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
                raise ValueError(f"`{axis}` has no values; give at least one.")
        for axis, known in (("task", TASKS), ("dtype", DTYPES), ("attention", ATTENTIONS)):
            for value in getattr(self, axis):
                check_known(axis, value, known)
        for axis in ("batch", "expressions", "tokens"):
            for value in getattr(self, axis):
                check_least(axis, value, 1)
        for side in itertools.chain.from_iterable(size for size in self.size if size is not None):
            check_least("size", side, 1)
            if side > LARGEST_SIDE:
                raise ValueError(f"`size` is {side}; give at most {LARGEST_SIDE} pixels a side.")

    @classmethod
    def axes(cls) -> list[str]:
        """Their names, the slowest first."""
        return [field.name for field in fields(cls) if field.name != "one_at_a_time"]

    def weights_dtypes(self) -> list[str]:
        """In which weights are needed; the first dtype is that in which they are loaded for the time of it."""
        needed = (weights_dtype(task, dtype) for task in self.task for dtype in self.dtype)
        return list(dict.fromkeys([*self.dtype[:1], *needed]))

    def cases(self) -> list[Case]:
        """The cases, none twice."""
        found = (
            _simplify(Case(**dict(zip(self.axes(), values, strict=True))))
            for grid in self._products()
            for values in itertools.product(*(getattr(grid, axis) for axis in self.axes()))
        )
        return list(dict.fromkeys(found))

    def _products(self) -> Iterator["Grid"]:
        """The grids whose products are wanted."""
        if not self.one_at_a_time:
            yield self
            return
        centre = replace(self, **{axis: getattr(self, axis)[:1] for axis in SCALES})
        for axis in SCALES:
            yield replace(centre, **{axis: getattr(self, axis)})


def weights_dtype(task: str, dtype: str) -> str:
    """In which the weights of such a case are: those that are trained in float32."""
    return "float32" if task == "training" else dtype


def _simplify(case: Case) -> Case:
    """Without the options that mean nothing in its task."""
    if case.task == "inference":
        return replace(case, checkpointing=False)
    return replace(case, compiled=False, expressions=1)
