# Copyright 2026 The MegaVit team. Licensed under the Apache License, Version 2.0.
"""
A Hub on loopback, in memory, for the real huggingface_hub client: `HF_ENDPOINT` is `Hub.url`.

It answers as https://huggingface.co does to huggingface_hub 2.4: whoami, repositories, branches, preupload, LFS batch and
basic upload, commit, tree, resolve with ETag and range requests, and files of LFS behind a redirect to another host. The
client stores through xet wherever its package is installed, whatever the server says, so that `Hub.environment` turns it off.

    with Hub() as hub:
        subprocess.run(command, env=hub.environment(home))
"""

import base64
import contextlib
import hashlib
import json
import os
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


LFS_SUFFIXES = (".safetensors", ".onnx", ".data", ".png")
INVALID_TOKEN = "Invalid credentials in Authorization header"
# Kinds of repositories by what their addresses begin with
KINDS = {"models": "", "datasets": "datasets/", "spaces": "spaces/"}


class Refusal(Exception):
    """An answer that is an error: the status, what the Hub calls it, and a sentence."""


@dataclass(frozen=True)
class Blob:
    """A file: its bytes, and whether git keeps only a pointer to them."""

    content: bytes
    is_lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n".encode()

    @property
    def oid(self) -> str:
        data = self.pointer if self.is_lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.oid

    def entry(self, path: str) -> dict:
        lfs = {"lfs": {"oid": self.sha256, "size": len(self.content), "pointerSize": len(self.pointer)}}
        return {"type": "file", "path": path, "size": len(self.content), "oid": self.oid} | (
            lfs if self.is_lfs else {}
        )


@dataclass
class Repository:
    """Commits, each with all of its files, and the branches that point at them."""

    private: bool = False
    sdk: str | None = None
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def add_commit(self, files: dict[str, Blob], branch: str = "main") -> str:
        text = json.dumps([len(self.commits), sorted((path, blob.oid) for path, blob in files.items())])
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha], self.branches[branch] = dict(files), sha
        return sha

    def find(self, revision: str) -> str:
        sha = self.branches.get(revision, revision)
        if sha not in self.commits:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha


class Hub:
    """
    The server; a context manager.

    Attributes:
        tokens (`dict[str, tuple[str, bool]]`): User and whether it may write, by token.
        repositories (`dict[tuple[str, str], Repository]`): By kind ("models", "spaces") and id.
        cut_uploads (`int`): Number of uploads to break off in the middle from now on.
        corrupt, truncate (`set[str]`): Names of files to send with a bit flipped, or without their last byte.
        requests (`list[tuple[str, str]]`): Method and path of what was asked for.
    """

    def __init__(self):
        self.tokens = {"hf_writer": ("someone", True), "hf_reader": ("someone", False)}
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.uploaded: dict[str, bytes] = {}
        self.cut_uploads, self.corrupt, self.truncate = 0, set(), set()
        self.requests: list[tuple[str, str]] = []
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self}))
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: Path, token: str | None = "hf_writer") -> dict[str, str]:
        """Returns the variables of a process that knows this Hub only, with its cache in `home`."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        own = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
        own |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*"}
        return kept | own | ({} if token is None else {"HF_TOKEN": token})

    def write(self, repo: str, files: dict[str, bytes], branch: str = "main", kind: str = "models") -> str:
        """Adds a commit past all checks, over the files that are there, and returns its hash."""
        repository = self.repositories.setdefault((kind, repo), Repository())
        blobs = {path: Blob(content, path.endswith(LFS_SUFFIXES)) for path, content in files.items()}
        return repository.add_commit(self.files(repo, branch, kind) | blobs, branch)

    def files(self, repo: str, revision: str = "main", kind: str = "models") -> dict[str, Blob]:
        """Returns the files of a revision; none before the first commit."""
        repository = self.repositories[kind, repo]
        return repository.commits.get(repository.branches.get(revision, revision), {})

    def damaged(self, path: str, content: bytes) -> bytes:
        """Returns what goes over the line."""
        if path in self.truncate:
            return content[:-1]
        return content[:-1] + bytes([content[-1] ^ 1]) if path in self.corrupt else content


class Handler(BaseHTTPRequestHandler):
    """One request. The methods `do_...` are found by name, the rest by the tables of routes."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_):
        pass

    def answer(self, content: bytes | dict | list, status: int = 200, **headers: str):
        """Sends an answer; the keyword arguments are headers, with _ for -."""
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers.setdefault("Content_Type", "application/json")
        self.send_response(status)
        for name, value in {
            "Content_Length": str(len(content)),
            "Access_Control_Allow_Origin": "*",
            **headers,
        }.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, status: int, code: str, message: str):
        self.answer({"error": message}, status, X_Error_Code=code, X_Error_Message=message)

    def body(self) -> bytes:
        """Reads the request to its end, in chunks or in one piece."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def user(self) -> tuple[str | None, bool]:
        """Returns who asks and whether they may write."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.tokens:
            raise Refusal(401, "", INVALID_TOKEN)
        return self.hub.tokens.get(token, (None, False))

    def repository(self, kind: str, repo: str, to_write: bool = False) -> Repository:
        """Returns a repository that the user may see, or write to."""
        user, may_write = self.user()
        repository = self.hub.repositories.get((kind, repo))
        is_own = user is not None and user == repo.split("/")[0]
        if repository is None or (repository.private and not is_own):
            raise Refusal(401 if user is None else 404, "RepoNotFound", "Repository not found")
        if to_write and not (is_own and may_write):
            raise Refusal(403, "", f"You don't have the required permissions to write to {repo}")
        return repository

    def dispatch(self):
        path = urlsplit(self.path).path
        self.hub.requests.append((self.command, path))
        for method, pattern, action in ROUTES:
            if (self.command in method.split()) and (match := re.fullmatch(pattern, path)):
                try:
                    # What isn't read would be taken for the next request
                    body = b"" if action is Handler.take_upload else self.body()
                    with contextlib.nullcontext() if action is Handler.take_upload else self.hub.lock:
                        groups = {name: unquote(value or "") for name, value in match.groupdict().items()}
                        action(self, body, **groups)
                except Refusal as refusal:
                    self.refuse(*refusal.args)
                return
        self.body()
        self.refuse(404, "", "Not found")

    do_GET = do_HEAD = do_POST = do_PUT = dispatch

    def whoami(self, body: bytes):
        user, may_write = self.user()
        if user is None:
            raise Refusal(401, "", INVALID_TOKEN)
        role = {"accessToken": {"role": "write" if may_write else "read"}}
        self.answer({"type": "user", "name": user, "orgs": [], "auth": role})

    def create(self, body: bytes):
        request, (user, may_write) = json.loads(body), self.user()
        if user is None:
            raise Refusal(401, "", INVALID_TOKEN)
        if not may_write or (request.get("organization") or user) != user:
            raise Refusal(403, "", "You don't have the rights to create a repo under this namespace")
        kind, repo = f"{request.get('type') or 'model'}s", f"{user}/{request['name']}"
        answer = {"url": f"{self.hub.url}/{KINDS[kind]}{repo}", "name": repo}
        if (kind, repo) in self.hub.repositories:
            self.answer(answer | {"error": "You already created this repo"}, 409)
            return
        repository = Repository(request.get("visibility") == "private", request.get("sdk"))
        repository.add_commit({".gitattributes": Blob(b"*.safetensors filter=lfs\n", False)})
        self.hub.repositories[kind, repo] = repository
        self.answer(answer)

    def validate_card(self, body: bytes):
        parts = re.match(r"---\n(.*?)\n---", json.loads(body)["content"], flags=re.DOTALL)
        try:
            is_valid = parts is None or isinstance(yaml.safe_load(parts[1]), dict | None)
            errors = [] if is_valid else [{"message": "The metadata must be a mapping"}]
        except yaml.YAMLError as error:
            errors = [{"message": str(error)}]
        self.answer({"errors": errors, "warnings": []}, 400 if errors else 200)

    def preupload(self, body: bytes, kind: str, repo: str, revision: str):
        repository = self.repository(kind, repo, to_write=True)
        present, answer = repository.commits[repository.find(revision)], []
        for file in json.loads(body)["files"]:
            mode = "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular"
            oid = present[file["path"]].etag if file["path"] in present else None
            answer.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.answer({"files": answer})

    def lfs_batch(self, body: bytes, prefix: str, repo: str):
        self.repository(prefix.strip("/") or "models", repo, to_write=True)
        answer = []
        for item in json.loads(body)["objects"]:
            # A signed address, as of the real Hub's storage, which gets no token
            upload = {"href": f"http://localhost:{self.hub.port}/storage/{item['oid']}", "header": {}}
            action = {} if item["oid"] in self.hub.uploaded else {"actions": {"upload": upload}}
            answer.append({"oid": item["oid"], "size": item["size"]} | action)
        self.answer({"transfer": "basic", "objects": answer})

    def take_upload(self, body: bytes, oid: str):
        if self.hub.cut_uploads:
            self.hub.cut_uploads -= 1
            self.rfile.read(64)
            self.close_connection = True
            return
        content = self.body()
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(400, "", "The content doesn't match its hash")
        self.hub.uploaded[oid] = content
        self.answer(b"")

    def commit(self, body: bytes, kind: str, repo: str, revision: str):
        repository = self.repository(kind, repo, to_write=True)
        files = dict(repository.commits[repository.find(revision)])
        for line in map(json.loads, body.splitlines()):
            value, key = line["value"], line["key"]
            if (
                key == "header"
                and value.get("parentCommit", repository.branches[revision]) != repository.branches[revision]
            ):
                raise Refusal(412, "", "A commit has happened since. Please refresh and try again.")
            if key == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif key == "lfsFile":
                if value["oid"] not in self.hub.uploaded:
                    raise Refusal(400, "", f"The LFS object of {value['path']} was not uploaded")
                files[value["path"]] = Blob(self.hub.uploaded[value["oid"]], True)
            elif key == "deletedFile" and files.pop(value["path"], None) is None:
                raise Refusal(404, "EntryNotFound", "A file with this name doesn't exist")
        sha = repository.add_commit(files, revision)
        self.answer({"commitOid": sha, "commitUrl": f"{self.hub.url}/{KINDS[kind]}{repo}/commit/{sha}"})

    def branch(self, body: bytes, kind: str, repo: str, name: str):
        repository = self.repository(kind, repo, to_write=True)
        if name in repository.branches:
            raise Refusal(409, "", f"Reference already exists: refs/heads/{name}")
        repository.branches[name] = repository.find(json.loads(body or b"{}").get("startingPoint", "main"))
        self.answer({})

    def info(self, body: bytes, kind: str, repo: str, revision: str):
        repository = self.repository(kind, repo)
        sha = repository.find(revision or "main")
        files = repository.commits[sha]
        card = (
            re.match(r"---\n(.*?)\n---", files["README.md"].content.decode(), re.DOTALL)
            if "README.md" in files
            else None
        )
        metadata = yaml.safe_load(card[1]) if card else {}
        shown = {name: metadata[name] for name in ("pipeline_tag", "library_name", "tags") if name in metadata}
        siblings = [{"rfilename": path} for path in sorted(files)]
        answer = {"id": repo, "sha": sha, "private": repository.private, "siblings": siblings, "cardData": metadata}
        self.answer(answer | {"sdk": repository.sdk} | shown)

    def refs(self, body: bytes, kind: str, repo: str):
        branches = self.repository(kind, repo).branches.items()
        refs = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha} for name, sha in branches]
        self.answer({"branches": refs, "converts": [], "tags": []})

    def tree(self, body: bytes, kind: str, repo: str, revision: str, folder: str):
        repository = self.repository(kind, repo)
        files = repository.commits[repository.find(revision)]
        inside = {
            path: blob for path, blob in sorted(files.items()) if path.startswith(f"{folder}/" if folder else "")
        }
        if folder and not inside:
            raise Refusal(404, "EntryNotFound", f"{folder} does not exist on {revision}")
        is_recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() == "true"
        depth = folder.count("/") + bool(folder)
        self.answer([blob.entry(path) for path, blob in inside.items() if is_recursive or path.count("/") == depth])

    def resolve(self, body: bytes, prefix: str, repo: str, revision: str, path: str):
        repository = self.repository(prefix.strip("/") or "models", repo)
        sha = repository.find(revision)
        if path not in repository.commits[sha]:
            self.answer(b"", 404, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found", X_Repo_Commit=sha)
            return
        blob = repository.commits[sha][path]
        headers = {"X_Repo_Commit": sha, "Accept_Ranges": "bytes"}
        if blob.is_lfs:
            linked = {"X_Linked_Etag": f'"{blob.etag}"', "X_Linked_Size": str(len(blob.content))}
            location = f"http://localhost:{self.hub.port}/cdn/{blob.sha256}/{path}"
            self.hub.uploaded[blob.sha256] = blob.content
            self.answer(b"", 302, Location=location, ETag=f'"{blob.oid}"', **linked, **headers)
        else:
            self.send_file(path, blob.content, ETag=f'"{blob.etag}"', **headers)

    def cdn(self, body: bytes, oid: str, path: str):
        if "Authorization" in self.headers:
            raise Refusal(400, "", "A token was sent to another host than the Hub")
        self.send_file(path, self.hub.uploaded[oid], ETag=f'"{oid}"', Accept_Ranges="bytes")

    def send_file(self, path: str, content: bytes, **headers: str):
        """Sends a file, or the part of it that was asked for."""
        content, size = self.hub.damaged(path, content), len(content)
        if not (asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))):
            self.answer(content, **headers)
            return
        first, last = int(asked[1]), min(int(asked[2] or size - 1), size - 1)
        if first > last:
            self.answer(b"", 416, Content_Range=f"bytes */{size}")
            return
        self.answer(content[first : last + 1], 206, Content_Range=f"bytes {first}-{last}/{size}", **headers)


API = r"/api/(?P<kind>models|datasets|spaces)/(?P<repo>[^/]+/[^/]+)"
PAGE = r"/(?P<prefix>(?:datasets/|spaces/)?)(?P<repo>[^/]+/[^/]+)"
ROUTES = (
    ("GET", r"/api/whoami-v2", Handler.whoami),
    ("POST", r"/api/repos/create", Handler.create),
    ("POST", r"/api/validate-yaml", Handler.validate_card),
    ("POST", rf"{API}/preupload/(?P<revision>[^/]+)", Handler.preupload),
    ("POST", rf"{PAGE}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", r"/storage/(?P<oid>\w+)", Handler.take_upload),
    ("POST", rf"{API}/commit/(?P<revision>[^/]+)", Handler.commit),
    ("POST", rf"{API}/branch/(?P<name>[^/]+)", Handler.branch),
    ("GET", rf"{API}/refs", Handler.refs),
    ("GET", rf"{API}(?:/revision/(?P<revision>[^/]+))?", Handler.info),
    ("GET", rf"{API}/tree/(?P<revision>[^/]+)/?(?P<folder>.*)", Handler.tree),
    ("GET HEAD", rf"{PAGE}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.resolve),
    ("GET HEAD", r"/cdn/(?P<oid>\w+)/(?P<path>.+)", Handler.cdn),
)
