"""Training pairs from data with unreadable references, which are reported and either stop a run or are replaced."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from .pairs import Collator, TrainingPairs, reference_name


OnError = Literal["stop", "skip"]
ON_ERROR: tuple[OnError, ...] = ("stop", "skip")
# So many unreadable references in a row are not a coincidence
MOST_IN_A_ROW = 100


@dataclass(frozen=True)
class BrokenSample:
    """An unreadable reference.

    Args:
        name: data set and id of the reference.
        reason: the error.
    """

    name: str
    reason: str

    def __str__(self) -> str:
        return f"The reference {self.name} cannot be read: {self.reason}"


@dataclass
class Batch:
    """A batch of a training step.

    Args:
        inputs: arguments of the model's forward; empty if a pair could neither be read nor replaced.
        names: data set and id of each pair.
        broken: the unreadable references.
    """

    inputs: dict[str, Tensor] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    broken: list[BrokenSample] = field(default_factory=list)


class ReadablePairs(TorchDataset):
    """Training pairs that return read errors instead of raising them.

    An error raised in a worker of a `DataLoader` would arrive with its whole traceback. Rows have the unreadable
    references in `broken`, and nothing else if none could replace them.

    Args:
        pairs: to read.
        on_error: "stop" replaces nothing; "skip" takes the next readable pair, which depends on the data alone, so a
            resumed run skips the same.
    """

    def __init__(self, pairs: TrainingPairs, on_error: OnError = "stop") -> None:
        self.pairs, self.on_error = pairs, on_error

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Read rows."""
        try:
            return self.pairs.__getitems__(indices)
        except (OSError, ValueError):
            return [self._read(index) for index in indices]

    def _read(self, index: int) -> dict[str, Any]:
        broken: list[BrokenSample] = []
        for candidate in self._candidates(index):
            try:
                return {**self.pairs[candidate], "broken": broken}
            except (OSError, ValueError) as error:
                broken.append(BrokenSample(self.pairs.name(candidate), " ".join(str(error).split()).rstrip(".")))
        return {"broken": broken}

    def _candidates(self, index: int) -> Iterator[int]:
        tries = min(len(self), MOST_IN_A_ROW) if self.on_error == "skip" else 1
        return ((index + number) % len(self) for number in range(tries))


@dataclass
class BatchCollator:
    """Make a `Batch` of rows of `ReadablePairs`.

    Args:
        collate: makes tensors of the readable pairs.
    """

    collate: Collator

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        """Return the batch, without inputs if a row is missing."""
        broken = [sample for row in rows for sample in row.pop("broken", [])]
        if not all(rows):
            return Batch(broken=broken)
        return Batch(self.collate(rows), [reference_name(row, row["index"]) for row in rows], broken)
