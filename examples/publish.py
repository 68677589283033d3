"""Write a checkpoint as a whole repository of the Hub, with a card that tells what was measured; upload it if asked.

python examples/publish.py runs/custom/best alice/crossvlt-mine --folder repository     # look at it first
python examples/publish.py runs/custom/best alice/crossvlt-mine --upload                # needs `hf auth login`
"""

import argparse

from crossvlt_hf.publishing.repository import publish, read_evidence, write_repository
from crossvlt_hf.weights.checkpoint import load_checkpoint


def main() -> None:
    """Export or upload."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("repo_id")
    parser.add_argument("--folder", default="repository")
    parser.add_argument("--upload", action="store_true")
    arguments = parser.parse_args()
    if arguments.upload:
        print(publish(arguments.checkpoint, arguments.repo_id, private=True).commit_url)
        return
    model, processor = load_checkpoint(arguments.checkpoint)
    evidence = read_evidence(arguments.checkpoint)  # what training and evaluation left beside the weights
    print(write_repository(model, processor, arguments.folder, model_id=arguments.repo_id, evidence=evidence))


if __name__ == "__main__":
    main()
