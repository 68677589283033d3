"""What the page says of its model, and the example scenes for the one that knows drawn shapes."""

from pathlib import Path

from PIL import Image

from ..data.refshapes import FAMILIES, make_scene, vocabulary
from ..loading import DEFAULT_CHECKPOINT, resolve_checkpoint
from ..modeling_crossvlt import CrossVLTModel
from ..processing_crossvlt import CrossVLTProcessor


Example = tuple[str, str]  # path of an image; expressions, one on each line

INTRODUCTION = """# CrossVLT: the object that a sentence means
Referring image segmentation: give an image and say which object is meant; the mask of that one object comes back.
"""
DRAWN_NOTE = """**This model knows drawn shapes only and has never seen a photograph.** It was trained on RefShapes,
scenes of drawn shapes like the examples on this page. In a photograph it marks something too, which means nothing.
"""
SCORE_NOTE = """The score is how sure the model is of the mask that it drew. It is no sign that the object is there at
all: the model always looks for one.
"""
PRESENCE_NOTE = "Where the model holds it for unlikely that anything fits the expression, it draws nothing.\n"
EXPECTED_NOTE = "The score is the expected overlap (IoU) of the mask with the right one.\n"
SURE_NOTE = "The score is how sure the model is of the mask that it drew.\n"


def score_note(model: CrossVLTModel, processor: CrossVLTProcessor) -> str:
    """Say what a score of this model means, and whether it answers that nothing fits."""
    score = SURE_NOTE if processor.score_calibration is None else EXPECTED_NOTE
    if model.config.presence_head:
        return f"{score}{PRESENCE_NOTE}"
    return SCORE_NOTE if processor.score_calibration is None else f"{score}The model always looks for something.\n"


def knows_only_drawn_shapes(processor: CrossVLTProcessor) -> bool:
    """Whether a checkpoint was trained on RefShapes: it has no word that RefShapes does not say."""
    tokenizer = processor.tokenizer
    return set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens) <= set(vocabulary())


def describe(model: CrossVLTModel, processor: CrossVLTProcessor, source: str | Path) -> str:
    """Say in a line of Markdown what the model is called, what it was trained on and how large it is."""
    built_in = Path(resolve_checkpoint(source)).absolute() == DEFAULT_CHECKPOINT.absolute()
    name = "built-in checkpoint of crossvlt_hf" if built_in else str(source).replace("`", "")
    drawn = knows_only_drawn_shapes(processor)
    trained = "RefShapes (drawn shapes, no photographs)" if drawn else "what its card says (its config does not)"
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


def draw_examples(folder: Path, count: int = 4, side: int = 480) -> list[Example]:
    """Draw the first scenes of RefShapes' test split into a new folder, with three expressions for each."""
    folder.mkdir()
    examples = []
    for index in range(count):
        families = [FAMILIES[(2 * index + step) % len(FAMILIES)] for step in (0, 1, 3)]
        group = make_scene("test", index, families=families, side=side, count=(4, 6))
        path = folder / f"scene-{index + 1}.png"
        Image.fromarray(group[0].scene.image).save(path)
        examples.append((str(path), "\n".join(example.expression for example in group)))
    return examples
