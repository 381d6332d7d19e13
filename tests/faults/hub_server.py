"""A hub on 127.0.0.1 that huggingface_hub takes for one: repositories are folders, faults come from a script.

    with serving(tmp_path, monkeypatch) as hub:
        hub.add("org/name", folder)
        hub.faults = [Fault("status", status=500)]
        ...
        hub.sent["range"]      bytes of bodies, by kind of request: api, head, small, range, again (past caches), whole

What it speaks is taken from huggingface_hub 2.4.0 (hf_api.py model_info, file_download.py get_hf_file_metadata,
utils/_http.py hf_raise_for_status) and the headers that huggingface.co sends.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from huggingface_hub import constants

GOOD_TOKEN = "hf_" + "g" * 34
_API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/revision/(?P<revision>[^/]+))?")
_RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
_CDN = re.compile(r"/signed-(?P<number>\d+)/(?P<repo>[^/]+/[^/]+)/(?P<revision>[^/]+)/(?P<file>.+)")
_RANGE = re.compile(r"bytes=(\d+)-(\d+)")

Kind = Literal[
    *("status", "reset", "short", "long", "less", "whole", "shifted", "resized", "compressed", "trickle", "hang"),
    *("garbage", "corrupt", "retagged", "untagged", "rewrite"),
]


@dataclass
class Fault:
    """What the next `times` requests of one kind (api, head, small, range) get instead of a good answer.

    status: that status with `headers`; reset: the connection is reset after half of the body; short: it is closed
    there; long: more bytes than asked for; whole: Range ignored; shifted: another range; compressed: says so;
    trickle: a byte every few milliseconds; hang: nothing after half of the body until `hub.release` is set;
    less: announces fewer bytes than the range has; resized: of a file of another size; corrupt: other bytes, each time
    others; retagged, untagged: another ETag, none; rewrite: the file is another one from this request on.
    """

    kind: Kind
    times: int = 1
    on: str = "range"
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    skip: int = 0  # so many requests first go well


@dataclass
class Repo:
    commits: dict[str, Path]
    branches: dict[str, str]
    is_gated: bool = False


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    kind: str
    range: str
    authorization: str
    host: str


def commit_of(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()


class Hub(ThreadingHTTPServer):
    daemon_threads = False  # closing waits for all connections: no test inherits a socket from another

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, Repo] = {}
        self.faults: list[Fault] = []
        self.sent: Counter[str] = Counter()
        self.requests: list[Request] = []
        self.redirects = False  # weight files are served by another host, by links that expire
        self.link = 1
        self.etags: dict[str, str] = {}  # by file name, where the hub lies about them
        self.is_hanging, self.release = threading.Event(), threading.Event()
        self.lock = threading.Lock()
        self.connections: list[socket.socket] = []

    def get_request(self):
        connection, address = super().get_request()
        self.connections.append(connection)
        return connection, address

    def end(self) -> None:
        """Stop serving, and end every connection that is still open."""
        self.release.set()
        self.shutdown()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def cdn(self) -> str:
        return f"http://localhost:{self.server_port}"

    def add(self, repo: str, folder: Path, *, is_gated: bool = False) -> str:
        """Serve a folder as the newest commit of `main`; the commit."""
        held = self.repos.setdefault(repo, Repo({}, {}, is_gated))
        commit = commit_of(f"{repo} {len(held.commits)}")
        held.commits[commit] = folder
        held.branches["main"] = commit
        return commit

    def take_fault(self, kind: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.on == kind and fault.times:
                    if fault.skip:
                        fault.skip -= 1
                        return None
                    fault.times -= 1
                    return fault
        return None

    def forget(self) -> None:
        """Count from zero again."""
        self.sent.clear()
        self.requests.clear()

    def handle_error(self, request, client_address) -> None:
        """A client that goes away is what these tests are about."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits for a delayed ACK
    server: Hub

    def log_message(self, *args: object) -> None:
        """Silent."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        kind = self.kind(path)
        self.server.requests.append(
            Request(
                self.command,
                path,
                kind,
                self.headers.get("Range", ""),
                self.headers.get("Authorization", ""),
                self.headers.get("Host", ""),
            )
        )
        fault = self.server.take_fault(kind)
        if fault and fault.kind == "status":
            self.plain(fault.status, fault.headers)
        elif fault and fault.kind == "garbage":
            self.body("api", b"<html>Welcome to our network, please log in</html>")
        elif match := _API.fullmatch(urlsplit(self.path).path):
            self.info(match["repo"], unquote(match["revision"] or "main"))
        elif match := _CDN.fullmatch(path):
            if int(match["number"]) != self.server.link:
                self.plain(403, {})
            else:
                path = self.server.repos[match["repo"]].commits[match["revision"]] / match["file"]
                if fault and fault.kind == "rewrite":
                    path.write_bytes(bytes(byte ^ 255 for byte in path.read_bytes()))
                own = hashlib.md5(path.read_bytes()).hexdigest()  # hosts of files make their own
                self.file(kind, path, {} if fault and fault.kind == "untagged" else {"ETag": f'"{own}"'}, fault)
        elif match := _RESOLVE.fullmatch(path):
            self.resolve(kind, match["repo"], match["revision"], match["file"], fault)
        else:
            self.plain(404, {})

    def kind(self, path: str) -> str:
        if path.startswith("/api/"):
            return "api"
        if self.command == "HEAD":
            return "head"
        if self.headers.get("Cache-Control") == "no-cache":
            return "again"
        return "range" if "Range" in self.headers else "whole" if path.endswith(".safetensors") else "small"

    def info(self, name: str, revision: str) -> None:
        repo = self.server.repos.get(name)
        if repo is None:
            return self.plain(401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Invalid username or password."})
        commit = repo.branches.get(revision, revision)
        if commit not in repo.commits:
            return self.plain(404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
        folder = repo.commits[commit]
        files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
        siblings = [{"rfilename": p.relative_to(folder).as_posix(), "size": p.stat().st_size} for p in files]
        return self.body("api", json.dumps({"id": name, "sha": commit, "siblings": siblings, "tags": []}).encode())

    def resolve(self, kind: str, name: str, revision: str, file: str, fault: Fault | None) -> None:
        repo = self.server.repos.get(name)
        if repo is None:
            return self.plain(401, {"X-Error-Code": "RepoNotFound"})
        authorization = self.headers.get("Authorization", "")
        if repo.is_gated and authorization != f"Bearer {GOOD_TOKEN}":
            return self.plain(403 if authorization else 401, {"X-Error-Code": "GatedRepo"})
        commit = repo.branches.get(revision, revision)
        if commit not in repo.commits:
            return self.plain(404, {"X-Error-Code": "RevisionNotFound"})
        path = repo.commits[commit] / file
        if not path.is_file():
            return self.plain(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        if fault and fault.kind == "rewrite":
            path.write_bytes(bytes(byte ^ 255 for byte in path.read_bytes()))
        tag = self.server.etags.get(path.name) or etag(path)
        if fault and fault.kind == "retagged":
            tag = hashlib.sha256(tag.encode()).hexdigest()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{tag}"'}
        if self.server.redirects and file.endswith(".safetensors"):
            headers |= {
                "X-Linked-ETag": f'"{tag}"',
                "X-Linked-Size": str(path.stat().st_size),
                "Location": f"{self.server.cdn}/signed-{self.server.link}/{name}/{commit}/{file}",
            }
            return self.plain(302, headers)
        return self.file(kind, path, headers, fault)

    def file(self, kind: str, path: Path, headers: dict[str, str], fault: Fault | None) -> None:
        raw, status = path.read_bytes(), 200
        if (match := _RANGE.fullmatch(self.headers.get("Range", ""))) and not (fault and fault.kind == "whole"):
            start, stop = int(match[1]), int(match[2]) + 1
            if stop > len(raw):
                return self.plain(416, {"Content-Range": f"bytes */{len(raw)}"})
            if fault and fault.kind == "shifted":
                start, stop = start + 1, stop + 1
            size = len(raw) + 1 if fault and fault.kind == "resized" else len(raw)
            headers = {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{size}"}
            raw, status = raw[start:stop], 206
        return self.body(kind, raw, headers, status, fault)

    def plain(self, status: int, headers: dict[str, str]) -> None:
        self.body("error", json.dumps({"error": "no"}).encode(), headers, status)

    def body(
        self,
        kind: str,
        raw: bytes,
        headers: dict[str, str] | None = None,
        status: int = 200,
        fault: Fault | None = None,
    ) -> None:
        how = fault.kind if fault else ""
        raw = damaged(raw, fault)
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        if how == "compressed":
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        if self.command == "HEAD":
            return
        half = raw[: len(raw) // 2]
        match how:
            case "reset" | "short":
                self.send(kind, half)
                self.hang_up(reset=how == "reset")
            case "hang":
                self.send(kind, half)
                self.server.is_hanging.set()
                self.server.release.wait(60)
                self.hang_up(reset=True)
            case "trickle":
                for i in range(len(raw)):
                    self.send(kind, raw[i : i + 1])
                    time.sleep(0.005)
            case _:
                self.send(kind, raw)

    def send(self, kind: str, raw: bytes) -> None:
        with self.server.lock:
            self.server.sent[kind] += len(raw)
        self.wfile.write(raw)

    def hang_up(self, *, reset: bool) -> None:
        self.close_connection = True
        if reset:  # closing with a linger time of zero sends RST instead of FIN
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())


def damaged(raw: bytes, fault: Fault | None) -> bytes:
    match fault.kind if fault else "":
        case "long":
            return raw + b"more"
        case "less":
            return raw[:-1]
        case "corrupt":
            return bytes(byte ^ (1 + fault.times % 255) for byte in raw)
    return raw


def etag(path: Path) -> str:
    """SHA-256 of what lies in LFS, git's SHA-1 of a blob of everything else."""
    raw = path.read_bytes()
    if path.suffix == ".safetensors":
        return hashlib.sha256(raw).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest()


@contextlib.contextmanager
def serving(tmp_path: Path, monkeypatch) -> Iterator[Hub]:
    """A hub for this process: empty caches below tmp_path, no token, nothing of the machine's own settings.

    huggingface_hub reads the environment when it is imported: so its constants are set instead.
    """
    from mtpforge.checkpoint.hub import retries

    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True).start()
        for name, value in {
            "ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_CACHE": str(tmp_path / "home" / "hub"),
            "HF_TOKEN_PATH": str(tmp_path / "home" / "token"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_PROGRESS_BARS": True,
        }.items():
            monkeypatch.setattr(constants, name, value)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MTPFORGE_CACHE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(retries, "BACKOFF_SECONDS", 0.001)
        try:
            yield hub  # the session stays: a new one loads the certificates of the world, 0.15 s each time
        finally:
            hub.end()


def environment(hub: Hub, home: Path) -> dict[str, str]:
    """The environment of a child process that uses this hub."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "MTPFORGE"))}
    return kept | {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "NO_PROXY": "*"}
