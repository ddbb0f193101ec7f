"""A model hub on this machine, of which a client needs a repository, large files and commits."""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


class Hub:
    """What was sent: repositories with whether they are private, objects by digest, committed files by name.

    `breaks` commits fail before one is accepted, and so do the uploads of large files with the numbers `broken_puts`;
    files are large whose names end in `large`.
    """

    def __init__(self, breaks: int = 0) -> None:
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}
        self.puts: Counter[str] = Counter()
        self.unknown: list[str] = []
        self.commits, self.breaks = 0, breaks
        self.large: tuple[str, ...] = (".safetensors",)
        self.broken_puts: set[int] = set()
        self.received = 0
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def create(self, body: dict[str, Any]) -> tuple[int, Any]:
        name = f"{body.get('organization') or 'me'}/{body['name']}"
        if name in self.private:
            return 409, {"error": "You already created this model repo", "url": f"{self.address}/{name}"}
        self.private[name] = body.get("private", body.get("visibility") == "private")
        return 200, {"url": f"{self.address}/{name}", "name": name, "id": name}

    def batch(self, body: dict[str, Any]) -> tuple[int, Any]:
        objects = []
        for one in body["objects"]:
            upload = {"upload": {"href": f"{self.address}/objects/{one['oid']}"}}
            objects.append({**one, **({} if one["oid"] in self.objects else {"actions": upload})})
        return 200, {"objects": objects, "transfer": "basic"}

    def commit(self, content: bytes) -> tuple[int, Any]:
        if self.breaks:
            self.breaks -= 1
            return 400, {"error": "interrupted"}
        for line in content.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.files[value["path"]] = self.objects[value["oid"]]
        self.commits += 1
        return 200, {"success": True, "commitOid": "a" * 40, "commitUrl": f"{self.address}/me/mine/commit/{'a' * 40}"}


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def do_POST(self) -> None:
        content = self._read()
        if self.path.endswith("/repos/create"):
            self._answer(*self.hub.create(json.loads(content)))
        elif "/preupload/" in self.path:
            files = [
                {"path": one["path"], "shouldIgnore": False,
                 "uploadMode": "lfs" if one["path"].endswith(self.hub.large) else "regular"}
                for one in json.loads(content)["files"]
            ]  # fmt: skip
            self._answer(200, {"files": files})
        elif self.path.endswith("/objects/batch"):
            self._answer(*self.hub.batch(json.loads(content)))
        elif "/commit/" in self.path:
            self._answer(*self.hub.commit(content))
        elif self.path.endswith("/validate-yaml"):
            self._answer(200, {"errors": [], "warnings": []})
        else:
            self.hub.unknown.append(f"POST {self.path}")
            self._answer(404, {"error": "unknown"})

    def do_PUT(self) -> None:
        digest, content = re.sub(r".*/", "", self.path), self._read()
        self.hub.received += 1
        if self.hub.received in self.hub.broken_puts:
            self._answer(400, {"error": "interrupted"})
            return
        self.hub.objects[digest] = content
        self.hub.puts[digest] += 1
        self._answer(200, {})

    def do_GET(self) -> None:
        self.hub.unknown.append(f"GET {self.path}")
        self._answer(404, {"error": "unknown"})

    do_HEAD = do_GET

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, code: int, body: Any) -> None:
        content = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
