"""Train a CrossVLT; the same as `python -m crossvlt_hf.training`, as a place to start from.

accelerate launch examples/train.py refcoco data.root=data
accelerate launch examples/train.py refshapes-64 optimization.max_steps=500 output.folder=runs/first
accelerate launch examples/train.py my.yaml --resume
"""

import argparse

from crossvlt_hf.training import TrainingRun, load_config


def main() -> None:
    """Read the configuration, train, and print the last metrics."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a YAML file, or the name of a configuration of the package")
    parser.add_argument("settings", nargs="*", metavar="name=value", help="settings to override")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint, if there is one")
    arguments = parser.parse_args()
    run = TrainingRun(load_config(arguments.config, arguments.settings), resume=arguments.resume)
    metrics = run.run()
    run.accelerator.print(metrics)


if __name__ == "__main__":
    main()
