"""Evidence about a checkpoint besides its config, from which `crossvlt_hf.publishing.card` makes a model card.

Besides the files of Transformers, a checkpoint folder may have:

about.yaml     the fields of `About`
results.json   `evaluations`, a list of reports of `crossvlt evaluate` (with a `source` if somebody else measured),
               `timing`, a list of measurements of size and speed, and `weights`, the hash of the file of weights that
               they belong to
training.json  facts about the training, written by `crossvlt_hf.training`
*.json         reports of `crossvlt evaluate`, under any name
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
LOCAL_OPTIONS = {"images", "path", "root"}  # options of data sets that are paths
ONE_LINE = ("name", "image", "expression")


# The first sentence of `About.limits`, without and with a presence head
ALWAYS_ONE = "It always segments one object, even if the expression refers to none or several. "
MAY_BE_NONE = "It may find something where there is no target, and nothing where there is one. "


@dataclass(frozen=True)
class About:
    """Statements about a checkpoint that only people can make.

    Args:
        name: heading of the card.
        summary: a few sentences, Markdown.
        license: the identifier on the Hub; None states no licence.
        language: of the expressions, ISO 639-1.
        base_model: Hub ids of the checkpoints it was trained from.
        datasets: Hub ids of the training data.
        intended_use: Markdown.
        limits: limitations, Markdown.
        training: facts that `training.json` does not have, Markdown.
        results: notes about the results, Markdown.
        image: file name in the code example.
        expression: expression in the code example.

    Raises:
        ValueError: if a field has the wrong type, or a field of one line has several.
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
        f"{ALWAYS_ONE}It only knows what "
        "it was trained on; its fairness towards the people in its training images is unknown. Do not use it to "
        "identify persons, or where a wrong mask does harm."
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
                    raise ValueError(f"`{entry.name}` must be a list of texts, got {value!r}.")
            elif not isinstance(value, str) and not (value is None and entry.name == "license"):
                raise ValueError(f"`{entry.name}` must be a text, got {value!r}.")
        if broken := [name for name in ONE_LINE if len(getattr(self, name).splitlines()) != 1]:
            raise ValueError(f"`{broken[0]}` must be one line, got {getattr(self, broken[0])!r}.")

    @classmethod
    def read(cls, path: str | Path) -> "About":
        """Read a YAML file.

        Raises:
            OSError: if there is no such file.
            ValueError: if it is not YAML, or has unknown fields.
        """
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} cannot be read as YAML: {error}") from error
        known = [entry.name for entry in fields(cls)]
        if not isinstance(values, dict) or (unknown := sorted(map(str, values.keys() - set(known)))):
            raise ValueError(
                f"{path} must have the fields {known}, got {unknown if isinstance(values, dict) else values!r}."
            )
        try:
            return cls(**values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


@dataclass(frozen=True)
class Evidence:
    """Evidence about a checkpoint besides its config.

    Args:
        about: see [`About`].
        evaluations: reports of `crossvlt evaluate`: `data`, `split`, `metrics`, and optionally `name` (of the row),
            `families`, `protocol`, `image_size`, `hardware`, `source` (`name` and `url` of the publication), `tool`
            (the command, if it was another one).
        timing: measurements of size and speed: `what`, `value` with its unit, `hardware`.
        training: `summary` (Markdown) and other facts written by `crossvlt_hf.training`.
    """

    about: About = field(default_factory=About)
    evaluations: Sequence[dict[str, Any]] = field(default_factory=list)
    timing: Sequence[dict[str, Any]] = field(default_factory=list)
    training: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(
        cls, folder: str | Path, about: str | Path | None = None, reports: Sequence[str | Path] = ()
    ) -> "Evidence":
        """Read the evidence in a checkpoint folder, with reports of `crossvlt evaluate`.

        Args:
            folder: of the checkpoint, or of the files of evidence only.
            about: YAML file to use instead of about.yaml in the folder.
            reports: additional reports of `crossvlt evaluate`.

        Raises:
            OSError: if `about` or a report cannot be read.
            ValueError: if a file is invalid, or its results belong to other weights.
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
        """Write the files that `read` reads beside the weights, and remove older ones."""
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
    """The hash of the weights in a checkpoint folder; None if they are not in a single file."""
    file = Path(folder) / WEIGHTS
    return _hash(file) if file.is_file() else None


def _check_weights(folder: Path, results: dict[str, Any], path: str | Path) -> None:
    known = results.get("weights")
    if known is not None and hash_weights(folder) not in (None, known):
        also = f" and {TRAINING}" if Path(path).name == RESULTS else ""
        raise ValueError(
            f"The results in {path} belong to other weights than {folder / WEIGHTS}; measure again, or remove "
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
        raise ValueError(f"{path} must be a report of `crossvlt evaluate`, got a {type(values).__name__}.")
    return values


def _entries(values: dict[str, Any], name: str, path: Path) -> list[dict[str, Any]]:
    entries = values.get(name, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"`{name}` in {path} must be a list of objects, got {entries!r:.80}.")
    return entries


def _checked_report(report: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """Check the fields of a report, and drop paths of the machine on which it was written.

    Raises:
        ValueError: if a field is invalid; names file and field.
    """
    kinds: dict[str, Any] = {"data": str, "split": str, "metrics": dict, "name": str, "protocol": str, "hardware": str}
    kinds |= {"families": dict, "source": dict, "option": dict, "image_size": list, "shuffle": bool, "limit": int}
    kinds |= {"tool": str, "calibration": dict}
    for key, kind in kinds.items():
        needed = key in ("data", "split", "metrics")
        if (needed and key not in report) or not isinstance(report.get(key), kind | None):
            raise ValueError(
                f"`{key}` in {path} must be as `crossvlt evaluate` writes it, got {report.get(key)!r:.80}."
            )
        if needed and not report[key]:
            raise ValueError(f"`{key}` in {path} must not be empty.")
    families = report.get("families") or {}
    if odd := [name for name, row in families.items() if not isinstance(row, dict)]:
        raise ValueError(f"The family {odd[0]!r} in {path} must have metrics.")
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
    """Whether a name is a Hub id `owner/name`, and not a folder on this machine."""
    return re.fullmatch(r"[\w.+-]+/[\w.+-]+", name) is not None and not Path(name).is_dir()


def public_name(data: str) -> str:
    """The name of a data set, without the path of a folder."""
    if is_hub_id(data) or (re.fullmatch(r"[\w.+-]+", data) and not Path(data).is_dir()):
        return data
    return Path(data).resolve().name
