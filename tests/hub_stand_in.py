"""A stand-in for the Hugging Face hub: an HTTP server of a repository in a folder."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"

CHUNK_BYTES = 100_000
"""Pieces in which huggingface_hub writes what arrives, and from which it continues."""

_LARGE_BYTES = 10_000
"""Files of this size or more are listed as those of git LFS, with a SHA-256."""


class HubStandIn:
    """A server of the parts of the hub's API that huggingface_hub calls.

    Attributes:
        files: Folder of the repository's files.
        sent: Bytes of content that were sent, by the file's name.
        cut: For a name: the number of bytes after which connections break, the first time.
        broken: Names of files that are served with one wrong byte, the first time.
        always_broken: Whether they are served so every time.
        stalled: Names of files of which the first 1000 bytes are sent, and then nothing.
        gated: Whether access needs terms to be accepted.
    """

    def __init__(self, files: Path) -> None:
        self.files = files
        self.sent: dict[str, int] = {}
        self.cut: dict[str, int] = {}
        self.broken: set[str] = set()
        self.always_broken = False
        self.stalled: set[str] = set()
        self.closed = threading.Event()
        self.gated = False
        owner = self

        class Handler(_Handler):
            hub = owner

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """URL of the server."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        """Stop serving."""
        self.closed.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def names(self) -> list[str]:
        """Paths of all files in the repository."""
        files = (path for path in self.files.rglob("*") if path.is_file())
        return sorted(path.relative_to(self.files).as_posix() for path in files)

    def described(self, name: str) -> dict[str, Any]:
        """A file as the hub lists it."""
        content = (self.files / name).read_bytes()
        header = f"blob {len(content)}\0".encode()
        entry: dict[str, Any] = {
            "type": "file",
            "path": name,
            "size": len(content),
            "oid": hashlib.sha1(header + content).hexdigest(),
        }
        if len(content) >= _LARGE_BYTES:
            digest = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
        return entry


class _Handler(BaseHTTPRequestHandler):
    hub: HubStandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def parse_request(self) -> bool:
        if self.hub.closed.is_set():  # connections outlive the server
            self.close_connection = True
            return False
        return super().parse_request()

    def do_HEAD(self) -> None:
        self._respond(with_content=False)

    def do_GET(self) -> None:
        self._respond(with_content=True)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self.hub.gated:
            self._refuse(403, "GatedRepo")
            return
        if not re.fullmatch(r"/api/models/some/one/paths-info/\w+", self.path):
            self._refuse(404, "RepoNotFound")
            return
        asked = [unquote(each) for each in re.findall(r"paths=([^&]*)", body)]
        if not asked:
            asked = json.loads(body)["paths"]
        known = self.hub.names()
        self._send_json([self.hub.described(name) for name in asked if name in known])

    def _respond(self, *, with_content: bool) -> None:
        path = self.path.partition("?")[0]
        if self.hub.gated:
            self._refuse(403, "GatedRepo")
        elif re.fullmatch(r"/api/models/some/one(/revision/\w+)?", path):
            siblings = [{"rfilename": name} for name in self.hub.names()]
            self._send_json({"id": "some/one", "sha": COMMIT, "siblings": siblings})
        elif re.fullmatch(r"/api/models/some/one/tree/\w+", path):
            self._send_json([self.hub.described(name) for name in self.hub.names()])
        elif found := re.fullmatch(r"/some/one/resolve/\w+/(.*)", path):
            self._send_file(unquote(found[1]), with_content=with_content)
        else:
            self._refuse(404, "RepoNotFound")

    def _send_file(self, name: str, *, with_content: bool) -> None:
        if name not in self.hub.names():
            self._refuse(404, "EntryNotFound")
            return
        entry, content = self.hub.described(name), (self.hub.files / name).read_bytes()
        begin = int(self.headers.get("Range", "bytes=0-")[6:].partition("-")[0])
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]}"')
        self.send_header("Accept-Ranges", "bytes")
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        if not with_content:
            return
        if name in self.hub.broken:
            content = content[:-1] + bytes([content[-1] ^ 1])
            if not self.hub.always_broken:
                self.hub.broken.remove(name)
        end = 1000 if name in self.hub.stalled else self.hub.cut.pop(name, len(content))
        self.wfile.write(content[begin:end])
        self.hub.sent[name] = self.hub.sent.get(name, 0) + max(0, end - begin)
        if name in self.hub.stalled:
            self.hub.closed.wait()
        self.close_connection = end < len(content)

    def _send_json(self, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", "refused")
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def serve_hub(files: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """Serve a folder as ``some/one`` of the hub, for huggingface_hub in this process.

    Args:
        files: Folder of the repository's files.
        cache: Folder of the cache.
        monkeypatch: Restores the hub's address and cache.
    """
    hub = HubStandIn(files)
    constants = "huggingface_hub.constants"
    monkeypatch.setattr(f"{constants}.ENDPOINT", hub.address)
    template = f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(f"{constants}.DOWNLOAD_CHUNK_SIZE", CHUNK_BYTES)
    try:
        yield hub
    finally:
        hub.close()
