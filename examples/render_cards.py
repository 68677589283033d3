"""Render the cards of `model_cards/`: that of the built-in checkpoint, also beside it, and those of the paper.

python examples/render_cards.py
"""

from pathlib import Path
from typing import Any

import yaml

from crossvlt_hf import DEFAULT_CHECKPOINT, CrossVLTConfig
from crossvlt_hf.publishing.card import render_card, render_checkpoint_card
from crossvlt_hf.publishing.facts import About, Evidence
from crossvlt_hf.weights.checkpoint import load_checkpoint


CARDS = Path(__file__).parents[1] / "model_cards"
BESIDE = DEFAULT_CHECKPOINT / "README.md"
BUILT_IN = "crossvlt-built-in.md"
THRESHOLDS = (0.5, 0.7, 0.9)


def paper_evidence(common: dict[str, Any], checkpoint: dict[str, Any]) -> Evidence:
    """The published results of a checkpoint of the authors."""
    words = {**{name: common[name] for name in common if name != "source"}, **checkpoint}
    data_id, config, published = (words.pop(name) for name in ("data_id", "config", "published"))
    words["training"] = words["training"].format(config=config)
    return Evidence(about=About(**words), evaluations=[_report(common, config, data_id, row) for row in published])


def _report(common: dict[str, Any], data: str, data_id: str, row: dict[str, Any]) -> dict[str, Any]:
    percent = {"overall_iou": row["overall_iou"], "mean_iou": row["mean_iou"]}
    percent |= {f"precision@{x}": value for x, value in zip(THRESHOLDS, row["precision"], strict=True)}
    return {
        "data": data,
        "data_id": data_id,
        "name": row["name"],
        "split": row["split"],
        "protocol": "paper",
        "image_size": [480, 480],
        "source": common["source"],
        "metrics": {name: value / 100 for name, value in percent.items()},
    }


def cards() -> dict[str, str]:
    """The texts of the cards, by file name."""
    model, processor = load_checkpoint(DEFAULT_CHECKPOINT)
    built_in = Evidence.read(DEFAULT_CHECKPOINT, CARDS / "built_in.yaml")
    card = render_checkpoint_card(model, processor, BUILT_IN.removesuffix(".md"), built_in, built_in=True)
    found = {BUILT_IN: card.content}
    paper = yaml.safe_load((CARDS / "paper.yaml").read_text())
    for name, checkpoint in paper["checkpoints"].items():
        evidence = paper_evidence(paper["common"], checkpoint)
        card = render_card(CrossVLTConfig(), model_id=name, image_size=(480, 480), max_length=21, evidence=evidence)
        found[f"{name}.md"] = card.content
    return found


if __name__ == "__main__":
    rendered = cards()
    for path, text in [*((CARDS / file, text) for file, text in rendered.items()), (BESIDE, rendered[BUILT_IN])]:
        path.write_text(text)
        print(path)
