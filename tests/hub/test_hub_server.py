"""The Hub of the tests, driven by the real client."""

from pathlib import Path

import pytest
from hub_server import ATTRIBUTES, HubServer
from huggingface_hub import CommitOperationDelete, HfApi, ModelCard, constants
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx
from processes import run_python


NAME = "alice/model"
LARGE = "logs/run one/large é.txt"
FIRST = '{"a": 1}'
CARD = """---
license: apache-2.0
pipeline_tag: image-segmentation
tags: [segmentation]
model-index:
- name: model
  results:
  - task: {type: image-segmentation}
    dataset: {type: refcoco, name: RefCOCO}
    metrics: [{type: oiou, value: 73.4}]
---
# A model
"""
WEIGHTS = bytes(range(256)) * 400


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with HubServer(tmp_path / "hub", tokens={"hf_alice": "alice", "hf_bob": "bob"}, lfs_above=1000) as server:
        yield server


@pytest.fixture
def api(hub):
    return HfApi(endpoint=hub.endpoint, token="hf_alice")


@pytest.fixture
def model(tmp_path):
    """A folder with files in git, and in LFS by name and by size."""
    folder = tmp_path / "model"
    (folder / LARGE).parent.mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    (folder / "config.json").write_text(FIRST)
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / LARGE).write_bytes(b"x" * 1001)
    return folder


@pytest.fixture
def published(api, model):
    """The commit that published the folder, privately."""
    api.create_repo(NAME, private=True)
    return api.upload_folder(repo_id=NAME, folder_path=model, commit_message="First").oid


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stored_in_lfs(entries):
    return {entry.path for entry in entries if getattr(entry, "lfs", None)}


def test_folder_comes_back(api, model, published, tmp_path):
    loaded = Path(api.snapshot_download(NAME, cache_dir=tmp_path / "cache"))
    assert loaded.name == published
    assert {**contents(model), ".gitattributes": ATTRIBUTES} == contents(loaded)


def test_listings(api, published):
    info = api.model_info(NAME, files_metadata=True)
    assert (info.sha, info.private, info.pipeline_tag) == (published, True, "image-segmentation")
    assert info.card_data.license == "apache-2.0"
    assert info.model_index[0]["results"][0]["metrics"][0]["value"] == 73.4
    sizes = {file.rfilename: file.lfs and file.lfs.size for file in info.siblings}
    assert sizes["model.safetensors"] == len(WEIGHTS)
    assert sizes["config.json"] is None
    entries = list(api.list_repo_tree(NAME, recursive=True, expand=True))
    assert {"logs", "logs/run one"} <= {entry.path for entry in entries}
    assert stored_in_lfs(entries) == {"model.safetensors", LARGE}
    assert {entry.last_commit.title for entry in entries} == {"initial commit", "First"}
    assert [entry.path for entry in api.list_repo_tree(NAME, "logs/run one")] == [LARGE]
    assert [entry.path for entry in api.get_paths_info(NAME, [LARGE, "none"])] == [LARGE]
    assert [commit.title for commit in api.list_repo_commits(NAME)] == ["First", "initial commit"]


def test_older_revisions_stay(api, published, tmp_path):
    def config(revision):
        cache = tmp_path / "cache"
        return Path(api.hf_hub_download(NAME, "config.json", revision=revision, cache_dir=cache)).read_text()

    api.create_tag(NAME, tag="v1")
    api.create_branch(NAME, branch="feature/one")
    api.create_branch(NAME, branch="feature/one", exist_ok=True)
    second = api.upload_file(path_or_fileobj=b"second", path_in_repo="config.json", repo_id=NAME).oid
    api.upload_file(path_or_fileobj=b"other", path_in_repo="config.json", repo_id=NAME, revision="feature/one")
    assert [config(name) for name in (None, second, "feature/one")] == ["second", "second", "other"]
    assert [config(name) for name in (published, "v1")] == [FIRST, FIRST]
    refs = api.list_repo_refs(NAME)
    assert {branch.name: branch.target_commit for branch in refs.branches}["main"] == second
    assert [(tag.name, tag.target_commit) for tag in refs.tags] == [("v1", published)]


def test_same_content_is_not_sent_again(hub, api, model, published):
    del hub.requests[:]
    assert api.upload_folder(repo_id=NAME, folder_path=model).oid == published
    api.upload_file(path_or_fileobj=WEIGHTS, path_in_repo="copy.safetensors", repo_id=NAME)
    assert not [request for request in hub.requests if request.method == "PUT"]


def test_deletions(api, published):
    api.create_commit(NAME, [CommitOperationDelete("config.json"), CommitOperationDelete("logs/")], commit_message="x")
    assert api.list_repo_files(NAME) == [".gitattributes", "README.md", "model.safetensors"]
    assert "config.json" in api.list_repo_files(NAME, revision=published)
    with pytest.raises(EntryNotFoundError, match="A file with this name doesn't exist"):
        api.delete_file("config.json", NAME)
    api.delete_repo(NAME)
    assert not api.repo_exists(NAME)


def test_commit_upon_another_parent_is_refused(api, published):
    api.upload_file(path_or_fileobj=b"1", path_in_repo="a", repo_id=NAME, parent_commit=published[:7])
    with pytest.raises(HfHubHTTPError, match="A commit has happened since"):
        api.upload_file(path_or_fileobj=b"2", path_in_repo="a", repo_id=NAME, parent_commit=published)
    with pytest.raises(BadRequestError, match="no pull requests"):
        api.upload_file(path_or_fileobj=b"2", path_in_repo="a", repo_id=NAME, create_pr=True)


def test_what_is_missing(api, published, tmp_path):
    cache = {"cache_dir": tmp_path / "cache"}
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download(NAME, "preprocessor_config.json", **cache)
    assert (tmp_path / f"cache/models--alice--model/.no_exist/{published}/preprocessor_config.json").exists()
    with pytest.raises(RevisionNotFoundError):
        api.hf_hub_download(NAME, "config.json", revision="v2", **cache)
    with pytest.raises(RevisionNotFoundError):
        api.upload_file(path_or_fileobj=b"", path_in_repo="a", repo_id=NAME, revision="v2")
    with pytest.raises(RepositoryNotFoundError):
        api.hf_hub_download("alice/other", "config.json", **cache)
    with pytest.raises(RepositoryNotFoundError):
        api.hf_hub_download("other", "config.json", **cache)
    assert not api.file_exists(NAME, "none")
    with pytest.raises(HfHubHTTPError, match="501"):
        next(iter(api.list_models(author="alice")))


def test_who_may_do_what(api, published, tmp_path):
    def load(token):
        return api.hf_hub_download(NAME, "config.json", cache_dir=tmp_path / str(token), token=token)

    def upload(token):
        api.upload_file(path_or_fileobj=b"", path_in_repo="a", repo_id=NAME, token=token)

    for token in ("hf_bob", False):
        for attempt in (load, upload):
            with pytest.raises(RepositoryNotFoundError):
                attempt(token)
    for attempt in (load, upload, api.whoami, lambda token: api.create_repo("alice/new", token=token)):
        with pytest.raises(HfHubHTTPError) as refused:
            attempt("wrong")
        assert refused.value.response.status_code == 401
        assert not isinstance(refused.value, RepositoryNotFoundError)
    assert api.whoami()["name"] == "alice"
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo(NAME)
    assert api.create_repo(NAME, exist_ok=True).repo_id == NAME

    api.update_repo_settings(NAME, private=False, gated="auto")
    assert api.model_info(NAME, token=False).gated == "auto"
    for token in ("hf_bob", False):
        with pytest.raises(GatedRepoError):
            load(token)
    api.update_repo_settings(NAME, gated=False)
    assert Path(load(False)).read_text() == FIRST
    with pytest.raises(HfHubHTTPError, match="403"):
        upload("hf_bob")


def test_lost_connection_is_taken_up_again(hub, api, published, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)  # it goes on after the last whole chunk
    hub.break_after = 70_000
    loaded = api.hf_hub_download(NAME, "model.safetensors", cache_dir=tmp_path / "cache")
    assert Path(loaded).read_bytes() == WEIGHTS
    assert [request.status for request in hub.requests[-3:]] == [302, 200, 206]


def test_upload_must_be_what_was_announced(hub):
    oid = "0" * 64
    assert httpx.put(f"{hub.contents}/{oid}", content=b"unknown").status_code == 400
    hub.announced[oid] = 7
    assert httpx.put(f"{hub.contents}/{oid}", content=b"unknown").status_code == 400
    assert httpx.get(f"{hub.contents}/{oid}").status_code == 400


@pytest.mark.parametrize(
    ("card", "complaint"),
    [
        ("---\nlicense: [\n---\n", "bad YAML"),
        ("---\njust words\n---\n", "must be an object"),
        ("---\nmodel-index: x\n---\n", '"model-index" must be of type list'),
        (CARD.replace("metrics", "scores"), r'"model-index\[0\].results\[0\].metrics" is required'),
        (CARD.replace("type: refcoco, ", ""), r'dataset.type" is required'),
    ],
)
def test_bad_cards(api, published, card, complaint):
    with pytest.raises(ValueError, match=complaint):
        api.upload_file(path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id=NAME)


def test_cards(hub, api, published, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    ModelCard(CARD).validate()
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        api.upload_file(path_or_fileobj=b"# A model", path_in_repo="README.md", repo_id=NAME)


def test_another_process(hub, published, tmp_path):
    script = f"from huggingface_hub import hf_hub_download; print(hf_hub_download({NAME!r}, 'config.json'))"
    environment = hub.environment(tmp_path / "home", "hf_alice")
    done = run_python("-c", script, environment=environment)
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.strip())
    assert path.is_relative_to(tmp_path / "home")
    assert path.read_text() == FIRST
