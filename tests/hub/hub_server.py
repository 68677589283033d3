"""A small Hub on loopback: what `huggingface_hub` asks of the real one, answered over real HTTP.

It speaks the part of the API that version 2.4 of the client uses with Xet switched off. The contents of LFS lie on a
second port, as the real ones lie with another host: the client follows redirects within the Hub's own origin, so only
one that leaves it shows the metadata of the file; and the token must not go along.
"""

import base64
import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from tempfile import NamedTemporaryFile, SpooledTemporaryFile
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


CHUNK = 2**20
PREFIXES = {"models": "", "datasets": "datasets/", "spaces": "spaces/"}
ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"  # the Hub puts the file into every new repository
FRONT_MATTER = re.compile(r"^\s*---[\r\n]+([\S\s]*?)[\r\n]+---(?:\r\n|\n|$)")
NO_METADATA = "empty or missing yaml metadata in repo card"
RESULT = {"task": {"type": str}, "dataset": {"type": str, "name": str}, "metrics": [{"type": str, "value": object}]}
MODEL_INDEX = [{"name": str, "results": [RESULT]}]  # what must be there; more may be


class Request(NamedTuple):
    """A request that was answered, for tests of what a client asks and what it does not."""

    method: str
    path: str
    status: int


class Reply(NamedTuple):
    """A file, or a part of one: from where it is, as many bytes."""

    file: BinaryIO
    length: int
    headers: dict[str, str]
    status: int = 200


class HubError(Exception):
    """A refusal; the client makes the class of its own exception from the code, where there is one."""

    def __init__(self, status: int, message: str, code: str = "", content: dict | None = None, **headers: str) -> None:
        self.status, self.content = status, {"error": message, **(content or {})}
        told = {"X-Error-Message": message.encode("ascii", "replace").decode(), "X-Error-Code": code, **headers}
        self.headers = {name.replace("_", "-"): value for name, value in told.items() if value}


class Blob(NamedTuple):
    """A file of a commit; one in LFS has git's hash of its pointer, and the hash of its content."""

    oid: str
    size: int
    sha256: str | None = None

    @property
    def key(self) -> str:
        return self.sha256 or self.oid

    def lfs(self, hash_name: str) -> dict:
        if self.sha256 is None:
            return {}
        pointer_size = len(pointer(self.sha256, self.size))
        return {"lfs": {hash_name: self.sha256, "size": self.size, "pointerSize": pointer_size}}


@dataclass(frozen=True, eq=False)
class Commit:
    """All files at a point of the history, never changed afterwards."""

    parent: "Commit | None"
    files: dict[str, Blob]
    author: str
    title: str
    message: str = ""
    date: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"))

    @cached_property
    def oid(self) -> str:
        parent = self.parent and self.parent.oid
        return digest([parent, sorted(self.files.items()), self.author, self.title, self.message, self.date])

    def history(self) -> Iterator["Commit"]:
        commit: Commit | None = self
        while commit is not None:
            yield commit
            commit = commit.parent

    def under(self, folder: str) -> dict[str, Blob]:
        return {path: blob for path, blob in self.files.items() if not folder or path.startswith(f"{folder}/")}

    def entry(self, path: str, expand: bool) -> dict | None:
        """A file or folder as the listings describe it, or None where there is nothing of that name."""
        state = blob, inside = self.state(path)
        if blob:
            entry = {"type": "file", "path": path, "oid": blob.oid, "size": blob.size, **blob.lfs("oid")}
        elif inside:
            entry = {"type": "directory", "path": path, "oid": digest(sorted(inside.items())), "size": 0}
        else:
            return None
        if expand:
            last = next(one for one in self.history() if not one.parent or one.parent.state(path) != state)
            entry["lastCommit"] = {"id": last.oid, "title": last.title, "date": last.date}
        return entry

    def state(self, path: str) -> tuple[Blob | None, dict[str, Blob]]:
        return self.files.get(path), self.under(path)


@dataclass
class Repo:
    """A repository: its commits stay reachable by their hash, whatever becomes of the branches."""

    kind: str
    name: str
    private: bool
    gated: str | bool = False
    branches: dict[str, Commit] = field(default_factory=dict)
    tags: dict[str, Commit] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        return self.name.split("/")[0]

    def url(self, endpoint: str) -> str:
        return f"{endpoint}/{PREFIXES[self.kind]}{self.name}"

    def at(self, revision: str, *kinds: dict[str, Commit]) -> Commit:
        for known in kinds or (self.branches, self.tags, self.commits):
            if revision in known:
                return known[revision]
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def add(self, branch: str, commit: Commit) -> None:
        self.commits[commit.oid] = self.branches[branch] = commit


class HubServer:
    """The Hub: entered, it listens on free ports of loopback; the contents of all files lie in the folder.

    with HubServer(tmp_path / "hub", tokens={"hf_alice": "alice"}) as hub:
        HfApi(endpoint=hub.endpoint, token="hf_alice").create_repo("alice/model", private=True)
        subprocess.run(command, env=hub.environment(tmp_path / "home", "hf_alice"))

    A token lets its user write to the repositories of that name, and see the private ones. Files of more than
    `lfs_above` bytes go to LFS, as those named `*.safetensors` always do. `requests` has what was answered, in order;
    with `break_after` set, the connection is lost after so many bytes of the next file that is sent.
    """

    def __init__(self, folder: Path, tokens: dict[str, str] | None = None, lfs_above: int = 10_000_000) -> None:
        self.folder, self.lfs_above = Path(folder), lfs_above
        self.folder.mkdir(parents=True, exist_ok=True)
        self.tokens = {"hf_tester": "tester"} if tokens is None else tokens
        self.requests: list[Request] = []
        self.break_after: int | None = None
        self.repos: dict[tuple[str, str], Repo] = {}
        self.announced: dict[str, int] = {}  # sizes of the contents that may be uploaded
        self.lock = threading.Lock()

    def __enter__(self) -> "HubServer":
        self._listeners = [Listener(self, routes) for routes in (ROUTES, CONTENT_ROUTES)]
        self.endpoint, self.contents = (f"http://127.0.0.1:{listener.server_port}" for listener in self._listeners)
        for listener in self._listeners:
            threading.Thread(target=listener.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for listener in self._listeners:
            listener.shutdown()
            listener.server_close()

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """Variables for another process: this Hub for the real one, and nothing of the machine's own settings."""
        foreign = ("HF_", "HUGGING", "TRANSFORMERS_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        switches = ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS")
        ours = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), **dict.fromkeys(switches, "1")}
        direct = dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1")
        return {**kept, **ours, **direct, **({"HF_TOKEN": token} if token else {})}

    def add_file(self, content: bytes) -> Blob:
        blob = Blob(git_hash(content), len(content))
        (self.folder / blob.key).write_bytes(content)
        return blob


class Listener(ThreadingHTTPServer):
    """A port with its routes."""

    def __init__(self, hub: HubServer, routes: list) -> None:
        super().__init__(("127.0.0.1", 0), Exchange)
        self.hub, self.routes = hub, [(method, re.compile(pattern), answer) for method, pattern, answer in routes]


class Exchange(BaseHTTPRequestHandler):
    """One request and its answer; of HTTP 1.0, so that no connection outlives the server."""

    def exchange(self) -> None:
        url = urlsplit(self.path)
        self.hub, self.query = self.server.hub, parse_qs(url.query)
        with SpooledTemporaryFile(CHUNK) as self.body:
            for chunk in self._received():  # all of it, even to refuse it: else the client sees a connection reset
                self.body.write(chunk)
            self.body.seek(0)
            try:
                answer = self._route("GET" if self.command == "HEAD" else self.command, url.path)
                reply = answer if isinstance(answer, Reply) else as_json(answer)
            except HubError as error:
                reply = as_json(error.content, error.headers, error.status)
        self.hub.requests.append(Request(self.command, self.path, reply.status))
        self._send(reply)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = exchange  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Nothing: there is `HubServer.requests`."""

    def _received(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        yield from pieces(self.rfile, int(self.headers.get("Content-Length", 0)))

    def _route(self, method: str, path: str) -> Any:
        for wanted, pattern, answer in self.server.routes:
            if method == wanted and (found := pattern.fullmatch(path)):
                given = {name: unquote(value) for name, value in found.groupdict().items() if value is not None}
                if "repo" in given:
                    given["repo"] = self._repo(given.pop("kind", "models"), given["repo"], answer not in READERS)
                return answer(self, **given)
        raise HubError(501, f"The Hub of the tests does not answer {method} {path}")

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        for name, value in {**reply.headers, "Content-Length": str(reply.length)}.items():
            self.send_header(name, value)
        self.end_headers()
        sent = 0 if self.command == "HEAD" else reply.length
        if sent and "Accept-Ranges" in reply.headers and self.hub.break_after is not None:
            sent, self.hub.break_after = min(sent, self.hub.break_after), None
        with reply.file:
            self.wfile.writelines(pieces(reply.file, sent))

    def _file(self, key: str, **headers: str) -> Reply:
        file = (self.hub.folder / key).open("rb")
        size = file.seek(0, os.SEEK_END)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, stop = (int(asked[1]), min(int(asked[2] or size) + 1, size)) if asked else (0, size)
        if asked and first >= stop:
            file.close()
            raise HubError(416, "Range not satisfiable", Content_Range=f"bytes */{size}")
        file.seek(first)
        part = {"Content-Range": f"bytes {first}-{stop - 1}/{size}"} if asked else {}
        told = {"Accept-Ranges": "bytes", "ETag": f'"{key}"', **part, **headers}
        return Reply(file, stop - first, told, 206 if asked else 200)

    def _json(self) -> dict:
        return json.load(self.body)

    # Who asks, and for what

    def _user(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.tokens:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.hub.tokens.get(token)

    def _known_user(self) -> str:
        if user := self._user():
            return user
        raise HubError(401, "Invalid username or password.")

    def _repo(self, kind: str, name: str, write: bool) -> Repo:
        """The repository, if the user may know of it; the real Hub too tells others that there is none."""
        user, repo = self._user(), self.hub.repos.get((kind, name))
        if repo is None or (repo.private and user != repo.owner) or (write and user is None):
            status, message = (404, "Repository not found") if user else (401, "Invalid username or password.")
            raise HubError(status, message, "RepoNotFound")
        if write and user != repo.owner:
            raise HubError(403, f"{user} may not write to {name}")
        return repo

    # Users, cards and repositories

    def whoami(self) -> dict:
        user = self._known_user()
        auth = {"type": "access_token", "accessToken": {"displayName": "tests", "role": "write"}}
        return {"type": "user", "id": digest(user), "name": user, "fullname": user, "orgs": [], "auth": auth}

    def validate(self) -> dict:
        self._user()
        text = self._json()["content"]
        if problems := card_problems(text):
            raise HubError(400, "Invalid card", content={"errors": [{"message": problem} for problem in problems]})
        return {"errors": [], "warnings": [] if card_metadata(text) else [{"message": NO_METADATA}]}

    def create(self) -> dict:
        user, asked = self._known_user(), self._json()
        name = f"{asked.get('organization') or user}/{asked['name']}"
        repo = Repo(f"{asked.get('type') or 'model'}s", name, asked.get("visibility") == "private")
        if repo.owner != user:
            raise HubError(403, f"{user} may not create repositories of {repo.owner}")
        answer = {"name": name, "url": repo.url(self.hub.endpoint)}
        repo.add("main", Commit(None, {".gitattributes": self.hub.add_file(ATTRIBUTES)}, user, "initial commit"))
        if self.hub.repos.setdefault((repo.kind, name), repo) is not repo:
            raise HubError(409, "You already created this repository", content=answer)
        return answer

    def delete(self) -> None:
        asked = self._json()
        name = f"{asked.get('organization') or self._known_user()}/{asked['name']}"
        repo = self._repo(f"{asked.get('type') or 'model'}s", name, write=True)
        del self.hub.repos[repo.kind, name]

    def settings(self, repo: Repo) -> dict:
        asked = self._json()
        repo.private = asked.get("visibility", "private" if repo.private else "public") == "private"
        repo.gated = asked.get("gated", repo.gated)
        return {"private": repo.private, "gated": repo.gated}

    def info(self, repo: Repo, revision: str = "main") -> dict:
        commit = repo.at(revision)
        sizes = self.query.get("blobs") == ["true"]
        files = [
            {"rfilename": path, **({"blobId": blob.oid, "size": blob.size, **blob.lfs("sha256")} if sizes else {})}
            for path, blob in sorted(commit.files.items())
        ]
        card = self._card(commit)
        named = {key: card[key] for key in ("library_name", "pipeline_tag", "tags", "model-index") if key in card}
        return {
            **{"id": repo.name, "modelId": repo.name, "author": repo.owner, "sha": commit.oid, "siblings": files},
            **{"private": repo.private, "gated": repo.gated, "disabled": False, "downloads": 0, "likes": 0},
            **{"lastModified": commit.date, "createdAt": list(commit.history())[-1].date, "tags": [], **named},
            "cardData": {key: value for key, value in card.items() if key != "model-index"},
        }

    def _card(self, commit: Commit) -> dict:
        blob = commit.files.get("README.md")
        text = (self.hub.folder / blob.key).read_text("utf-8", "replace") if blob else ""
        return {} if card_problems(text) else card_metadata(text) or {}

    # What is read

    def tree(self, repo: Repo, revision: str, path: str = "") -> list[dict]:
        commit = repo.at(revision)
        inside, depth = commit.under(path), path.count("/") + 1 if path else 0
        if path and not inside:
            raise HubError(404, f"{path} does not exist on {revision}", "EntryNotFound")
        recursive, expand = (self.query.get(name) == ["true"] for name in ("recursive", "expand"))
        split = [name.split("/") for name in inside]
        names = {"/".join(parts[:end]) for parts in split for end in range(depth + 1, len(parts) + 1)}
        return [commit.entry(name, expand) for name in sorted(names) if recursive or name.count("/") == depth]

    def paths_info(self, repo: Repo, revision: str) -> list[dict]:
        commit, asked = repo.at(revision), parse_qs(self.body.read().decode())
        entries = (commit.entry(path, asked.get("expand") == ["true"]) for path in asked.get("paths", []))
        return [entry for entry in entries if entry]

    def resolve(self, repo: Repo, revision: str, path: str) -> Reply:
        user = self._user()
        if repo.gated and user != repo.owner:
            raise HubError(403 if user else 401, f"Access to {repo.name} is restricted", "GatedRepo")
        commit = repo.at(revision)
        blob = commit.files.get(path)
        if blob is None:
            raise HubError(404, "Entry not found", "EntryNotFound", X_Repo_Commit=commit.oid)
        if blob.sha256 is None:
            return self._file(blob.key, **{"X-Repo-Commit": commit.oid})
        linked = {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size), "ETag": f'"{blob.oid}"'}
        place = {"X-Repo-Commit": commit.oid, "Location": f"{self.hub.contents}/{blob.sha256}"}
        return as_json(None, {**linked, **place}, 302)

    def commits(self, repo: Repo, revision: str) -> list[dict]:
        return [
            {"id": at.oid, "title": at.title, "message": at.message, "date": at.date, "authors": [{"user": at.author}]}
            for at in repo.at(revision).history()
        ]

    def refs(self, repo: Repo) -> dict:
        def listed(place: str, known: dict[str, Commit]) -> list[dict]:
            return [{"name": name, "ref": f"{place}/{name}", "targetCommit": at.oid} for name, at in known.items()]

        tags, branches = listed("refs/tags", repo.tags), listed("refs/heads", repo.branches)
        return {"branches": branches, "tags": tags, "converts": [], "pullRequests": []}

    # What is written

    def create_branch(self, repo: Repo, name: str) -> None:
        self._add_reference(repo.branches, name, repo.at(self._json().get("startingPoint", "main")))

    def create_tag(self, repo: Repo, name: str) -> None:
        self._add_reference(repo.tags, self._json()["tag"], repo.at(name))

    def _add_reference(self, known: dict[str, Commit], name: str, commit: Commit) -> None:
        with self.hub.lock:
            if name in known:
                raise HubError(409, f"Reference already exists: {name}")
            known[name] = commit

    def preupload(self, repo: Repo, revision: str) -> dict:
        files = self._head(repo, revision).files
        return {"files": [self._upload_mode(file, files.get(file["path"])) for file in self._json()["files"]]}

    def _head(self, repo: Repo, branch: str) -> Commit:
        if "create_pr" in self.query:
            raise HubError(400, "The Hub of the tests has no pull requests")
        return repo.at(branch, repo.branches)

    def _upload_mode(self, file: dict, present: Blob | None) -> dict:
        large = file["path"].endswith(".safetensors") or file["size"] > self.hub.lfs_above
        mode = {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        return {**mode, "oid": present.key} if present else mode

    def lfs_batch(self, repo: Repo) -> dict:
        verify = {"href": f"{repo.url(self.hub.endpoint)}.git/info/lfs/verify"}
        objects = [self._lfs_object(verify, **asked) for asked in self._json()["objects"]]
        return {"transfer": "basic", "objects": objects}

    def _lfs_object(self, verify: dict, oid: str, size: int) -> dict:
        known = {"oid": oid, "size": size}
        if (self.hub.folder / oid).exists():
            return known  # nothing to do
        self.hub.announced[oid] = size
        return {**known, "actions": {"upload": {"href": f"{self.hub.contents}/{oid}"}, "verify": verify}}

    def lfs_verify(self, repo: Repo) -> dict:
        asked = self._json()
        return {"message": f"{self._lfs_blob(asked['oid'], asked['size']).key} is there"}

    def _lfs_blob(self, oid: str, size: int | None = None) -> Blob:
        path = self.hub.folder / oid
        there = path.stat().st_size if path.exists() else None
        if there is None or size not in (None, there):
            raise HubError(400, f"LFS has no content {oid} of {size} bytes")
        return Blob(git_hash(pointer(oid, there)), there, oid)

    def commit(self, repo: Repo, revision: str) -> dict:
        header, *edits = (json.loads(line) for line in self.body)
        told = header["value"]
        with self.hub.lock:
            head = self._head(repo, revision)
            if not head.oid.startswith(told.get("parentCommit", "")):
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            files = dict(head.files)
            for edit in edits:
                self._edit(files, edit["key"], edit["value"])
            commit = Commit(head, files, self._known_user(), told["summary"], told["description"])
            repo.add(revision, commit)
        url = f"{repo.url(self.hub.endpoint)}/commit/{commit.oid}"
        return {"success": True, "commitOid": commit.oid, "commitUrl": url, "hookOutput": ""}

    def _edit(self, files: dict[str, Blob], key: str, value: dict) -> None:
        path = value["path"]
        if key == "file":
            files[path] = self.hub.add_file(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            files[path] = self._lfs_blob(value["oid"], value.get("size"))
        else:
            folder = path.rstrip("/") + "/" if key == "deletedFolder" else None
            gone = [name for name in files if (name.startswith(folder) if folder else name == path)]
            if not gone:
                raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            for name in gone:
                del files[name]

    # The contents of LFS, on their own port: whoever knows the hash was told it by the Hub

    def download(self, oid: str) -> Reply:
        self._without_token()
        return self._file(self._lfs_blob(oid).key)

    def upload(self, oid: str) -> None:
        self._without_token()
        found = hashlib.file_digest(self.body, "sha256").hexdigest()
        if (found, self.body.tell()) != (oid, self.hub.announced.get(oid)):
            raise HubError(400, "This content was not announced")
        self.body.seek(0)
        with NamedTemporaryFile(dir=self.hub.folder, delete=False) as file:
            shutil.copyfileobj(self.body, file, CHUNK)
        os.replace(file.name, self.hub.folder / oid)

    def _without_token(self) -> None:
        if "Authorization" in self.headers:
            raise HubError(400, "The token must not leave the Hub")


def as_json(content: Any, headers: dict[str, str] | None = None, status: int = 200) -> Reply:
    encoded = json.dumps(content, default=str).encode()
    return Reply(BytesIO(encoded), len(encoded), {"Content-Type": "application/json", **(headers or {})}, status)


def pieces(file: BinaryIO, count: int) -> Iterator[bytes]:
    while count and (piece := file.read(min(count, CHUNK))):
        count -= len(piece)
        yield piece


def digest(content: Any) -> str:
    return hashlib.sha1(json.dumps(content).encode()).hexdigest()


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def card_metadata(text: str) -> Any:
    found = FRONT_MATTER.match(text)
    return yaml.safe_load(found[1]) if found else None


def card_problems(text: str) -> list[str]:
    """Why the Hub would not take a card; one without metadata it takes, with a warning."""
    try:
        metadata = card_metadata(text)
    except yaml.YAMLError as error:
        return [f"bad YAML: {error}"]
    if metadata is None:
        return []
    if not isinstance(metadata, dict):
        return ["the metadata must be an object"]
    return list(schema_problems(metadata.get("model-index", []), MODEL_INDEX, "model-index"))


def schema_problems(value: Any, schema: Any, where: str) -> Iterator[str]:
    kind = schema if isinstance(schema, type) else type(schema)
    if not isinstance(value, kind):
        yield f'"{where}" must be of type {kind.__name__}'
    elif kind is list:
        for number, item in enumerate(value):
            yield from schema_problems(item, schema[0], f"{where}[{number}]")
    elif kind is dict:
        yield from (f'"{where}.{name}" is required' for name in schema if name not in value)
        for name in (name for name in schema if name in value):
            yield from schema_problems(value[name], schema[name], f"{where}.{name}")


API = r"/api/(?P<kind>models|datasets|spaces)/(?P<repo>[^/]+(?:/[^/]+)?)"
SITE = r"/(?:(?P<kind>datasets|spaces)/)?(?P<repo>[^/]+(?:/[^/]+)?)"
REVISION, NAME = r"/(?P<revision>[^/]+)", r"/(?P<name>[^/]+)"
# The method, the path as it is quoted, and what answers
ROUTES = [
    ("GET", "/api/whoami-v2", Exchange.whoami),
    ("POST", "/api/validate-yaml", Exchange.validate),
    ("POST", "/api/repos/create", Exchange.create),
    ("DELETE", "/api/repos/delete", Exchange.delete),
    ("PUT", f"{API}/settings", Exchange.settings),
    ("GET", f"{API}/tree{REVISION}(?:/(?P<path>.+))?", Exchange.tree),
    ("POST", f"{API}/paths-info{REVISION}", Exchange.paths_info),
    ("GET", f"{API}/commits{REVISION}", Exchange.commits),
    ("GET", f"{API}/refs", Exchange.refs),
    ("POST", f"{API}/branch{NAME}", Exchange.create_branch),
    ("POST", f"{API}/tag{NAME}", Exchange.create_tag),
    ("POST", f"{API}/preupload{REVISION}", Exchange.preupload),
    ("POST", f"{API}/commit{REVISION}", Exchange.commit),
    ("GET", f"{API}(?:/revision{REVISION})?", Exchange.info),
    ("POST", rf"{SITE}\.git/info/lfs/objects/batch", Exchange.lfs_batch),
    ("POST", rf"{SITE}\.git/info/lfs/verify", Exchange.lfs_verify),
    ("GET", f"{SITE}/resolve{REVISION}/(?P<path>.+)", Exchange.resolve),
]
READERS = {Exchange.tree, Exchange.paths_info, Exchange.commits, Exchange.refs, Exchange.info, Exchange.resolve}
CONTENT = r"/(?P<oid>[0-9a-f]{64})"
CONTENT_ROUTES = [("GET", CONTENT, Exchange.download), ("PUT", CONTENT, Exchange.upload)]
