"""A hub on 127.0.0.1 that takes uploads as huggingface_hub 2.4.0 sends them without Xet.

Spoken: POST /api/repos/create, /api/validate-yaml, /api/models/ID/preupload/main, /ID.git/info/lfs/objects/batch and
/api/models/ID/commit/main, PUT of each object (hf_api.py, _commit_api.py, lfs.py). `refuse` maps a step to a status.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_" + "w" * 34


class UploadHub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.refuse: dict[str, int] = {}
        self.repos: dict[str, bool] = {}  # name -> private
        self.objects: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}
        self.seen: Counter[str] = Counter()
        self.put_bytes = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: UploadHub

    def log_message(self, *_):
        pass

    def answer(self, status, body=None):
        data = json.dumps(body if body is not None else {"error": "no"}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def refused(self, step):
        self.server.seen[step] += 1
        status = self.server.refuse.get(step)
        if status is None and self.headers.get("Authorization") != f"Bearer {TOKEN}" and step != "object":
            status = 401
        if status is not None:
            self.answer(status)
        return status is not None

    def do_POST(self):
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        steps = {"/repos/create": "create", "/preupload/": "preupload", "/objects/batch": "batch", "/commit/": "commit"}
        steps["/validate-yaml"] = "card"
        step = next((name for part, name in steps.items() if part in path), "")
        if not step:
            self.answer(404)
        elif not self.refused(step):
            self.answer(*getattr(self, f"take_{step}")(raw, path))

    def take_create(self, raw, _):
        asked, server = json.loads(raw), self.server
        name = f"{asked.get('organization') or 'ann'}/{asked['name']}"
        if name in server.repos:
            return 409, {"error": "you already created it", "url": f"{server.url}/{name}"}
        server.repos[name] = asked.get("visibility") == "private" or bool(asked.get("private"))
        return 200, {"url": f"{server.url}/{name}", "id": name, "name": name}

    def take_card(self, raw, _):
        assert "content" in json.loads(raw)
        return 200, {"errors": [], "warnings": []}

    def take_preupload(self, raw, _):
        files = [file["path"] for file in json.loads(raw)["files"]]
        modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in files}
        return 200, {"files": [{"path": name, "uploadMode": modes[name], "shouldIgnore": False} for name in files]}

    def take_batch(self, raw, _):
        rows = []
        for wanted in json.loads(raw)["objects"]:
            row = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.server.objects:
                row["actions"] = {"upload": {"href": f"{self.server.url}/objects/{wanted['oid']}"}}
            rows.append(row)
        return 200, {"transfer": "basic", "objects": rows}

    def take_commit(self, raw, path):
        for line in raw.splitlines():
            row = json.loads(line)
            value = row["value"]
            if row["key"] == "file":
                self.server.files[value["path"]] = base64.b64decode(value["content"])
            elif row["key"] == "lfsFile":
                self.server.files[value["path"]] = self.server.objects[value["oid"]]
        name = path.split("/api/models/")[1].rpartition("/commit/")[0]
        return 200, {"commitUrl": f"{self.server.url}/{name}/commit/c0ffee", "commitOid": "c0ffee"}

    def do_PUT(self):
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.refused("object"):
            return
        oid = self.path.rpartition("/")[2]
        assert hashlib.sha256(raw).hexdigest() == oid
        self.server.objects[oid] = raw
        self.server.put_bytes += len(raw)
        self.answer(200, {})

    def do_GET(self):
        name = self.path.partition("/api/models/")[2].partition("/revision")[0]
        if name in self.server.repos:
            self.answer(200, {"id": name, "sha": "c0ffee", "siblings": [], "private": self.server.repos[name]})
        else:
            self.answer(404)
