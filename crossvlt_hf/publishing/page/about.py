"""What the page says about its model, and examples for models with known training data."""

from pathlib import Path

from PIL import Image

from ...data.refshapes import FAMILIES, LANGUAGES, make_scene, vocabulary
from ...modeling_crossvlt import CrossVLTModel
from ...processing_crossvlt import CrossVLTProcessor
from ...weights.checkpoint import DEFAULT_CHECKPOINT, resolve_checkpoint
from .samples import SAMPLES


Example = tuple[str, str]  # path of an image; expressions, one per line

INTRODUCTION = """# CrossVLT: segment the object that a sentence refers to
Referring image segmentation: upload an image and describe an object; get the mask of that object.
"""
DRAWN_NOTE = """**This model only knows drawn shapes and has never seen a photograph.** It was trained on RefShapes,
scenes of drawn shapes like the examples on this page. Its masks in photographs are meaningless.
"""
BUILT_IN_NOTE = """**This model is small and knows few things.** It was trained on rule-made expressions of 537 words,
for photographs of rooms, people and clothing, kitchen and bathroom things, food and products, and for drawn shapes.
Its masks for other things and words are meaningless. Cups, dogs and cats were rare. The expressions of the first two
examples were chosen because it finds their targets.
"""
SCORE_NOTE = """The score is the confidence of the model in its mask, not in the presence of the object: the
model always segments something.
"""
PRESENCE_NOTE = "If the model finds it unlikely that anything fits the expression, the mask is empty.\n"
EXPECTED_NOTE = (
    "The score is the expected overlap (IoU) of the mask with the target, for images and sentences like those that it "
    "was calibrated on.\n"
)
SURE_NOTE = "The score is the confidence of the model in its mask.\n"


def score_note(model: CrossVLTModel, processor: CrossVLTProcessor) -> str:
    """What the scores of a model mean, and whether it can find nothing."""
    score = SURE_NOTE if processor.score_calibration is None else EXPECTED_NOTE
    if model.config.presence_head:
        return f"{score}{PRESENCE_NOTE}"
    return SCORE_NOTE if processor.score_calibration is None else f"{score}The model always segments something.\n"


def knows_only_drawn_shapes(processor: CrossVLTProcessor) -> bool:
    """Whether a checkpoint was trained on RefShapes alone: all its words are those of RefShapes, in any language."""
    return _words(processor).issubset(word for language in LANGUAGES for word in vocabulary(language))


def _words(processor: CrossVLTProcessor) -> set[str]:
    return set(processor.tokenizer.get_vocab()) - set(processor.tokenizer.all_special_tokens)


def _drawn_language(processor: CrossVLTProcessor) -> str:
    """The language of RefShapes of which a checkpoint knows the largest share of words; the first of several."""
    words = _words(processor)
    return max(
        LANGUAGES, key=lambda language: len(words.intersection(vocabulary(language))) / len(vocabulary(language))
    )


def is_built_in(source: str | Path) -> bool:
    """Whether it is the built-in checkpoint."""
    return Path(resolve_checkpoint(source)).absolute() == DEFAULT_CHECKPOINT.absolute()


def choose_note(processor: CrossVLTProcessor, source: str | Path) -> str:
    """The note at the top of the page about a model that knows little; empty for other models."""
    if is_built_in(source):
        return BUILT_IN_NOTE
    return DRAWN_NOTE if knows_only_drawn_shapes(processor) else ""


def describe(model: CrossVLTModel, processor: CrossVLTProcessor, source: str | Path) -> str:
    """A line of Markdown with name, training data and size of a model."""
    name = "built-in checkpoint of crossvlt_hf" if is_built_in(source) else str(source).replace("`", "")
    if is_built_in(source):
        trained = "photographs, compositions of them and RefShapes (drawn shapes)"
    elif knows_only_drawn_shapes(processor):
        trained = "RefShapes (drawn shapes, no photographs)"
    else:
        trained = "see its card"
    vision, text, size = model.config.vision_config, model.config.text_config, processor.image_processor.size
    facts = [
        f"**Model** `{name}`",
        f"**trained on** {trained}",
        f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:,.2f} million parameters",
        f"Swin of width {vision.embed_dim} and depths {', '.join(map(str, vision.depths))}",
        f"BERT of width {text.hidden_size} and depths {', '.join(map(str, text.depths))}",
        f"reads {size['width']}x{size['height']} pixels",
    ]
    return " · ".join(facts)


def draw_examples(folder: Path, count: int = 4, side: int = 480, language: str = "en") -> list[Example]:
    """Draw the first scenes of RefShapes' test split into a new folder, with three expressions for each."""
    folder.mkdir()
    examples = []
    for index in range(count):
        families = [FAMILIES[(2 * index + step) % len(FAMILIES)] for step in (0, 1, 3)]
        group = make_scene("test", index, families=families, side=side, count=(4, 6), language=language)
        path = folder / f"scene-{index + 1}.png"
        Image.fromarray(group[0].scene.image).save(path)
        examples.append((str(path), "\n".join(example.expression for example in group)))
    return examples


def show_photographs() -> list[Example]:
    """The photographs of the package, with expressions chosen for the built-in checkpoint."""
    return [(str(sample.path), "\n".join(sample.expressions)) for sample in SAMPLES]


def make_examples(processor: CrossVLTProcessor, source: str | Path, folder: Path) -> list[Example]:
    """The examples of a page: photographs and drawn scenes that its model knows.

    Args:
        processor: of the model.
        source: of the model.
        folder: a new one, for the drawn scenes.
    """
    if is_built_in(source):
        return [*show_photographs(), *draw_examples(folder)]
    return draw_examples(folder, language=_drawn_language(processor)) if knows_only_drawn_shapes(processor) else []
