"""What is known of a checkpoint beside its config; `crossvlt_hf.publishing.card` makes a model card of it.

A checkpoint folder may hold, beside what Transformers writes:

about.yaml     the fields of `About`
results.json   `evaluations`, a list of reports as `crossvlt evaluate` writes them (one with a `source` is somebody
               else's), `timing`, a list of what was measured of size and speed, and `weights`, the hash of the file of
               weights that all this is of
training.json  how it was trained, as `crossvlt_hf.training` writes it
*.json         reports as `crossvlt evaluate` writes them, under any name
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml


ABOUT, RESULTS, TRAINING = FILES = ("about.yaml", "results.json", "training.json")
WEIGHTS = "model.safetensors"
LARGEST_REPORT = 10_000_000  # in bytes; the JSON file of a tokenizer may be larger
LOCAL_OPTIONS = {"images", "path", "root"}  # of data sets: where they lie on a machine
ONE_LINE = ("name", "image", "expression")


# In place of the first sentence of `About.limits`, for a model with a presence head
ALWAYS_ONE = "It always looks for one object, also where the expression refers to none or several. "
MAY_BE_NONE = "It may draw something where nothing fits, and nothing where something does. "


@dataclass(frozen=True)
class About:
    """What only a person can say of a checkpoint.

    Args:
        name: heading of the card.
        summary: what it is, in a few sentences of Markdown.
        license: the Hub's identifier; None claims nothing.
        language: of the expressions, ISO 639-1.
        base_model: Hub ids of the checkpoints it was trained from.
        datasets: Hub ids of the data sets it was trained on.
        intended_use: what it is for, Markdown.
        limits: what it does not do, Markdown.
        training: how it was trained, where `training.json` does not say it, Markdown.
        results: what has to be known of the figures, Markdown.
        image: file of the card's snippet.
        expression: of the card's snippet.

    Raises:
        ValueError: if a field is not of its kind, or one of a single line has several.
    """

    name: str = "CrossVLT"
    summary: str = (
        "A CrossVLT for referring image segmentation: an image and a sentence in, the mask of one object out."
    )
    license: str | None = None
    language: list[str] = field(default_factory=list)
    base_model: list[str] = field(default_factory=list)
    datasets: list[str] = field(default_factory=list)
    intended_use: str = "Finding in an image the one object that an expression refers to."
    limits: str = (
        f"{ALWAYS_ONE}What it knows is what "
        "it was trained on; nothing is known about its fairness towards the people that its training images show. Do "
        "not use it to identify persons, or where a wrong mask does harm."
    )
    training: str = ""
    results: str = ""
    image: str = "photo.jpg"
    expression: str = "the man in red left of the bus"

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(entry.type, type(list[str])):
                if not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
                    raise ValueError(f"`{entry.name}` is {value!r}; give a list of texts.")
            elif not isinstance(value, str) and not (value is None and entry.name == "license"):
                raise ValueError(f"`{entry.name}` is {value!r}; give a text.")
        if broken := [name for name in ONE_LINE if len(getattr(self, name).splitlines()) != 1]:
            raise ValueError(f"`{broken[0]}` is {getattr(self, broken[0])!r}; give one line.")

    @classmethod
    def read(cls, path: str | Path) -> "About":
        """Read a YAML file.

        Raises:
            OSError: if there is no such file.
            ValueError: if it is not YAML, or has other fields.
        """
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} cannot be read as YAML: {error}") from error
        known = [entry.name for entry in fields(cls)]
        if not isinstance(values, dict) or (unknown := sorted(map(str, values.keys() - set(known)))):
            raise ValueError(f"{path} holds {unknown if isinstance(values, dict) else values!r}; give {known}.")
        try:
            return cls(**values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


@dataclass(frozen=True)
class Evidence:
    """What is known of a checkpoint beside its config.

    Args:
        about: see [`About`].
        evaluations: reports of `crossvlt evaluate`: `data`, `split`, `metrics`, and where known `name` (of the row),
            `families`, `protocol`, `image_size`, `hardware`, `source` (`name` and `url` of who published them), `tool`
            (the command that measured, if another one).
        timing: what was measured of size and speed: `what`, `value` with its unit, `hardware`.
        training: `summary` (Markdown) and what else `crossvlt_hf.training` writes.
    """

    about: About = field(default_factory=About)
    evaluations: Sequence[dict[str, Any]] = field(default_factory=list)
    timing: Sequence[dict[str, Any]] = field(default_factory=list)
    training: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(
        cls, folder: str | Path, about: str | Path | None = None, reports: Sequence[str | Path] = ()
    ) -> "Evidence":
        """What lies in a checkpoint folder, reports of `crossvlt evaluate` included, and what is given beside it.

        Args:
            folder: of the checkpoint, or of its files of evidence alone.
            about: YAML file instead of the folder's.
            reports: more reports of `crossvlt evaluate`.

        Raises:
            OSError: if a file that was named cannot be read.
            ValueError: if a file does not hold what it should, or figures are those of other weights.
        """
        folder = Path(folder)
        words = folder / ABOUT if about is None and (folder / ABOUT).is_file() else about
        results = _read_json(folder / RESULTS) if (folder / RESULTS).is_file() else {}
        _check_weights(folder, results, folder / RESULTS)
        found = _entries(results, "evaluations", folder / RESULTS)
        evaluations = [_checked_report(report, folder / RESULTS) for report in found]
        named = [(_read_json(path), path) for path in reports]
        for report, path in [*_reports_beside(folder), *named]:
            _check_weights(folder, report, path)
            if (checked := _checked_report(report, path)) not in evaluations:
                evaluations.append(checked)
        return cls(
            about=About() if words is None else About.read(words),
            evaluations=evaluations,
            timing=_entries(results, "timing", folder / RESULTS),
            training=_read_json(folder / TRAINING) if (folder / TRAINING).is_file() else {},
        )

    def save(self, folder: str | Path) -> None:
        """Write the files that `read` reads beside the weights that they are of; older ones go."""
        folder = Path(folder)
        words = {entry.name: getattr(self.about, entry.name) for entry in fields(self.about)}
        text = yaml.safe_dump(words, sort_keys=False, allow_unicode=True, width=119)
        (folder / ABOUT).write_text(text, encoding="utf-8")
        results = {"evaluations": list(self.evaluations), "timing": list(self.timing)}
        if any(results.values()) and (folder / WEIGHTS).is_file():
            results["weights"] = _hash(folder / WEIGHTS)  # type: ignore[assignment]
        for name, values in ((RESULTS, results), (TRAINING, self.training)):
            (folder / name).unlink(missing_ok=True)
            if any(values.values()):
                (folder / name).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_weights(folder: str | Path) -> str | None:
    """What tells the weights in a checkpoint folder from others; None where there is no single file of them."""
    file = Path(folder) / WEIGHTS
    return _hash(file) if file.is_file() else None


def _check_weights(folder: Path, results: dict[str, Any], path: str | Path) -> None:
    known = results.get("weights")
    if known is not None and hash_weights(folder) not in (None, known):
        also = f" and {TRAINING}" if Path(path).name == RESULTS else ""
        raise ValueError(
            f"The figures in {path} are those of other weights than {folder / WEIGHTS}; measure these, or remove "
            f"{Path(path).name}{also}."
        )


def _reports_beside(folder: Path) -> Iterator[tuple[dict[str, Any], Path]]:
    """The reports of `crossvlt evaluate` among the JSON files of a folder."""
    for path in sorted(folder.glob("*.json")):
        if path.name not in FILES and path.stat().st_size < LARGEST_REPORT:
            try:
                values = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:  # not a report
                continue
            if isinstance(values, dict) and values.keys() >= {"model", "data", "split", "metrics"}:
                yield values, path


def _read_json(path: str | Path) -> dict[str, Any]:
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}; give what `crossvlt evaluate` writes.")
    return values


def _entries(values: dict[str, Any], name: str, path: Path) -> list[dict[str, Any]]:
    entries = values.get(name, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"`{name}` in {path} is {entries!r:.80}; give a list of objects.")
    return entries


def _checked_report(report: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """A report of the right kinds, without the paths of the machine on which it was written.

    Raises:
        ValueError: if it is not a report; names file and field.
    """
    kinds: dict[str, Any] = {"data": str, "split": str, "metrics": dict, "name": str, "protocol": str, "hardware": str}
    kinds |= {"families": dict, "source": dict, "option": dict, "image_size": list, "shuffle": bool, "limit": int}
    kinds |= {"tool": str, "calibration": dict}
    for key, kind in kinds.items():
        needed = key in ("data", "split", "metrics")
        if (needed and key not in report) or not isinstance(report.get(key), kind | None):
            raise ValueError(f"`{key}` in {path} is {report.get(key)!r:.80}; give what `crossvlt evaluate` writes.")
        if needed and not report[key]:
            raise ValueError(f"`{key}` in {path} is empty; give what `crossvlt evaluate` writes.")
    families = report.get("families") or {}
    if odd := [name for name, row in families.items() if not isinstance(row, dict)]:
        raise ValueError(f"The family {odd[0]!r} in {path} has no metrics; give what `crossvlt evaluate` writes.")
    kept = {key: value for key, value in report.items() if key not in ("model", "option", "weights")}
    option = {key: value for key, value in (report.get("option") or {}).items() if key not in LOCAL_OPTIONS}
    return {
        **kept,
        "data": public_name(report["data"]),
        "metrics": _finite(report["metrics"]),
        **({"families": {name: _finite(row) for name, row in families.items()}} if families else {}),
        **({"option": option} if option else {}),
    }


def _finite(metrics: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in metrics.items()
        if value is None or (isinstance(value, int | float) and math.isfinite(value))
    }


def is_hub_id(name: str) -> bool:
    """Whether a name can be that of a repository `owner/name`, and is not a folder here."""
    return re.fullmatch(r"[\w.+-]+/[\w.+-]+", name) is not None and not Path(name).is_dir()


def public_name(data: str) -> str:
    """The name of a data set: a Hub id and a known name as they are, of a folder only its last part."""
    if is_hub_id(data) or (re.fullmatch(r"[\w.+-]+", data) and not Path(data).is_dir()):
        return data
    return Path(data).resolve().name
