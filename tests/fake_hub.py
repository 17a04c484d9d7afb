"""A small hub on this machine: the requests that huggingface_hub makes, answered from a folder."""

from __future__ import annotations

import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

ID, COMMIT, TAGGED = "someone/tiny-asr", "0" * 39 + "1", "0" * 39 + "2"
WEIGHTS = "model.safetensors"


class Hub(ThreadingHTTPServer):
    """One repository, with a branch and a tag that hold the same files."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.revisions = {"main": COMMIT, "v1": TAGGED, COMMIT: COMMIT, TAGGED: TAGGED}
        self.gated = False
        self.cuts = 0  # answers with weights that end in the middle
        self.log: list[str] = []
        self.ranges: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def files(self) -> dict[str, bytes]:
        paths = [path for path in sorted(self.folder.rglob("*")) if path.is_file()]
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in paths}

    def served(self, name: str) -> int:
        return sum(line == f"GET {name}" for line in self.log)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.split("/")[1:]]
        if parts[:2] == ["api", "models"]:
            self._describe("/".join(parts[2:4]), *(parts[4:6] or ["revision", "main"]))
        else:
            self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))

    def _describe(self, name: str, what: str, revision: str) -> None:
        if (commit := self._commit(name, revision)) is None:
            return
        files = {path: len(content) for path, content in self.server.files().items()}
        if what == "tree":
            self._json([{"type": "file", "path": p, "size": size, "oid": "0" * 40} for p, size in files.items()])
        else:
            siblings = [{"rfilename": path, "size": size} for path, size in files.items()]
            self._json({"id": name, "sha": commit, "siblings": siblings})

    def _commit(self, name: str, revision: str) -> str | None:
        commit = self.server.revisions.get(revision)
        if name != ID:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif commit is None:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        return commit if name == ID else None

    def _file(self, name: str, revision: str, path: str) -> None:
        self.server.log.append(f"{self.command} {path}")
        if (commit := self._commit(name, revision)) is None:
            return
        content = self.server.files().get(path)
        if self.server.gated:
            self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        elif content is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        else:
            self._content(path, content, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'})

    def _content(self, path: str, content: bytes, headers: dict[str, str]) -> None:
        status, start = 200, 0
        if given := self.headers.get("Range"):
            self.server.ranges.append(given)
            status, start = 206, int(given.removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut = path == WEIGHTS and self.command == "GET" and self.server.cuts > 0
        self.server.cuts -= cut
        self._send(status, content[start:], headers, cut=cut)

    def _json(self, content: Any) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str], *, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = self.close_connection or cut

    def log_message(self, format: str, *args: object) -> None:
        pass
