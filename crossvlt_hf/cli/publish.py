"""`crossvlt publish`: upload a checkpoint to the Hub, or write a folder that is ready for it."""

import sys
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, UseAppendAction, arg

from ..system import check_file
from ..weights.names import check_source
from .common import Command, refuse_without_effect


@dataclass(frozen=True)
class Publish(Command):
    """Upload a checkpoint to the Hub, with its code and a model card.

    Args:
        checkpoint: Folder or Hub id.
        repo_id: Name of the repository on the Hub: owner/name.
        folder: Write the repository to this folder instead of uploading it.
        results: Report of `crossvlt evaluate` for the card; may be repeated.
        about: YAML file of statements for the card, see crossvlt_hf.publishing.facts.About.
        private: Make a new repository private.
        revision: Branch; it is created if it does not exist.
        create_pr: Open a pull request instead of a commit.
        overwrite: With --folder, replace another checkpoint there, and write beside other files.
        overwrite_card: Replace a card that was written by hand.
        token: Token of the Hub. By default HF_TOKEN, or that of `hf auth login`.
        message: Commit message.
    """

    checkpoint: Positional[Annotated[str, arg(metavar="CHECKPOINT")]]
    repo_id: Positional[Annotated[str, arg(metavar="REPO_ID")]]
    folder: Annotated[str | None, arg(metavar="OUT_DIR")] = None
    results: UseAppendAction[Annotated[tuple[str, ...], arg(metavar="JSON")]] = ()
    about: Annotated[str | None, arg(metavar="YAML")] = None
    private: bool = False
    revision: str | None = None
    create_pr: bool = False
    overwrite: bool = False
    overwrite_card: bool = False
    token: str | None = None
    message: str = "Upload CrossVLT"

    def check(self) -> None:
        """See that no option is given that has no effect on a folder, or on the Hub."""
        hub = ("private", "revision", "create_pr", "token", "message")
        place, names = ("a folder", hub) if self.folder is not None else ("the Hub", ("overwrite",))
        refuse_without_effect(self, names, f"on {place}")
        check_source(self.checkpoint)
        for path in (*self.results, *filter(None, [self.about])):
            check_file(path)


def publish(options: Publish) -> None:
    """Upload and print the URL, or write the folder."""
    if options.folder is not None:
        _write(options, options.folder)
        return
    from ..publishing import repository

    info = repository.publish(
        options.checkpoint,
        options.repo_id,
        about=options.about,
        reports=options.results,
        private=options.private or None,
        revision=options.revision,
        token=options.token,
        create_pr=options.create_pr,
        overwrite_card=options.overwrite_card,
        commit_message=options.message,
    )
    print(info.pr_url or info.commit_url)


def _write(options: Publish, folder: str) -> None:
    from ..publishing.repository import read_evidence, write_repository
    from ..weights.checkpoint import load_checkpoint

    model, processor = load_checkpoint(options.checkpoint)
    evidence = read_evidence(options.checkpoint, options.about, options.results)
    may = {"overwrite": options.overwrite, "overwrite_card": options.overwrite_card}
    print(write_repository(model, processor, folder, model_id=options.repo_id, evidence=evidence, **may))
    print("Its card is README.md; add what only you know to about.yaml.", file=sys.stderr)
    if evidence.about.license is None:
        print("The card states no licence: set `license` in about.yaml.", file=sys.stderr)
