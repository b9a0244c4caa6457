"""A Hub on this machine: as much of its interface as downloads and streams use."""

from __future__ import annotations

import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from huggingface_hub import metadata_load

COMMIT = "c0ffee" + "0" * 34


class LoopbackHub:
    """Serves repositories, "models/org/name" or "datasets/org/name", from folders.

    Attributes:
        folders: folder of each repository.
        gated: repositories that need access to be granted.
        requests: method and path of every request so far.
    """

    def __init__(self) -> None:
        self.folders: dict[str, Path] = {}
        self.gated: set[str] = set()
        self.requests: list[str] = []
        hub = self

        class Handler(_Handler):
            served = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    served: LoopbackHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        path = unquote(urlsplit(self.path).path).strip("/")
        self.served.requests.append(f"{self.command} {path}")
        parts = path.split("/")
        if parts[0] == "api":
            repository, action, rest = "/".join(parts[1:4]), parts[4:5], parts[5:]
        else:
            if parts[0] != "datasets":
                parts = ["models", *parts]
            repository, action, rest = "/".join(parts[:3]), parts[3:4], parts[4:]
        folder = self.served.folders.get(repository)
        if folder is None:
            self._send(404, {"error": "no repository"}, **{"X-Error-Code": "RepoNotFound"})
        elif repository in self.served.gated:
            self._send(403, {"error": "gated"}, **{"X-Error-Code": "GatedRepo"})
        elif rest and rest[0] not in ("main", COMMIT):
            self._send(404, {"error": "no revision"}, **{"X-Error-Code": "RevisionNotFound"})
        elif action == ["resolve"]:
            self._send_file(folder / "/".join(rest[1:]))
        elif action == ["tree"]:
            self._send(200, [_entry(folder, file) for file in _files(folder)])
        elif action == ["paths-info"]:
            asked = (
                json.loads(body)["paths"]
                if body.startswith("{")
                else [value for key, value in parse_qsl(body) if key == "paths"]
            )
            files = [f for f in _files(folder) if f.relative_to(folder).as_posix() in asked]
            self._send(200, [_entry(folder, file) for file in files])
        else:
            siblings = [
                {"rfilename": file.relative_to(folder).as_posix(), "size": file.stat().st_size}
                for file in _files(folder)
            ]
            name = repository.split("/", 1)[1]
            about = {"id": name, "sha": COMMIT, "siblings": siblings, "tags": []}
            if (folder / "README.md").is_file():
                about["cardData"] = metadata_load(folder / "README.md")
            self._send(200, about)

    def _send_file(self, path: Path) -> None:
        if not path.is_file():
            self._send(404, {"error": "no file"}, **{"X-Error-Code": "EntryNotFound"})
            return
        data = path.read_bytes()
        self._send(200, data, **{"ETag": f'"{_digest(data)}"', "X-Repo-Commit": COMMIT})

    def _send(self, status: int, content: Any, **headers: str) -> None:
        answer(self, status, content, headers)


def answer(
    handler: BaseHTTPRequestHandler, status: int, content: Any, headers: dict[str, str]
) -> None:
    """Send bytes, or JSON; of bytes the part that was asked for."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    total = len(data)
    if status == 200 and (asked := handler.headers.get("Range")):
        first, _, last = asked.removeprefix("bytes=").partition("-")
        data = data[int(first) : int(last) + 1 if last else None]
        status = 206
        headers["Content-Range"] = f"bytes {first}-{int(first) + len(data) - 1}/{total}"
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(data)


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _entry(folder: Path, file: Path) -> dict[str, Any]:
    return {
        "type": "file",
        "path": file.relative_to(folder).as_posix(),
        "size": file.stat().st_size,
        "oid": _digest(file.read_bytes()),
    }


def _digest(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()
