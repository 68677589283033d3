"""Train a CrossVLT; the same as `python -m crossvlt_hf train`, as a place to start from.

accelerate launch examples/train.py refcoco data.root=data
accelerate launch examples/train.py refshapes-64 optimization.max_steps=500 output.folder=runs/first
accelerate launch examples/train.py my.yaml --resume
"""

import sys

from crossvlt_hf.cli import main


if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
