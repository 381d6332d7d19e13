"""A small OpenAI-compatible server on loopback that publishes vLLM's counters, and decides by itself what it accepts.

Each request is a thread; a round sleeps for `round_seconds(n)` of n requests under way, then gives what `accepts`, an
iterator of accepted tokens, says of it. Nothing here is mtpforge's: names of samples are typed out.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LABELS = 'engine="0",model_name="tiny"'


class Counted:
    """What the metrics page says."""

    def __init__(self, k: int) -> None:
        self.k, self.lock, self.began = k, threading.Lock(), 1.7e9
        self.more = ""  # lines of a page
        self.unseen = 0.0  # a share of tokens that it does not count
        self.reset()

    def reset(self) -> None:
        self.rounds = self.accepted = self.generated = self.finished = self.running = 0
        self.positions = [0] * self.k

    def page(self) -> str:
        rows = [
            ("vllm:num_requests_running", "gauge", self.running),
            ("vllm:generation_tokens", "counter", self.generated * (1 - self.unseen)),
        ]
        if self.k:
            rows += [
                ("vllm:spec_decode_num_drafts", "counter", self.rounds),
                ("vllm:spec_decode_num_draft_tokens", "counter", self.rounds * self.k),
                ("vllm:spec_decode_num_accepted_tokens", "counter", self.accepted),
            ]
        lines = []
        for name, kind, value in rows:
            sample = name + ("_total" if kind == "counter" else "")
            lines += [f"# HELP {sample} words", f"# TYPE {sample} {kind}", f"{sample}{{{LABELS}}} {float(value)}"]
        if self.k:
            name = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
            lines += [f"# HELP {name} words", f"# TYPE {name} counter"]
            lines += [f'{name}{{{LABELS},position="{at}"}} {float(n)}' for at, n in enumerate(self.positions)]
            lines += [f"vllm:spec_decode_num_drafts_created{{{LABELS}}} {self.began}"]
        return "\n".join(lines) + "\n"


class AsSglang(Counted):
    """The same as SGLang counts it: rounds alone."""

    def page(self) -> str:
        labels = 'model_name="tiny",engine_type="unified"'
        rows = {"generation_tokens": self.generated, "num_requests": self.finished, "spec_verify_calls": self.rounds}
        lines = [
            f"# TYPE sglang:{name}_total counter\nsglang:{name}_total{{{labels}}} {float(value)}"
            for name, value in rows.items()
            if value  # a counter of SGLang's appears with its first request
        ]
        return (
            "\n".join(["# TYPE sglang:num_running_reqs gauge", "sglang:num_running_reqs 0.0", *lines])
            + "\n"
            + self.more
        )


class Server:
    """One server. Attributes may be set while it runs."""

    def __init__(self, k: int, accepts: Callable[[dict], Iterator[int]] | None, round_seconds) -> None:
        self.counted = Counted(k)
        self.accepts, self.round_seconds = accepts, round_seconds
        self.models = [{"id": "tiny", "root": "org/tiny"}]
        self.info: dict | None = None
        self.key = ""
        self.has_metrics = True
        self.asked: list[dict] = []
        self.refuses = ""  # the body of a 400
        self.sent_on = ""  # a path that answers with another address
        self.uses_usage = True
        self.breaks_off = False
        self.adds = lambda body, given: None  # an event before the last one
        self.on_request = lambda n: None
        self.raw: dict[str, Callable[[], Iterable[bytes]]] = {}  # of a path, what is sent instead, headers and all

    def rounds(self, body: dict) -> Iterator[int]:
        """Tokens of each event: the prompt's own step gives one, a round what is accepted and one."""
        left = (body.get("max_tokens") or body["max_completion_tokens"]) - 1
        yield 1
        accepts = self.accepts(body) if self.accepts else None
        while left > 0:
            taken = next(accepts) if accepts else 0
            with self.counted.lock:
                if accepts:
                    self.counted.rounds += 1
                    self.counted.accepted += taken
                    for at in range(taken):
                        self.counted.positions[at] += 1
                running = self.counted.running
            time.sleep(self.round_seconds(running))
            given = min(taken + 1, left)
            left -= given
            yield given


class Handler(BaseHTTPRequestHandler):
    """Reads what the Server of its `server` says."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self._refused():
            return
        pages = {"/v1/models": json.dumps({"data": self.server.says.models})}
        if self.server.says.has_metrics:
            pages["/metrics"] = self.server.says.counted.page()
        if self.server.says.info is not None:
            pages["/server_info"] = json.dumps(self.server.says.info)
            pages["/server_info?config_format=json"] = json.dumps(self.server.says.info)
        if self.path == self.server.says.sent_on:
            self.send_response(302)
            self.send_header("Location", "http://elsewhere.invalid/")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self._sent_raw():
            return
        text = pages.get(self.path)
        self._answer(404 if text is None else 200, text or "Not Found")

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._refused():
            return
        if self.server.says.refuses:
            self._answer(400, self.server.says.refuses)
            return
        self.server.says.asked.append({"path": self.path, **body})
        self.server.says.on_request(len(self.server.says.asked))
        if self._sent_raw():
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._stream(body)

    def _stream(self, body):
        n, counted, all_given = 0, self.server.says.counted, []
        with counted.lock:
            counted.running += 1
        try:
            for given in self.server.says.rounds(body):
                n += given
                all_given.append(given)
                self._event({"choices": [{"index": 0, "delta": {"content": "x" * given}, "text": "x" * given}]})
        except (BrokenPipeError, ConnectionResetError):
            return
        finally:
            with counted.lock:
                counted.running -= 1
                counted.generated += n
                counted.finished += 1
        if self.server.says.breaks_off:
            self.close_connection = True
            return
        added = self.server.says.adds(body, all_given)
        if added:
            self._event(added)
        if self.server.says.uses_usage:
            self._event({"choices": [], "usage": {"completion_tokens": n, "prompt_tokens": 1}})
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _event(self, event):
        self._chunk(f"data: {json.dumps(event)}\n\n".encode())

    def _chunk(self, data):
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _sent_raw(self):
        parts = self.server.says.raw.get(self.path)
        for part in parts() if parts else ():
            self.wfile.write(part)
            self.wfile.flush()
        self.close_connection = self.close_connection or parts is not None
        return parts is not None

    def _refused(self):
        wrong = self.server.says.key and self.headers.get("Authorization") != f"Bearer {self.server.says.key}"
        if wrong:
            self._answer(401, "no")
        return bool(wrong)

    def _answer(self, code, text):
        data = text.encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serving(k: int = 0, accepts=None, round_seconds=lambda running: 0.0) -> Iterator[Server]:
    """A running server; its address is `url`."""
    server = Server(k, accepts, round_seconds)
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.says = server
    http.daemon_threads = True
    http.handle_error = lambda *_: None  # who leaves in the middle of a reply is no news
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_address[1]}"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def by_chance(*positions: float) -> Callable[[dict], Iterator[int]]:
    """Accepts position 1, 2, ... with these chances of all rounds, by the request's seed and prompt."""
    import random
    import zlib

    def accepts(body: dict) -> Iterator[int]:
        chance = random.Random(
            zlib.crc32(json.dumps([body.get("messages"), body.get("prompt"), body.get("seed")]).encode())
        )
        while True:
            lot = chance.random()
            yield sum(lot < share for share in positions)

    return accepts
