"""What training on RefCOCO and labelling in bulk cost: the tables of docs/scaling.md, from your own figures.

    python examples/scaling.py                                          # an assumed GPU
    python examples/scaling.py --peak 165 --training-utilisation 0.35 --inference-utilisation 0.4 --price 1.2
    python examples/scaling.py --pairs-per-second 95                    # of one GPU, as you measured it

time = FLOPs / (GPUs x peak x utilisation), but no less than CPU seconds / CPU cores. What is counted and what was
measured stands in `Work`; what is assumed are the options' defaults.
"""

import argparse
from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """What does not depend on the GPU.

    Args:
        forward: floating-point operations of one pair at 480x480, `crossvlt_hf.benchmark.flops.count_flops`; counted.
        backward: forward and backward together in units of `forward`: 3, or 4 with activation checkpointing; counted.
        parameters: of the base model; counted.
        pairs: references in RefCOCO's train split; one expression of each is read in an epoch.
        epochs: of the paper's recipe.
        training_sample: CPU milliseconds for image, mask and words of a pair; measured.
        labelling_image: CPU milliseconds to decode and prepare an image; measured.
        labelling_pair: CPU milliseconds for the words of a pair, its mask at the image's size; measured.
    """

    forward: float = 388.1e9
    backward: int = 3
    parameters: float = 234.6e6
    pairs: int = 42404
    epochs: int = 40
    training_sample: float = 15.6
    labelling_image: float = 13.6
    labelling_pair: float = 3.6


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peak", type=float, default=300, help="TFLOP/s of a GPU in bfloat16, dense")
    parser.add_argument("--training-utilisation", type=float, default=0.25, help="share of the peak that is reached")
    parser.add_argument("--inference-utilisation", type=float, default=0.3)
    parser.add_argument("--pairs-per-second", type=float, help="labelled by one GPU, as measured, instead of the two")
    parser.add_argument("--price", type=float, default=2.0, help="of a GPU and its CPU cores for an hour")
    parser.add_argument("--cores", type=float, default=8, help="CPU cores for each GPU")
    parser.add_argument("--expressions", type=float, default=1, help="of an image")
    parser.add_argument("--link", type=float, default=10, help="GB/s between GPUs, for the gradients")
    parser.add_argument("--pairs-per-gpu", type=int, default=2, help="in a step of training")
    return parser.parse_args()


def row(flops: float, rate: float, cpu: float, gpus: int, options: argparse.Namespace) -> str:
    """A line of a table: FLOPs at `rate` per GPU and CPU seconds, on so many GPUs with their cores."""
    on_gpu, on_cpu = flops / rate / gpus / 3600, cpu / options.cores / gpus / 3600
    hours = max(on_gpu, on_cpu)
    bottleneck = "GPU" if on_gpu >= on_cpu else "CPU cores"
    total = f"{hours:,.1f} | {hours * gpus:,.0f} | {hours * gpus * options.price:,.0f}"
    return f"| {gpus} | {on_gpu:,.1f} | {on_cpu:,.1f} | {total} | {bottleneck} |"


def print_table(title: str, flops: float, rate: float, cpu: float, options: argparse.Namespace) -> None:
    """A piece of work on 1, 8 and 64 GPUs."""
    print(f"\n{title}: {flops / 1e18:,.2f} EFLOP, {cpu / 3600:,.1f} core hours\n")
    print("| GPUs | hours of the GPUs | hours of the CPUs | hours | GPU hours | cost | bottleneck |")
    print("|---:|---:|---:|---:|---:|---:|---|")
    for gpus in (1, 8, 64):
        print(row(flops, rate, cpu, gpus, options))


def labelling_rate(work: Work, options: argparse.Namespace) -> float:
    """FLOP/s of a GPU that labels."""
    if options.pairs_per_second is not None:
        return options.pairs_per_second * work.forward
    return options.peak * 1e12 * options.inference_utilisation


def print_feeding(work: Work, training: float, labelling: float, options: argparse.Namespace) -> None:
    """How many cores keep a GPU busy, and what the gradients cost on the link."""
    trained, labelled = training / work.forward / work.backward, labelling / work.forward
    label_ms = work.labelling_image / options.expressions + work.labelling_pair
    print(f"\nOne GPU trains on {trained:,.0f} pairs/s: {trained * work.training_sample / 1e3:.1f} cores feed it.")
    print(f"One GPU labels {labelled:,.0f} pairs/s: {labelled * label_ms / 1e3:.1f} cores feed it.")
    gradients, pairs = 4 * work.parameters, options.pairs_per_gpu
    compute, link = pairs / trained, 2 * gradients / options.link / 1e9  # a ring sends every byte twice
    print(
        f"A step of {pairs} pairs a GPU: {1e3 * compute:.0f} ms to compute, {1e3 * link:.0f} ms to add up "
        f"{gradients / 1e9:.2f} GB of gradients. One after the other, 8 GPUs train on "
        f"{8 * pairs / (compute + link):,.0f} pairs/s."
    )


def main() -> None:
    """All tables."""
    work, options = Work(), read_arguments()
    training, labelling = options.peak * 1e12 * options.training_utilisation, labelling_rate(work, options)
    samples = work.pairs * work.epochs
    flops, cpu = samples * work.backward * work.forward, samples * work.training_sample / 1e3
    print_table(f"RefCOCO, {work.epochs} epochs, without the link", flops, training, cpu, options)
    per_pair = (work.labelling_image / options.expressions + work.labelling_pair) / 1e3
    for pairs, name in ((1e6, "1 million pairs"), (1e9, "1 billion pairs")):
        print_table(f"Labelling {name}", pairs * work.forward, labelling, pairs * per_pair, options)
    print_feeding(work, training, labelling, options)


if __name__ == "__main__":
    main()
