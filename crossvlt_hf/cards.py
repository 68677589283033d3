"""Model cards: one template, filled from a checkpoint's config, what was measured on it, and a few words about it.

A checkpoint folder may hold, beside what Transformers writes:

about.yaml     the fields of `About`
results.json   `evaluations`, a list of reports as `crossvlt evaluate` writes them (one with a `source` is somebody
               else's), and `timing`, a list of what was measured of size and speed
training.json  how it was trained, as `crossvlt_hf.training` writes it
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .complexity import count_flops, count_parameters
from .configuration_crossvlt import CrossVLTConfig
from .metrics import markdown_table
from .modeling_crossvlt import CrossVLTModel
from .processing_crossvlt import CrossVLTProcessor


ABOUT, RESULTS, TRAINING = "about.yaml", "results.json", "training.json"
TAGS = ["referring-image-segmentation", "image-segmentation", "crossvlt"]
INDEXED_METRICS = {
    "overall_iou": "overall IoU",
    "mean_iou": "mean IoU",
    **{f"precision@{x}": f"P@{x}" for x in (0.5, 0.7, 0.9)},
}


@dataclass(frozen=True)
class About:
    """What only a person can say of a checkpoint; every field is Markdown or a name of the Hub's.

    Args:
        name: heading of the card.
        summary: what it is, in a few sentences.
        license: identifier of the Hub's.
        language: of the expressions, ISO 639-1.
        base_model: Hub ids of the checkpoints it was trained from.
        datasets: Hub ids of the data sets it was trained on.
        intended_use: what it is for.
        limits: what it does not do.
        training: how it was trained, where `training.json` does not say it.
        results: what has to be known of the figures.
        image: of the card's snippet.
        expression: of the card's snippet.
    """

    name: str = "CrossVLT"
    summary: str = (
        "A CrossVLT for referring image segmentation: an image and a sentence in, the mask of one object out."
    )
    license: str = "apache-2.0"
    language: list[str] = field(default_factory=lambda: ["en"])
    base_model: list[str] = field(default_factory=list)
    datasets: list[str] = field(default_factory=list)
    intended_use: str = "Finding in an image the one object that an expression refers to."
    limits: str = (
        "It always looks for one object, also where the expression refers to none or several. What it knows is what "
        "it was trained on; nothing is known about its fairness towards the people that its training images show. Do "
        "not use it to identify persons, or where a wrong mask does harm."
    )
    training: str = ""
    results: str = ""
    image: str = "photo.jpg"
    expression: str = "the man in red left of the bus"

    @classmethod
    def read(cls, path: str | Path) -> "About":
        """Read a YAML file.

        Raises:
            OSError: if there is no such file.
            ValueError: if it is no YAML, or has other fields.
        """
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except yaml.YAMLError as error:
            raise ValueError(f"{path} cannot be read as YAML: {error}") from error
        known = [entry.name for entry in fields(cls)]
        if not isinstance(values, dict) or (unknown := sorted(map(str, values.keys() - set(known)))):
            raise ValueError(f"{path} holds {unknown if isinstance(values, dict) else values!r}; give {known}.")
        return cls(**values)


@dataclass(frozen=True)
class Evidence:
    """What is known of a checkpoint beside its config.

    Args:
        about: see [`About`].
        evaluations: reports of `crossvlt evaluate`: `data`, `split`, `metrics`, and where known `name` (of the row),
            `families`, `protocol`, `image_size`, `hardware`, `source` (`name` and `url` of who published them).
        timing: what was measured of size and speed: `what`, `value` with its unit, `hardware`.
        training: `summary` (Markdown) and what else `crossvlt_hf.training` writes.
    """

    about: About = field(default_factory=About)
    evaluations: Sequence[dict[str, Any]] = ()
    timing: Sequence[dict[str, Any]] = ()
    training: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(
        cls, folder: str | Path, about: str | Path | None = None, reports: Sequence[str | Path] = ()
    ) -> "Evidence":
        """What lies in a checkpoint folder, and what is given beside it.

        Args:
            folder: of the checkpoint; it need not exist, as where the checkpoint is on the Hub.
            about: YAML file instead of the folder's.
            reports: more reports of `crossvlt evaluate`.

        Raises:
            OSError: if a file that was named cannot be read.
            ValueError: if a file does not hold what it should.
        """
        folder = Path(folder)
        words = folder / ABOUT if about is None and (folder / ABOUT).is_file() else about
        results = _read_json(folder / RESULTS) if (folder / RESULTS).is_file() else {}
        evaluations = [*results.get("evaluations", []), *map(_read_json, reports)]
        for report in evaluations:
            if missing := {"data", "split", "metrics"} - set(report):
                raise ValueError(f"A report has no {sorted(missing)[0]!r}; give what `crossvlt evaluate` writes.")
        return cls(
            about=About() if words is None else About.read(words),
            evaluations=evaluations,
            timing=results.get("timing", []),
            training=_read_json(folder / TRAINING) if (folder / TRAINING).is_file() else {},
        )

    def save(self, folder: str | Path) -> None:
        """Write the files that `read` reads."""
        folder = Path(folder)
        words = {entry.name: getattr(self.about, entry.name) for entry in fields(self.about)}
        (folder / ABOUT).write_text(yaml.safe_dump(words, sort_keys=False, allow_unicode=True, width=119))
        results = {"evaluations": list(self.evaluations), "timing": list(self.timing)}
        for name, values in ((RESULTS, results), (TRAINING, self.training)):
            if any(values.values()):
                (folder / name).write_text(json.dumps(values, indent=1) + "\n")


NO_EVIDENCE = Evidence()


def _read_json(path: str | Path) -> dict[str, Any]:
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}; give what `crossvlt evaluate` writes.")
    return values


def template_path() -> Path:
    """The template: packed with a wheel, or in the clone that an editable installation points to."""
    packed = Path(__file__).parent / "assets" / "model_card.md.jinja"
    return packed if packed.is_file() else Path(__file__).parents[1] / "model_cards" / "template.md.jinja"


def render_card(
    config: CrossVLTConfig,
    *,
    model_id: str,
    image_size: tuple[int, int],
    max_length: int,
    evidence: Evidence = NO_EVIDENCE,
    built_in: bool = False,
) -> ModelCard:
    """Write the card of a checkpoint.

    Args:
        config: of the model.
        model_id: Hub id or folder under which the card's snippet loads it.
        image_size: height and width that the model reads.
        max_length: the most tokens of an expression.
        evidence: see [`Evidence`].
        built_in: whether it is the checkpoint that comes with this package.

    Returns:
        The card, with the metadata that the Hub reads.
    """
    about = evidence.about
    return ModelCard.from_template(
        _card_data(evidence, model_id),
        template_path=str(template_path()),
        about=about,
        model_id=model_id,
        built_in=built_in,
        config=config,
        image_size=image_size,
        max_length=max_length,
        sources=_tables(evidence.evaluations),
        training=evidence.training,
        timing=evidence.timing,
        parameters=count_parameters(config),
        flops=count_flops(config, image_size, max_length),
    )


def render_checkpoint_card(
    model: CrossVLTModel,
    processor: CrossVLTProcessor,
    model_id: str,
    evidence: Evidence = NO_EVIDENCE,
    built_in: bool = False,
) -> ModelCard:
    """The card of a loaded checkpoint; see [`render_card`]."""
    size = processor.image_processor.size
    return render_card(
        model.config,
        model_id=model_id,
        image_size=(size["height"], size["width"]),
        max_length=processor.tokenizer.init_kwargs.get("max_length", processor.text_kwargs["max_length"]),
        evidence=evidence,
        built_in=built_in,
    )


def _card_data(evidence: Evidence, model_id: str) -> ModelCardData:
    about = evidence.about
    # What a model reaches with the expressions of other images is no result of it
    reports = [report for report in evidence.evaluations if not report.get("shuffle")]
    results = [entry for report in reports for entry in _eval_results(report)]
    return ModelCardData(
        license=about.license,
        language=about.language,
        library_name="transformers",
        pipeline_tag="image-segmentation",
        tags=TAGS,
        base_model=about.base_model or None,
        datasets=about.datasets or None,
        model_name=model_id.split("/")[-1] if results else None,
        eval_results=results or None,
    )


def _eval_results(report: dict[str, Any]) -> list[EvalResult]:
    """The `model-index` entries of a report, in percent; none of it is verified by the Hub."""
    source = report.get("source") or {}
    return [
        EvalResult(
            task_type="image-segmentation",
            task_name="Referring image segmentation",
            dataset_type=report.get("data_id", report["data"]),
            dataset_name=report.get("name", f"{report['data']} {report['split']}"),
            dataset_split=report["split"],
            dataset_config=report.get("name"),  # else two reports on one split would become one
            dataset_args=report.get("option") or None,
            metric_type=key,
            metric_name=title,
            metric_value=round(100 * report["metrics"][key], 2),
            verified=False,
            source_name=source.get("name"),
            source_url=source.get("url"),
        )
        for key, title in INDEXED_METRICS.items()
        if report["metrics"].get(key) is not None
    ]


def _tables(evaluations: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One table for each protocol, size and source of figures, and one for each report's kinds of expression."""
    groups: dict[tuple, dict[str, Any]] = {}
    for report in evaluations:
        key = tuple(json.dumps(report.get(name)) for name in ("protocol", "image_size", "hardware", "source"))
        group = groups.setdefault(key, {**report, "rows": {}, "families": {}})
        name = report.get("name", f"{report['data']} {report['split']}")
        group["rows"][name + (", expressions of other images" if report.get("shuffle") else "")] = report["metrics"]
        families = {family: row for family, row in (report.get("families") or {}).items() if family != "(none)"}
        if families and not report.get("shuffle"):
            group["families"][name] = markdown_table(families, "kind of expression")
    return [{**group, "table": markdown_table(group["rows"], "data")} for group in groups.values()]
