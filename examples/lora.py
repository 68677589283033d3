"""Adapt a checkpoint of CrossVLT by LoRA (library peft): save the adapter, load it again, merge it into the weights.

    pip install peft
    python examples/lora.py --model path/or/hub-id                                        # on RefShapes
    python examples/lora.py --model path/or/hub-id --data my_folder --validation-split val
    python examples/lora.py --model path/or/hub-id --train-decoder                        # the decoder as a whole, too

`--output` gets `adapter`, for `PeftModel.from_pretrained`, and `merged`, for `CrossVLTModel.from_pretrained`.
"""

import argparse
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.utils.data import DataLoader, RandomSampler

from crossvlt_hf import CrossVLTProcessor
from crossvlt_hf.data import load_data
from crossvlt_hf.data.pairs import Collator, TrainingPairs
from crossvlt_hf.evaluation import evaluate
from crossvlt_hf.metrics import percent
from crossvlt_hf.weights.checkpoint import load_checkpoint


# The projections of all attention: windows of pixels (qkv, proj), words to words and to pixels, pixels to words
TARGETS = r".*attention\.(qkv|proj|query|key|value|output)"


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a CrossVLT checkpoint: folder or Hub id")
    parser.add_argument("--data", default="refshapes", help="a name that `load_data` knows, or a folder")
    parser.add_argument("--root", help="folder of the data set")
    parser.add_argument("--validation-split", default="validation")
    parser.add_argument("--scenes", type=int, default=500, help="of RefShapes, to train on")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--train-decoder", action="store_true", help="train and save all weights of the decoder, too")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--output", type=Path, default=Path("runs/lora"))
    return parser.parse_args()


def load_split(arguments: argparse.Namespace, split: str, scenes: int) -> Dataset:
    """A split of the data set; that of RefShapes has as many scenes as one likes."""
    drawn = {"scenes": scenes} if arguments.data == "refshapes" else {}
    return load_data(arguments.data, split, root=arguments.root, **drawn)


def train(model: PeftModel, processor: CrossVLTProcessor, dataset: Dataset, arguments: argparse.Namespace) -> None:
    """Train what the adapter consists of."""
    pairs = TrainingPairs([dataset])
    order = RandomSampler(pairs, replacement=True, num_samples=arguments.steps * arguments.batch_size)
    loader = DataLoader(pairs, arguments.batch_size, sampler=order, collate_fn=Collator(processor))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=arguments.learning_rate)
    model.train()
    if not arguments.train_decoder:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()  # its statistics would change, but an adapter does not hold them
    for step, batch in enumerate(loader):
        loss = model(**{name: value.to(model.device) for name, value in batch.items()}, return_dict=True).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % max(1, arguments.steps // 10) == 0:
            print(f"step {step}: loss {loss.item():.4f}")
    model.eval()


def main() -> None:
    """Train an adapter, save it, load it, merge it, and evaluate."""
    arguments = read_arguments()
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base, processor = load_checkpoint(arguments.model, dtype="float32", device=device)
    processor.score_calibration = None  # of the weights before training
    validation = load_split(arguments, arguments.validation_split, min(arguments.scenes, 50))
    before = evaluate(base, processor, validation).compute()

    config = LoraConfig(
        r=arguments.rank,
        lora_alpha=2 * arguments.rank,
        target_modules=TARGETS,
        modules_to_save=["decoder"] if arguments.train_decoder else None,
    )
    model = get_peft_model(base, config)
    model.print_trainable_parameters()
    train(model, processor, load_split(arguments, "train", arguments.scenes), arguments)
    after = evaluate(model, processor, validation).compute()
    model.save_pretrained(arguments.output / "adapter")

    base, _ = load_checkpoint(arguments.model, dtype="float32", device=device)
    merged = PeftModel.from_pretrained(base, arguments.output / "adapter").merge_and_unload()
    merged.save_pretrained(arguments.output / "merged")
    processor.save_pretrained(arguments.output / "merged")
    again = evaluate(merged, processor, validation).compute()
    measured = {"before": before, "with the adapter": after, "merged": again}
    for name in ("overall_iou", "mean_iou", "precision@0.5"):
        shares = (f"{percent(metrics[name])} % {when}" for when, metrics in measured.items())
        print(f"{name}: {', '.join(shares)}")


if __name__ == "__main__":
    main()
