"""`crossvlt publish`: a checkpoint to the Hub, or to a folder that is ready for it."""

import argparse
import sys
from typing import Any

from ..checkpoint import load_checkpoint
from ..publishing.repository import publish, read_evidence, write_repository


def run(arguments: argparse.Namespace) -> None:
    """Upload, and print the address; or write the folder."""
    if arguments.folder is not None:
        model, processor = load_checkpoint(arguments.checkpoint)
        evidence = read_evidence(arguments.checkpoint, arguments.about, tuple(arguments.results))
        print(write_repository(model, processor, arguments.folder, model_id=arguments.repo_id, evidence=evidence))
        print("Its card is README.md; what only you can say goes into about.yaml.", file=sys.stderr)
        if evidence.about.license is None:
            print("The card states no licence: set `license` in about.yaml.", file=sys.stderr)
        return
    info = publish(
        arguments.checkpoint,
        arguments.repo_id,
        about=arguments.about,
        reports=tuple(arguments.results),
        private=arguments.private or None,
        revision=arguments.revision,
        token=arguments.token,
        create_pr=arguments.create_pr,
        overwrite_card=arguments.overwrite_card,
        commit_message=arguments.message,
    )
    print(info.pr_url or info.commit_url)


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser("publish", help="upload a checkpoint to the Hub, with its code and a model card")
    command.add_argument("checkpoint", metavar="CHECKPOINT", help="folder or Hub id")
    command.add_argument("repo_id", metavar="REPO_ID", help="owner/name on the Hub")
    command.add_argument("--folder", metavar="OUT_DIR", help="write the repository here, and upload nothing")
    command.add_argument(
        "--results", action="append", default=[], metavar="JSON", help="report of `crossvlt evaluate`, for the card"
    )
    command.add_argument(
        "--about", metavar="YAML", help="what the card says of the checkpoint (crossvlt_hf.publishing.facts.About)"
    )
    command.add_argument("--private", action="store_true", help="make a new repository private")
    command.add_argument("--revision", help="branch; made where there is none")
    command.add_argument("--create-pr", action="store_true", help="open a pull request instead")
    command.add_argument("--overwrite-card", action="store_true", help="replace a card that was written by hand")
    command.add_argument("--token", help="of the Hub (default: that of `hf auth login`, or HF_TOKEN)")
    command.add_argument("--message", default="Upload CrossVLT", help="of the commit (%(default)s)")
    command.set_defaults(run=run)
