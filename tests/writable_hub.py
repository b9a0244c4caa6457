"""A Hub on this machine that can be written to: as much of its interface as the client uses.

It keeps bytes, and takes every hash of them itself. Commits are trees of files with a parent;
branches, tags and pull requests point to them. What a test wants to go wrong is a `Fault`.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from threading import Lock, Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from huggingface_hub.repocard_data import model_index_to_eval_results
from huggingface_hub.utils.sha import git_hash
from sources.loopback_hub import answer

LARGE = {".safetensors", ".png", ".sig"}
RELATIONS = ("adapter", "merge", "quantized", "finetune")
GITATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
TOKEN = "hf_averysecrettoken"


@dataclass
class Fault:
    """What goes wrong at requests that begin with `request`.

    Attributes:
        request: method and path.
        status: status of the answer; 0 drops the connection after a part of the body.
        message: what the answer says.
        times: how many requests it still concerns.
        after: the request is carried out first, and then answered so.
    """

    request: str
    status: int = 0
    message: str = "broken"
    times: int = 1_000
    after: bool = False


@dataclass
class Repository:
    """Commits, and what points to them."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pull_requests: dict[str, str] = field(default_factory=dict)

    def commit(self, parent: str | None, tree: dict[str, bytes], message: str) -> str:
        names = "".join(f"{name} {git_hash(data)}\n" for name, data in sorted(tree.items()))
        content = f"{parent}\n{message}\n{len(self.commits)}\n{names}"
        oid = hashlib.sha1(content.encode(), usedforsecurity=False).hexdigest()
        self.commits[oid], self.messages[oid] = tree, message
        return oid

    def resolve(self, revision: str) -> str | None:
        for known in (self.branches, self.tags, self.pull_requests):
            if revision in known:
                return known[revision]
        return revision if revision in self.commits else None


class WritableHub:
    """Repositories that can be made, written and read.

    Attributes:
        tokens: who is who: name, organisations and role of each token.
        organisations: all of them, those of nobody's too.
        repositories: by name.
        stored: large files, by the SHA-256 that they were sent under.
        spoils: large files are stored with one bit changed.
        faults: what goes wrong.
        requests: method and path of every request so far, and whether it came with a token.
    """

    def __init__(self) -> None:
        self.tokens: dict[str, dict[str, Any]] = {}
        self.organisations: set[str] = set()
        self.repositories: dict[str, Repository] = {}
        self.stored: dict[str, bytes] = {}
        self.spoils = False
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.lock = Lock()
        hub = self

        class Handler(_Handler):
            served = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def make(self, name: str, *, private: bool, files: dict[str, bytes] | None = None) -> str:
        """Make a repository, and return its first commit."""
        made = self.repositories[name] = Repository(private)
        tree = {".gitattributes": GITATTRIBUTES, **(files or {})}
        made.branches["main"] = made.commit(None, tree, "initial commit")
        return made.branches["main"]

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """Files of a commit, without the Hub's own."""
        made = self.repositories[name]
        tree = made.commits[made.resolve(revision) or ""]
        return {path: data for path, data in tree.items() if path != ".gitattributes"}

    def sent(self, method: str) -> list[str]:
        """Requests of a method."""
        return [request for request in self.requests if request.startswith(f"{method} ")]


class _Handler(BaseHTTPRequestHandler):
    served: WritableHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        self.url = urlsplit(self.path)
        request = f"{self.command} {unquote(self.url.path)}"
        with self.served.lock:
            self.served.requests.append(request)
            fault = next(
                (f for f in self.served.faults if request.startswith(f.request) and f.times), None
            )
            if fault is not None:
                fault.times -= 1
        length = int(self.headers.get("Content-Length") or 0)
        if fault is not None and fault.status == 0 and not fault.after:
            self.rfile.read(length // 2)
            self.close_connection = True
            self.connection.close()
            return
        self.body = self.rfile.read(length)
        if fault is not None and not fault.after:
            self._send(fault.status, {"error": fault.message})
            return
        self.muted = fault
        with self.served.lock:
            self._route([unquote(part) for part in self.url.path.strip("/").split("/")])

    def _route(self, parts: list[str]) -> None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.account = self.served.tokens.get(token)
        if parts[:1] == ["storage"]:
            self._store(parts[1])
        elif parts == ["api", "whoami-v2"]:
            self._who()
        elif parts == ["api", "repos", "create"]:
            self._create()
        elif parts == ["api", "validate-yaml"]:
            self._validate()
        elif parts[:2] == ["api", "organizations"]:
            known = parts[2] in self.served.organisations
            self._send(200 if known else 404, {"name": parts[2], "fullname": parts[2]})
        elif parts[:2] == ["api", "models"]:
            self._repository("/".join(parts[2:4]), parts[4:5], parts[5:])
        elif parts[2:6] == ["info", "lfs", "objects", "batch"]:
            self._repository("/".join(parts[:2]).removesuffix(".git"), ["batch"], [])
        else:
            self._repository("/".join(parts[:2]), parts[2:3], parts[3:])

    def _who(self) -> None:
        if self.account is None:
            self._send(401, {"error": "Invalid username or password."})
            return
        self._send(
            200,
            {
                "name": self.account["name"],
                "orgs": [{"name": name} for name in self.account["orgs"]],
                "auth": {"accessToken": {"role": self.account["role"]}},
            },
        )

    def _may_write(self, name: str) -> bool:
        if self.account is None or self.account["role"] == "read":
            return False
        return name.split("/")[0] in (self.account["name"], *self.account["orgs"])

    def _create(self) -> None:
        wanted = json.loads(self.body)
        owner = wanted.get("organization") or (self.account or {}).get("name")
        name = f"{owner}/{wanted['name']}"
        if not self._may_write(name):
            self._send(403, {"error": f'You have no rights under the namespace "{owner}".'})
        elif name in self.served.repositories:
            self._send(409, {"error": "You already created this model repo", "url": name})
        else:
            self.served.make(name, private=wanted.get("visibility") == "private")
            self._send(200, {"url": f"{self.served.url}/{name}", "id": name})

    def _validate(self) -> None:
        content = json.loads(self.body)["content"]
        wrong = list(_wrong_metadata(yaml.safe_load(content.split("\n---\n")[0].strip("-\n"))))
        if wrong:
            self._send(400, {"errors": [{"message": text} for text in wrong], "warnings": []})
        else:
            self._send(200, {"errors": [], "warnings": []})

    def _store(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            self._send(400, {"error": "the bytes are not those of the hash"})
            return
        data = self.body
        if self.served.spoils:
            data = bytes([data[0] ^ 1, *data[1:]])
        self.served.stored[oid] = data
        self._send(200, b"")

    def _repository(self, name: str, action: list[str], rest: list[str]) -> None:
        found = self.served.repositories.get(name)
        if found is None or (found.private and not self._may_write(name)):
            self._send(404, {"error": "Not found"}, **{"X-Error-Code": "RepoNotFound"})
            return
        match action:
            case ["refs"]:
                self._refs(found)
            case ["preupload" | "commit" | "branch" | "tag" | "batch"]:
                # Whoever may read may propose; files for a proposal are sent to no branch.
                proposes = "create_pr" in parse_qs(self.url.query) or (
                    action == ["batch"] and "ref" not in json.loads(self.body)
                )
                if not self._may_write(name) and not proposes:
                    self._send(403, {"error": "You have no rights to write to it."})
                else:
                    getattr(self, f"_{action[0]}")(found, name, rest)
            case _:
                self._read(found, name, action, rest)

    def _refs(self, found: Repository) -> None:
        kinds = {
            "branches": [(name, f"refs/heads/{name}", c) for name, c in found.branches.items()],
            "tags": [(name, f"refs/tags/{name}", c) for name, c in found.tags.items()],
            "converts": [],
        }
        self._send(
            200,
            {
                kind: [{"name": n, "ref": r, "targetCommit": c} for n, r, c in refs]
                for kind, refs in kinds.items()
            },
        )

    def _preupload(self, found: Repository, name: str, rest: list[str]) -> None:
        head = found.resolve(rest[0])
        if head is None:
            self._send(404, {"error": "no revision"}, **{"X-Error-Code": "RevisionNotFound"})
            return
        tree = found.commits[head]
        self._send(
            200,
            {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if _is_large(file["path"]) else "regular",
                        "shouldIgnore": False,
                        "oid": _oid(file["path"], tree[file["path"]])
                        if file["path"] in tree
                        else None,
                    }
                    for file in json.loads(self.body)["files"]
                ]
            },
        )

    def _batch(self, found: Repository, name: str, rest: list[str]) -> None:
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.served.stored:
                answer["actions"] = {
                    "upload": {"href": f"{self.served.url}/storage/{wanted['oid']}"}
                }
            objects.append(answer)
        self._send(200, {"transfer": "basic", "objects": objects})

    def _commit(self, found: Repository, name: str, rest: list[str]) -> None:
        lines = [json.loads(line) for line in self.body.splitlines()]
        header, changes = lines[0]["value"], lines[1:]
        head = found.resolve(rest[0])
        if header.get("parentCommit") not in (None, head):
            self._send(412, {"error": "A commit has happened since. Please refresh and try again."})
            return
        tree = dict(found.commits[head or ""])
        for line in changes:
            value = line["value"]
            match line["key"]:
                case "file":
                    tree[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    if value["oid"] not in self.served.stored:
                        self._send(422, {"error": f"{value['path']} was not uploaded"})
                        return
                    tree[value["path"]] = self.served.stored[value["oid"]]
                case "deletedFile":
                    del tree[value["path"]]
        oid = found.commit(head, tree, header["summary"])
        answer = {"commitOid": oid, "commitUrl": f"{self.served.url}/{name}/commit/{oid}"}
        if "create_pr" in parse_qs(self.url.query):
            number = len(found.pull_requests) + 1
            found.pull_requests[f"refs/pr/{number}"] = oid
            answer["pullRequestUrl"] = f"{self.served.url}/{name}/discussions/{number}"
        else:
            found.branches[rest[0]] = oid
        self._send(200, answer)

    def _branch(self, found: Repository, name: str, rest: list[str]) -> None:
        start = json.loads(self.body or b"{}").get("startingPoint", "main")
        if rest[0] in found.branches:
            self._send(409, {"error": "Reference already exists"})
        else:
            found.branches[rest[0]] = found.resolve(start) or ""
            self._send(200, {})

    def _tag(self, found: Repository, name: str, rest: list[str]) -> None:
        tag = json.loads(self.body)["tag"]
        if tag in found.tags:
            self._send(409, {"error": "Tag reference exists already"})
        else:
            found.tags[tag] = found.resolve(rest[0]) or ""
            self._send(200, {})

    def _read(self, found: Repository, name: str, action: list[str], rest: list[str]) -> None:
        revision = rest[0] if rest else "main"
        if action == ["resolve"] and rest[:2] == ["refs", "pr"]:
            revision, rest = "/".join(rest[:3]), rest[2:]
        commit = found.resolve(revision)
        if commit is None:
            self._send(404, {"error": "no revision"}, **{"X-Error-Code": "RevisionNotFound"})
            return
        tree = found.commits[commit]
        if action == ["tree"]:
            self._send(200, [_entry(path, data) for path, data in sorted(tree.items())])
        elif action == ["resolve"]:
            path = "/".join(rest[1:])
            if path not in tree:
                self._send(404, {"error": "no file"}, **{"X-Error-Code": "EntryNotFound"})
            else:
                etag = f'"{_oid(path, tree[path])}"'
                self._send(200, tree[path], **{"ETag": etag, "X-Repo-Commit": commit})
        else:
            siblings = [{"rfilename": path, "size": len(data)} for path, data in tree.items()]
            about = {"id": name, "sha": commit, "private": found.private, "siblings": siblings}
            self._send(200, {**about, "tags": []})

    def _send(self, status: int, content: Any, **headers: str) -> None:
        muted = getattr(self, "muted", None)
        if muted is not None:
            if muted.status == 0:
                self.close_connection = True
                self.connection.close()
                return
            status, content, headers = muted.status, {"error": muted.message}, {}
        answer(self, status, content, headers)


def _is_large(path: str) -> bool:
    return PurePosixPath(path).suffix in LARGE


def _oid(path: str, data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() if _is_large(path) else git_hash(data)


def _entry(path: str, data: bytes) -> dict[str, Any]:
    if not _is_large(path):
        return {"type": "file", "path": path, "size": len(data), "oid": git_hash(data)}
    sha256 = hashlib.sha256(data).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(data)}\n"
    lfs = {"oid": sha256, "size": len(data), "pointerSize": len(pointer)}
    oid = git_hash(pointer.encode())
    return {"type": "file", "path": path, "size": len(data), "oid": oid, "lfs": lfs}


def _wrong_metadata(data: dict[str, Any]) -> Any:
    """What the Hub would refuse of what we write, by its documentation."""
    if data.get("base_model_relation", "finetune") not in RELATIONS:
        yield f'"base_model_relation" must be one of {", ".join(RELATIONS)}'
    if "base_model" in data and str(data["base_model"]).count("/") != 1:
        yield '"base_model" must be a model of the Hub'
    if data.get("license") == "other" and not data.get("license_name"):
        yield '"license_name" is required if the license is "other"'
    for language in data.get("language", []):
        if len(language) not in (2, 3):
            yield f'"language" must be an ISO 639 code, and {language!r} is none'
    if "model-index" in data:
        model_index_to_eval_results(data["model-index"])
