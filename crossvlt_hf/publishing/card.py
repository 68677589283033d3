"""Model cards: one template, filled from the config of a checkpoint and the evidence about it (see `facts`)."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import validate_repo_id

from ..benchmark.flops import count_flops, count_parameters
from ..configuration_crossvlt import CrossVLTConfig
from ..metrics import markdown_table, percent
from ..modeling_crossvlt import CrossVLTModel
from ..processing_crossvlt import CrossVLTProcessor, counted
from .facts import ALWAYS_ONE, MAY_BE_NONE, About, Evidence


MARK = "<!-- rendered by crossvlt_hf.cards; say more in about.yaml -->"
NO_EVIDENCE = Evidence()
TAGS = ["referring-image-segmentation", "image-segmentation", "crossvlt"]
INDEXED_METRICS = {
    "overall_iou": "overall IoU",
    "mean_iou": "mean IoU",
    **{f"precision@{x}": f"P@{x}" for x in (0.5, 0.7, 0.9)},
}
# The defaults of `crossvlt evaluate`
USUAL = {
    "merge": "union",
    "truncation": "keep_sep",
    "dtype": "auto",
    "presence_threshold": "auto",
    "largest_part": False,
    "min_area": None,
}
MOST_WORDS_LISTED = 600  # of a vocabulary
# The code example uses the first of these without unknown words, unless about.yaml has an expression
EXPRESSIONS = (About().expression, "the largest object", "the object on the left", "the object")
# Results under the same conditions share a table
CONDITIONS = ("protocol", "image_size", "hardware", "source", "tool", *USUAL)


@dataclass(frozen=True)
class Vocabulary:
    """How the vocabulary of a model limits its uses.

    Args:
        words: all words, if they are few.
        unknown: unknown words in the expression of `about.yaml`.
        expression: for the code example; None for that of `about.yaml`.
    """

    words: Sequence[str] = ()
    unknown: Sequence[str] = ()
    expression: str | None = None


def template_path() -> Path:
    """The template: in the package of a wheel, or in the clone of an editable installation."""
    package = Path(__file__).parents[1]
    packed = package / "assets" / "model_card.md.jinja"
    return packed if packed.is_file() else package.parent / "model_cards" / "template.md.jinja"


def render_card(
    config: CrossVLTConfig,
    *,
    model_id: str,
    image_size: tuple[int, int],
    max_length: int,
    evidence: Evidence = NO_EVIDENCE,
    built_in: bool = False,
    vocabulary: Vocabulary = Vocabulary(),
) -> ModelCard:
    """Render the card of a checkpoint.

    Args:
        config: of the model.
        model_id: Hub id, or name of a folder, for the code example.
        image_size: height and width of the model's input.
        max_length: the most tokens of an expression.
        evidence: see [`Evidence`].
        built_in: whether it is the built-in checkpoint of this package.
        vocabulary: see [`Vocabulary`].

    Returns:
        The card, with metadata for the Hub.

    Raises:
        ValueError: if `model_id` is not valid, or two reports have the same name and conditions.
    """
    validate_repo_id(model_id)
    about = _about(evidence, config)
    return ModelCard.from_template(
        _card_data(evidence, model_id),
        template_path=str(template_path()),
        mark=MARK,
        about=about,
        model_id=model_id,
        image=_literal(about.image),
        expression=_literal(vocabulary.expression or about.expression),
        vocabulary=vocabulary,
        started_from=evidence.training.get("started_from") or [f"`{name}`" for name in about.base_model],
        shared=evidence.training.get("shared_images"),
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


def _about(evidence: Evidence, config: CrossVLTConfig) -> About:
    """The statements about the model, with limits that depend on its architecture."""
    if not config.presence_head:
        return evidence.about
    return replace(evidence.about, limits=evidence.about.limits.replace(ALWAYS_ONE, MAY_BE_NONE))


def render_checkpoint_card(
    model: CrossVLTModel,
    processor: CrossVLTProcessor,
    model_id: str,
    evidence: Evidence = NO_EVIDENCE,
    built_in: bool = False,
) -> ModelCard:
    """Render the card of a loaded checkpoint; see [`render_card`]."""
    return render_card(
        model.config,
        model_id=model_id,
        image_size=processor.image_size,
        max_length=processor.max_length,
        evidence=evidence,
        built_in=built_in,
        vocabulary=read_vocabulary(processor, evidence.about),
    )


def read_vocabulary(processor: CrossVLTProcessor, about: About) -> Vocabulary:
    """Find out how the vocabulary of a processor limits the uses of its model."""
    tokenizer = processor.tokenizer
    special = set(tokenizer.all_special_tokens)
    pieces = sorted(set(tokenizer.get_vocab()) - special)
    words = [piece for piece in pieces if piece.isalpha()]
    # Pieces of words can be combined to other words
    closed = len(pieces) <= MOST_WORDS_LISTED and not any(piece.startswith("##") for piece in pieces)
    unknown = {text: processor.read_expressions([text])[0].unknown_words for text in (about.expression, *EXPRESSIONS)}
    readable = [text for text in EXPRESSIONS if not unknown[text]]
    written = about.expression != About().expression
    return Vocabulary(
        words=words if closed else [],
        unknown=unknown[about.expression] if written else (),
        expression=about.expression if written else next(iter(readable), " ".join(words[:3]) or about.expression),
    )


def _literal(text: str) -> str:
    """A Python literal, so that no text of about.yaml becomes code in the example."""
    return json.dumps(text, ensure_ascii=False)


def _row_name(report: dict[str, Any]) -> str:
    parts = [report.get("name") or f"{report['data']} {report['split']}"]
    if report.get("limit"):
        parts.append(f"the first {counted(report['limit'], 'reference')}")
    if report.get("shuffle"):
        parts.append("expressions of other images")
    return ", ".join(parts)


def _unusual(report: dict[str, Any]) -> list[str]:
    """The conditions of a report that differ from the defaults, in words."""
    unusual = {key: report[key] for key, usual in USUAL.items() if report.get(key, usual) != usual}
    return [f"{key.replace('_', ' ')} {value}" for key, value in unusual.items()]


def _card_data(evidence: Evidence, model_id: str) -> ModelCardData:
    about = evidence.about
    # Results with shuffled expressions, or on a part of the data, are not indexed
    reports = [entry for entry in evidence.evaluations if not entry.get("shuffle") and not entry.get("limit")]
    results = [entry for report in reports for entry in _eval_results(report)]
    return ModelCardData(
        license=about.license,
        language=about.language or None,
        library_name="transformers",
        pipeline_tag="image-segmentation",
        tags=TAGS,
        base_model=about.base_model or evidence.training.get("base_model") or None,
        datasets=about.datasets or None,
        model_name=model_id.split("/")[-1] if results else None,
        eval_results=results or None,
    )


def _eval_results(report: dict[str, Any]) -> list[EvalResult]:
    """The `model-index` entries of a report, in percent; not verified by the Hub."""
    source = report.get("source") or {}
    protocol = {"original": ["masks of the image's own size"]}.get(report.get("protocol") or "", [])
    return [
        EvalResult(
            task_type="image-segmentation",
            task_name="Referring image segmentation",
            dataset_type=report.get("data_id") or report["data"],
            dataset_name=_row_name(report),
            # keeps reports of one split under different conditions apart
            dataset_config=", ".join([_row_name(report), *protocol, *_unusual(report)]),
            dataset_split=report["split"],
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


def _calibration_note(report: dict[str, Any]) -> str:
    """The calibration errors of a report in percent; empty if it has none."""
    found, notes = report.get("calibration") or {}, []
    for kind in ("score", "presence"):
        error = found[kind].get("expected_calibration_error") if isinstance(found.get(kind), dict) else None
        if isinstance(error, int | float) and math.isfinite(error):
            raw = " (not calibrated)" if kind == "score" and not found.get("calibrated") else ""
            notes.append(f"{kind}{raw} {percent(error)} %")
    return ", ".join(notes)


def _tables(evaluations: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A table for reports under the same conditions, and one for the families of each report."""
    groups: dict[tuple, dict[str, Any]] = {}
    for report in evaluations:
        key = tuple(json.dumps(report.get(name, USUAL.get(name))) for name in CONDITIONS)
        made: dict[str, Any] = {"rows": {}, "families": {}, "calibration": {}, "unusual": _unusual(report)}
        group = groups.setdefault(key, {**report, **made})
        name = _row_name(report)
        if name in group["rows"]:
            raise ValueError(f"There are two reports on {name!r}; remove one, or set different `name`s.")
        group["rows"][name] = report["metrics"]
        if note := _calibration_note(report):
            group["calibration"][name] = note
        families = {family: row for family, row in (report.get("families") or {}).items() if family != "(none)"}
        if families and not report.get("shuffle"):
            group["families"][name] = markdown_table(families, "kind of expression")
    return [{**group, "table": markdown_table(group["rows"], "data")} for group in groups.values()]
