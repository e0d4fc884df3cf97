"""A Hugging Face Hub on this machine: the few requests of an upload, and the files that it was sent."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class _Hub(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body, files = self.rfile.read(int(self.headers["Content-Length"])), self.server.files
        if self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"http://{self.headers['Host']}{self.path.removeprefix('/api/models')}"
            answer = {"commitUrl": url, "commitOid": "0" * 40}
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            answer = {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
        elif self.path == "/api/repos/create":
            wanted = json.loads(body)
            answer = {"url": f"http://{self.headers['Host']}/{wanted['organization']}/{wanted['name']}"}
        else:
            answer = {"errors": [], "warnings": []}  # /api/validate-yaml, and tags
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextmanager
def local_hub() -> Iterator[tuple[str, dict[str, bytes]]]:
    """The address of a hub that takes every upload, and what it was sent: content by path."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    server.files = {}
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.files
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
