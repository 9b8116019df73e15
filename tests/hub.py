"""A small server that speaks as the Hugging Face hub does: what a repository holds, and files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

REVISION = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves ``files`` of one repository; the first few answers may end early.

    ``asked`` are the (path, Range) that came in.
    """

    def __init__(self, repo_id: str, files: dict[str, bytes], large: tuple[str, ...]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repo_id, self.files, self.large = repo_id, files, large
        self.served = dict(files)
        """What really comes; to be changed for a file that is damaged on the way."""
        self.ends_early: list[int] = []
        """Bytes after which the next answers end."""
        self.ranges = True
        self.asked: list[tuple[str, str | None]] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def listing(self) -> dict[str, Any]:
        """As ``/api/models/<repo>?blobs=true`` gives it."""
        siblings = []
        for path, content in self.files.items():
            name = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
            about: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": name}
            if path in self.large:
                sha256 = hashlib.sha256(content).hexdigest()
                about["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 130}
                about["blobId"] = "0" * 40  # of the pointer that stands for it
            siblings.append(about)
        return {"id": self.repo_id, "modelId": self.repo_id, "sha": REVISION, "siblings": siblings}


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append((path, self.headers["Range"]))
        api = f"/api/models/{self.server.repo_id}"
        files = f"/{self.server.repo_id}/resolve/{REVISION}/"
        if path in (api, f"{api}/revision/{REVISION}"):
            self._answer(200, json.dumps(self.server.listing()).encode())
        elif path.startswith(files) and path.removeprefix(files) in self.server.served:
            self._file(self.server.served[path.removeprefix(files)])
        else:
            self._answer(404, b"{}")

    def _file(self, content: bytes) -> None:
        asked = self.headers["Range"]
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if not (asked and self.server.ranges):
            start = 0
        most = self.server.ends_early.pop(0) if self.server.ends_early else None
        self._answer(206 if start else 200, content[start:], most)

    def _answer(self, status: int, content: bytes, most: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:most])

    def log_message(self, *args: Any) -> None:
        """Nothing on the console."""


@contextmanager
def hub(repo_id: str, files: dict[str, bytes], large: tuple[str, ...] = ()) -> Iterator[Hub]:
    """A server as long as the block lasts.

    Args:
        large: files that the hub keeps in LFS, with a SHA-256.
    """
    server = Hub(repo_id, files, large)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
