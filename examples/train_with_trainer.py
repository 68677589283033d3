"""Train a small CrossVLT with `transformers.Trainer`.

    python examples/train_with_trainer.py                                            # on RefShapes, drawn on the spot
    python examples/train_with_trainer.py --data my_folder --validation-split val    # a folder with metadata.jsonl
    python examples/train_with_trainer.py --data refcoco --root coco --model path/to/checkpoint --image-size 480

The model goes to `--output`, for `from_pretrained`. `crossvlt train` is the recipe of the paper.
"""

import argparse

from datasets import Dataset
from transformers import Trainer, TrainingArguments, set_seed

from crossvlt_hf import CrossVLTConfig, CrossVLTModel, CrossVLTProcessor
from crossvlt_hf.data import load_data
from crossvlt_hf.data.pairs import Collator, EvaluationPairs, TrainingPairs
from crossvlt_hf.metrics import RunningMetrics, preprocess_logits_for_metrics
from crossvlt_hf.weights.checkpoint import load_checkpoint
from crossvlt_hf.weights.vocabulary import default_tokenizer


def small_model(words: int) -> CrossVLTModel:
    """A model of 2 million parameters, the words aside, with random weights."""
    config = CrossVLTConfig(
        vision_config={
            "embed_dim": 24,
            "depths": [2, 2, 2, 2],
            "num_heads": [1, 2, 4, 8],
            "window_size": 4,
            "drop_path_rate": 0.0,
        },
        text_config={
            "vocab_size": words,
            "hidden_size": 64,
            "depths": [2, 1, 1, 1],
            "num_attention_heads": 4,
            "intermediate_size": 128,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        fusion_head_dim=24,
        alignment_dim=64,
        decoder_hidden_size=48,
    )
    return CrossVLTModel(config)


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="refshapes", help="a name that `load_data` knows, or a folder")
    parser.add_argument("--root", help="folder of the data set")
    parser.add_argument("--validation-split", default="validation")
    parser.add_argument("--scenes", type=int, default=2000, help="of RefShapes, to train on")
    parser.add_argument("--model", help="a checkpoint to go on from; without it a small model starts from noise")
    parser.add_argument("--image-size", type=int, default=64, help="pixels a side; the paper has 480")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--output", default="runs/trainer")
    return parser.parse_args()


def load_split(arguments: argparse.Namespace, split: str, scenes: int) -> Dataset:
    """A split of the data set; that of RefShapes has as many scenes as one likes."""
    drawn = {"scenes": scenes, "side": arguments.image_size} if arguments.data == "refshapes" else {}
    return load_data(arguments.data, split, root=arguments.root, **drawn)


def main() -> None:
    """Train, evaluate, save."""
    arguments = read_arguments()
    set_seed(0)
    if arguments.model is None:
        processor = CrossVLTProcessor.from_tokenizer(default_tokenizer(), arguments.image_size)
        model = small_model(len(processor.tokenizer))
    else:
        model, processor = load_checkpoint(arguments.model, dtype="float32")
        processor.score_calibration = None  # of the weights before training
        processor.image_processor.size = {"height": arguments.image_size, "width": arguments.image_size}
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=arguments.output,
            max_steps=arguments.steps,
            per_device_train_batch_size=arguments.batch_size,
            per_device_eval_batch_size=arguments.batch_size,
            learning_rate=arguments.learning_rate,
            warmup_steps=arguments.steps // 20,
            weight_decay=0.01,
            logging_steps=max(1, arguments.steps // 10),
            save_strategy="no",
            remove_unused_columns=False,  # the collator reads images and expressions, which no forward knows
            batch_eval_metrics=True,  # else Trainer keeps all masks in memory
            ddp_find_unused_parameters=False,
            report_to=[],
        ),
        data_collator=Collator(processor),
        train_dataset=TrainingPairs([load_split(arguments, "train", arguments.scenes)]),
        eval_dataset=EvaluationPairs(load_split(arguments, arguments.validation_split, min(arguments.scenes, 100))),
        preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        compute_metrics=RunningMetrics(),
        processing_class=processor,
    )
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model()
    trainer.save_metrics("eval", metrics)
    for name in ("loss", "overall_iou", "mean_iou", "precision@0.5", "samples"):
        print(f"{name}: {metrics[f'eval_{name}']:.4g}")


if __name__ == "__main__":
    main()
