"""Publishing: a folder that is a whole Hub repository, and its upload.

Such a folder loads with `trust_remote_code=True` where this package is not installed, and without it where it is.
`save_pretrained` of model and processor write all that this needs; here come the card, what is known of the
checkpoint, and the handler of Inference Endpoints.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi

from . import handler
from .cards import NO_EVIDENCE, Evidence, render_checkpoint_card
from .loading import load_checkpoint
from .modeling_crossvlt import CrossVLTModel
from .processing_crossvlt import CrossVLTProcessor


REQUIREMENTS = "transformers>=5.23,<6\npillow>=11\n"  # of the handler; an endpoint has torch


def export(
    model: CrossVLTModel,
    processor: CrossVLTProcessor,
    folder: str | Path,
    *,
    model_id: str | None = None,
    evidence: Evidence = NO_EVIDENCE,
) -> Path:
    """Write a folder with all that a repository on the Hub should have.

    Args:
        model: in the dtype in which its weights should be written.
        processor: the model's.
        folder: a new or an empty one, or one that such a checkpoint is in.
        model_id: the name under which the card's snippet loads the model; None means the folder.
        evidence: what the card tells of results, training and purpose; it is written beside the card.

    Returns:
        The folder: `model.safetensors`, `config.json`, processor and tokenizer files, the code of model, processor and
        pipeline, `handler.py` with `requirements.txt`, and the card, `README.md`.

    Raises:
        ValueError: if the folder holds something else.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is no checkpoint folder, and not empty; give a new one.")
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # which safetensors leaves to its owner alone
    processor.save_pretrained(folder)
    shutil.copyfile(str(handler.__file__), folder / "handler.py")
    (folder / "requirements.txt").write_text(REQUIREMENTS)
    evidence.save(folder)
    card = render_checkpoint_card(model, processor, model_id or str(folder), evidence)
    card.save(folder / "README.md")
    return folder


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
    commit_message: str = "Upload CrossVLT",
) -> CommitInfo:
    """Upload a checkpoint as a whole repository; the repository is made where there is none.

    Args:
        source: folder of the checkpoint, or a Hub id.
        repo_id: `owner/name` on the Hub.
        about: YAML file with what the card says of the checkpoint (see [`About`]).
        reports: JSON files of `crossvlt evaluate`.
        private: whether a new repository is private.
        revision: branch; it is made where there is none.
        token: of the Hub; None means the one that `hf auth login` stored.
        create_pr: open a pull request instead.
        commit_message: of the commit.

    Raises:
        OSError: if there is no checkpoint, the Hub cannot be reached, or refuses.
        ValueError: if the checkpoint is broken, or `repo_id` is no such name.
    """
    model, processor = load_checkpoint(source)
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        evidence = Evidence.read(source, about, reports)
        export(model, processor, folder, model_id=repo_id, evidence=evidence)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not create_pr:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        upload: dict[str, Any] = {"revision": revision, "create_pr": create_pr, "commit_message": commit_message}
        return api.upload_folder(repo_id=repo_id, folder_path=folder, **upload)
