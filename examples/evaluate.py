"""Evaluate a checkpoint: the paper's figures, those of a model that does not read, and a picture of the worst misses.

python examples/evaluate.py                                               # the built-in one, on drawn scenes
python examples/evaluate.py --model runs/refcoco/best --data refcoco --split testA --root data
"""

import argparse

from crossvlt_hf import DEFAULT_CHECKPOINT
from crossvlt_hf.data import load_data
from crossvlt_hf.evaluation import EvaluationOptions, evaluate, evaluation_gallery
from crossvlt_hf.metrics import markdown_table
from crossvlt_hf.weights.checkpoint import load_checkpoint


def main() -> None:
    """Three tables and a gallery."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_CHECKPOINT)
    parser.add_argument("--data", default="refshapes")
    parser.add_argument("--split", default="test")
    parser.add_argument("--root")
    parser.add_argument("--limit", type=int, default=200, help="references (%(default)s)")
    parser.add_argument("--gallery", default="gallery.png", help="PNG (%(default)s)")
    arguments = parser.parse_args()

    model, processor = load_checkpoint(arguments.model)
    dataset = load_data(arguments.data, arguments.split, root=arguments.root)
    dataset = dataset.select(range(min(arguments.limit, len(dataset))))
    metric = evaluate(model, processor, dataset, EvaluationOptions(batch_size=8))
    blind = evaluate(model, processor, dataset, EvaluationOptions(batch_size=8, shuffle=True))
    rows = {"as said": metric.compute(), "with the expressions of other images": blind.compute()}
    print(markdown_table(rows, f"{arguments.data} {arguments.split}"))
    print()
    print(markdown_table(metric.compute_groups(), "kind of expression"))
    evaluation_gallery(model, processor, dataset, metric.samples).save(arguments.gallery)
    print(f"\nThe gallery is in {arguments.gallery}")


if __name__ == "__main__":
    main()
