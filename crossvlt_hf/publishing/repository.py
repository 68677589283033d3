"""Write a folder that is a complete Hub repository, and upload it.

The folder loads without this package with `trust_remote_code=True`. `save_pretrained` of model and processor write the
code; this module adds the card and the facts about the checkpoint.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import httpx, validate_repo_id

from ..configuration_crossvlt import CARD
from ..modeling_crossvlt import CrossVLTModel
from ..processing_crossvlt import CrossVLTProcessor
from ..system import old_names
from ..weights.checkpoint import check_checkpoint_folder, load_checkpoint, resolve_checkpoint
from .card import MARK, NO_EVIDENCE, render_checkpoint_card
from .facts import FILES, Evidence


def read_evidence(
    source: str | Path, about: str | Path | None = None, reports: tuple[str | Path, ...] = ()
) -> Evidence:
    """Read the evidence about a checkpoint from its folder or from the Hub; see [`Evidence.read`]."""
    folder = Path(resolve_checkpoint(source))
    if not folder.is_dir():
        folder = Path(snapshot_download(str(source), allow_patterns=[*FILES, "*.json"]))
    return Evidence.read(folder, about, reports)


def write_repository(
    model: CrossVLTModel,
    processor: CrossVLTProcessor,
    folder: str | Path,
    *,
    model_id: str | None = None,
    evidence: Evidence = NO_EVIDENCE,
    overwrite: bool = False,
    overwrite_card: bool = False,
) -> Path:
    """Write a folder with everything that a repository on the Hub needs.

    Args:
        model: in the dtype to save its weights in.
        processor: of the model.
        folder: a new or empty folder, or that of this checkpoint.
        model_id: the model id in the code example of the card; None means the name of the folder.
        evidence: results, training and purpose, for the card; also written to files.
        overwrite: replace another checkpoint, and write beside other files.
        overwrite_card: replace a hand-written card.

    Returns:
        The folder: `model.safetensors`, `config.json`, processor and tokenizer files, the code of model, processor and
        pipeline, `handler.py` with `requirements.txt`, and the card, `README.md`.

    Raises:
        OSError: if the folder is a file.
        ValueError: if the folder holds another checkpoint, other files or a hand-written card, or `model_id` is not a
            valid name.
    """
    folder = Path(folder)
    model_id = folder.resolve().name if model_id is None else model_id
    validate_repo_id(model_id)
    check_checkpoint_folder(folder, model.state_dict(), overwrite=overwrite)
    card = folder / CARD
    if not overwrite_card and card.is_file() and MARK not in card.read_text(encoding="utf-8", errors="replace"):
        raise ValueError(
            f"{card} was written by hand; move its text to about.yaml and remove it, or give --overwrite-card (in "
            "Python overwrite_card=True)."
        )
    model.save_pretrained(folder)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)  # safetensors makes files that only their owner can read
    processor.save_pretrained(folder)
    evidence.save(folder)
    render_checkpoint_card(model, processor, model_id, evidence).save(card)
    return folder


@contextmanager
def _reaching_the_hub() -> Iterator[None]:
    try:
        yield
    except httpx.TransportError as error:
        raise OSError(f"The Hub cannot be reached: {error}") from error


def publish(
    source: str | Path,
    repo_id: str,
    *,
    about: str | Path | None = None,
    reports: tuple[str | Path, ...] = (),
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    create_pr: bool = False,
    overwrite_card: bool = False,
    commit_message: str = "Upload CrossVLT",
) -> CommitInfo:
    """Upload a checkpoint as a complete repository, which is created if it does not exist.

    Args:
        source: folder of the checkpoint, or a Hub id.
        repo_id: `owner/name` on the Hub.
        about: YAML file with statements about the checkpoint (see [`About`]).
        reports: JSON files of `crossvlt evaluate`.
        private: whether a new repository is private.
        revision: branch, which is created if it does not exist.
        token: of the Hub; None for that of `hf auth login`.
        create_pr: open a pull request instead of a commit.
        overwrite_card: replace a hand-written card.
        commit_message: of the commit.

    Raises:
        OSError: if there is no checkpoint, or the Hub cannot be reached or refuses the upload.
        ValueError: if the checkpoint is broken, `repo_id` is not valid, the repository has a hand-written card, or it
            is public and should be private.
    """
    validate_repo_id(repo_id)
    model, processor = load_checkpoint(source)
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder, _reaching_the_hub():
        evidence = read_evidence(source, about, reports)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        _check_repository(api, repo_id, revision, private, overwrite_card or create_pr)
        write_repository(model, processor, Path(folder, "repository"), model_id=repo_id, evidence=evidence)
        if revision is not None and not create_pr:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=Path(folder, "repository"),
            revision=revision,
            create_pr=create_pr,
            commit_message=commit_message,
        )


def _check_repository(api: HfApi, repo_id: str, revision: str | None, private: bool | None, card_may_go: bool) -> None:
    """Raise ValueError for a public repository that should be private, and for a hand-written card."""
    if private and not api.repo_info(repo_id).private:
        raise ValueError(f"{repo_id} exists and is public; make it private on the Hub first.")
    if card_may_go:
        return
    try:
        card = api.hf_hub_download(repo_id, CARD, revision=revision)
    except (EntryNotFoundError, RevisionNotFoundError, RepositoryNotFoundError):
        return
    text = Path(card).read_text(encoding="utf-8", errors="replace")
    if MARK not in text and not _is_placeholder(text):
        raise ValueError(
            f"{repo_id} has a hand-written card; move its text to about.yaml and use --overwrite-card, or open a pull "
            "request with --create-pr."
        )


def _is_placeholder(card: str) -> bool:
    """Whether it is the placeholder that `push_to_hub` writes."""
    return "automatically generated" in card and "[More Information Needed]" in card


__getattr__ = old_names(__name__, {"export": f"{__name__}.write_repository"})
