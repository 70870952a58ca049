"""A Hub on this machine: takes what huggingface_hub uploads, and hands it out again."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class StandInHub(ThreadingHTTPServer):
    """The requests of create_repo and upload_folder, and files under /NAME/REPO/resolve/main."""

    def __init__(self, may_write: bool):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.may_write = may_write
        self.files: dict[str, bytes] = {}
        self.address = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: StandInHub

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.split("?")[0]
        if not self.server.may_write or self.headers["Authorization"] != "Bearer hf_right":
            self.answer(403, b'{"error": "no rights to write"}')
        elif path == "/api/repos/create":
            asked = json.loads(body)
            self.answer_json({"url": f"{self.server.address}/{asked['organization']}/{asked['name']}"})
        elif path == "/api/validate-yaml":
            self.answer_json({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            how = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            files = [{"path": file["path"], **how} for file in json.loads(body)["files"]]
            self.answer_json({"files": files})
        elif path.endswith("/commit/main"):
            repository = path.removeprefix("/api/models").removesuffix("/commit/main")
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    name = f"{repository}/resolve/main/{line['value']['path']}"
                    self.server.files[name] = base64.b64decode(line["value"]["content"])
            where = f"{self.server.address}{repository}/commit/0"
            self.answer_json({"success": True, "commitOid": "0" * 40, "commitUrl": where})
        else:
            self.answer(404)

    def do_GET(self):
        content = self.server.files.get(self.path)
        self.answer(404) if content is None else self.answer(200, content, "application/octet-stream")

    def do_HEAD(self):
        self.do_GET()

    def answer_json(self, content):
        self.answer(200, json.dumps(content).encode())

    def answer(self, status, content=b"{}", kind="application/json"):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@contextmanager
def stand_in_hub(may_write: bool = True) -> Iterator[StandInHub]:
    """Serve for a while."""
    with StandInHub(may_write) as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()
