"""Servers that answer with anything at all: each ends as a named error, soon, and Ctrl-C is heard meanwhile."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai_server import by_chance, serving

import mtpforge
from mtpforge.benching import apart, counting, streaming
from mtpforge.benching import server as servers
from mtpforge.benching.corpus import Prompt
from mtpforge.engines import ENGINES
from mtpforge.errors import MtpforgeError

FEW = {"concurrency": [1], "content": ["chat"], "prompts": 4, "generate": 24}
HEALTHY = by_chance(0.84, 0.66, 0.49)
CHAT = "/v1/chat/completions"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
TOKEN = b'data: {"choices": [{"delta": {"content": "x"}}]}\n\n'
DONE = b"data: [DONE]\n\n"
CHUNKED = HEAD.replace(b"Connection: close", b"Transfer-Encoding: chunked")
CHUNK = f"{len(TOKEN):x}\r\n".encode() + TOKEN + b"\r\n"
CLOSED = "the connection was closed in the middle of it"


def usage(value: str) -> bytes:
    return b'data: {"choices": [], "usage": {"completion_tokens": ' + value.encode() + b"}}\n\n"


def refusal(raw: dict[str, list[bytes]]) -> MtpforgeError:
    """What is said of a server that sends these parts instead of the answers to these paths."""
    with serving(3, HEALTHY) as server:
        server.raw = {path: partial(iter, parts) for path, parts in raw.items()}
        with pytest.raises(MtpforgeError) as refused:
            mtpforge.bench(server.url, **FEW)
    assert refused.value.code == 4
    assert refused.value.fix
    return refused.value


REPLIES = {
    "500 with half a body": (
        [b"HTTP/1.1 500 Oh\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhalf"],
        "answers `/v1/chat/completions` with 500",
        "",
    ),
    "500 with words": (
        [b"HTTP/1.1 500 Oh\r\nConnection: close\r\n\r\nout of memory"],
        "answers `/v1/chat/completions` with 500",
        "out of memory",
    ),
    "a web page": (
        [HEAD.replace(b"event-stream", b"html"), b"<html><body>Please log in"],
        "does not stream its replies as events",
        "it begins with `<html><body>Please log in`",
    ),
    "nothing": ([HEAD], "does not stream its replies as events", "it is empty"),
    "one document": (
        [HEAD, b'{"choices": [{"message": {}}], "usage": {"completion_tokens": 3}}'],
        "does not stream its replies as events",
        'it begins with `{"choices"',
    ),
    "half a reply": ([HEAD, TOKEN, usage("3")], "broke a reply off", "ended before `data: [DONE]`"),
    "no json": ([HEAD, TOKEN, b"data: {half\n\n", DONE], "cannot be read", "an event is no JSON object: `{half`"),
    "nested": ([HEAD, b"data: " + b"[" * 100_000 + b"\n\n", DONE], "cannot be read", "no JSON object: `[[["),
    "no HTTP": ([b"SSH-2.0-OpenSSH_9.2\r\n\r\n"], "does not answer", "it does not speak HTTP: `SSH-2.0-OpenSSH_9.2"),
    "closed at once": ([], "does not answer", "closed without an answer"),
    "half a chunk": ([CHUNKED, b"40\r\nda"], "broke a", CLOSED),
    "killed between chunks": ([CHUNKED + CHUNK], "broke a reply off", CLOSED),
    "no chunk": ([CHUNKED + CHUNK + b"zz\r\nx"], "broke a reply off", "the length of a part is no number: `zz"),
    "no tokens": ([HEAD, usage("3"), DONE], "cannot be read", "it counts 3 tokens and brings none"),
    **{
        f"{value} tokens": ([HEAD, TOKEN, usage(value), DONE], "cannot be read", "and 24 were asked for")
        for value in ("[3]", "-1", "1e3", '"24"', "true", "99999999", "{}")
    },
    "an error": ([HEAD, TOKEN, b'data: {"error": {"message": "CUDA error"}}\n\n'], "broke a reply off", "CUDA error"),
    "choices are none": ([HEAD, b'data: {"choices": "x"}\n\n', usage("3"), DONE], "cannot be read", "brings none"),
    "endless": ([HEAD, *[TOKEN] * 1000], "goes on beyond the 24 tokens that were asked for", ""),
    "an endless line": ([HEAD, b"data: ", *[b"x" * 65536] * 100], "cannot be read", "a line is longer than 4 MiB"),
}


CLOSED = {"the connection was closed in the middle of it"}


@pytest.mark.parametrize("name", REPLIES)
def test_reply_is_refused_by_name(name):
    parts, what, why = REPLIES[name]
    error = refusal({CHAT: parts})
    assert what in error.what
    assert why in error.why
    assert ("type the same command" in error.fix) == (error.why in CLOSED)  # only then the server may have ended


HISTOGRAMS = ["[-1, 2]", "[1.5]", "[[1]]", "{}", '"12"', "[true]", str([1] * 300), "[99999999999]"]


@pytest.mark.parametrize("text", HISTOGRAMS)
def test_histogram_of_a_reply_that_is_none_is_refused(text):
    event = b'data: {"sglext": {"spec_tokens_details": {"spec_correct_drafts_histogram": ' + text.encode() + b"}}}\n\n"
    with serving(3, HEALTHY) as server:
        server.raw = {CHAT: lambda: iter([HEAD, TOKEN, event, usage("3"), DONE])}
        load = streaming.Load("tiny", "", "chat", 24, 1.0, ENGINES["sglang"].counters)
        with pytest.raises(MtpforgeError, match="cannot be read") as refused:
            streaming.send(servers.connected(server.url), load, [Prompt("words", 0)], 1, lambda: None)
    assert "`spec_correct_drafts_histogram` is `" in refused.value.why


@pytest.mark.parametrize("positions", [(0, 2), (-1, 0), (1,), range(300)])
def test_positions_that_are_none_are_refused(positions):
    name = ENGINES["vllm"].counters.by_position
    text = "".join(f'{name}{{position="{at}"}} 1.0\n' for at in positions)
    with pytest.raises(MtpforgeError, match="count positions that are none"):
        counting.page(text, ENGINES["vllm"].counters, "it")


PAGE = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
PAGES = {
    "models are a page": ("/v1/models", [PAGE, b"<html>"], "is no OpenAI-compatible server"),
    "models are nested": ("/v1/models", [PAGE, b"[" * 100_000], "is no OpenAI-compatible server"),
    "models are half": (
        "/v1/models",
        [PAGE.replace(b"\r\n\r\n", b"\r\nContent-Length: 99\r\n\r\n{")],
        "broke `/v1/models` off",
    ),
    "models are numbers": ("/v1/models", [PAGE, b'{"data": [1, null, []]}'], "serves no model"),
    "metrics are half": (
        "/metrics",
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n"],
        "broke `/metrics`",
    ),
    "metrics are no text": ("/metrics", [PAGE, b"vllm:\xff\xfe{\x00}"], "cannot be read"),
}


@pytest.mark.parametrize("name", PAGES)
def test_page_is_refused_by_name(name):
    path, parts, what = PAGES[name]
    assert what in refusal({path: parts}).what


def test_endless_page_is_refused(monkeypatch):
    monkeypatch.setattr("mtpforge.benching.answers._LARGEST", 1 << 20)
    with serving(3, HEALTHY) as server:
        server.raw = {"/metrics": lambda: itertools.chain([PAGE], itertools.repeat(b"# words\n" * 1000))}
        with pytest.raises(MtpforgeError) as refused:
            mtpforge.bench(server.url, **FEW)
    assert (refused.value.what.partition(" ")[2], refused.value.why) == ("broke `/metrics` off", "more than 1 MiB")


def trickling(first: bytes, part: bytes, end: threading.Event):
    yield first
    while not end.wait(0.05):
        yield part


endless = pytest.mark.parametrize(
    ("part", "silence", "what"),
    [
        (b":\n", 0.3, "gave no token for 0.3 seconds"),
        (TOKEN, 30.0, "needs more than 0 seconds for a reply of 24 tokens"),
    ],
    ids=["silent", "slow"],
)


def patience(monkeypatch, silence: float) -> None:
    """Bear a silence; where it is long, no reply that goes on."""
    monkeypatch.setattr(servers, "SILENCE", silence)
    monkeypatch.setattr(streaming, "longest", lambda _: 0.4 if silence > 1 else 60.0)


@endless
def test_reply_that_does_not_end_is_given_up(monkeypatch, part, silence, what):
    """Comments keep a connection alive for ever; so do single tokens."""
    patience(monkeypatch, silence)
    end = threading.Event()
    with serving(3, HEALTHY) as server:
        server.raw = {CHAT: partial(trickling, HEAD, part, end)}
        began = time.monotonic()
        with pytest.raises(MtpforgeError) as refused:
            mtpforge.bench(server.url, **FEW)
        assert time.monotonic() - began < 20
        end.set()
    assert what in refused.value.what


def short():
    time.sleep(0.02)
    yield from (HEAD, TOKEN, usage("1"), DONE)


@endless
def test_reply_that_does_not_end_is_given_up_while_others_come(monkeypatch, part, silence, what):
    """They come more often than it is looked, and leave no pause."""
    patience(monkeypatch, silence)
    end, prompts = threading.Event(), [Prompt("words", seed) for seed in range(400)]
    with serving(3, HEALTHY) as server:
        server.raw = {CHAT: lambda: trickling(HEAD, part, end) if len(server.asked) == 1 else short()}
        load = streaming.Load("tiny", "", "chat", 24, 1.0, ENGINES["vllm"].counters)
        with pytest.raises(MtpforgeError) as refused:
            streaming.send(servers.connected(server.url), load, prompts, 4, lambda: None)
        end.set()
        assert len(server.asked) < len(prompts)
    assert what in refused.value.what


def test_page_that_does_not_end_is_given_up(monkeypatch):
    monkeypatch.setattr(servers, "_LOOK", 0.3)
    end = threading.Event()
    with serving(3, HEALTHY) as server:
        server.raw = {"/metrics": partial(trickling, PAGE, b"#", end)}
        with pytest.raises(MtpforgeError, match="did not answer `/metrics` within 0 seconds"):
            mtpforge.bench(server.url, **FEW)
        end.set()


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("first", [b"", HEAD, HEAD + TOKEN], ids=["no head", "no token", "one token"])
def test_first_signal_ends_a_run_whose_replies_stall(number, code, first):
    """In a process of its own, whose end waits for nothing either."""
    end = threading.Event()
    with serving(3, HEALTHY) as server:
        server.raw = {CHAT: partial(trickling, first, b"", end)}
        words = [sys.executable, "-m", "mtpforge", "bench", server.url, "--concurrency", "2", "--json"]
        child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ))
        while len(server.asked) < 2:
            assert child.poll() is None
            time.sleep(0.02)
        began = time.monotonic()
        child.send_signal(number)
        out, _ = child.communicate(timeout=20)
        took = time.monotonic() - began
        end.set()
    assert child.returncode == code
    assert took < 5
    assert json.loads(out)["exit_code"] == code


KEYS = st.sampled_from(["choices", "usage", "error"]) | st.text(max_size=3)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=9,
)
USAGE = st.fixed_dictionaries({"choices": JSON, "usage": st.fixed_dictionaries({"completion_tokens": JSON})})
HISTOGRAM = st.fixed_dictionaries({"spec_correct_drafts_histogram": JSON | st.lists(st.integers(), max_size=5)})
SGLEXT = st.fixed_dictionaries({"sglext": JSON | st.fixed_dictionaries({"spec_tokens_details": HISTOGRAM})})
EVENTS = st.lists(JSON | USAGE | SGLEXT | st.binary(max_size=30), max_size=6)
FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def hostile():
    with serving(3, HEALTHY) as server:
        yield server


@FUZZ
@given(events=EVENTS, engine=st.sampled_from(["vllm", "sglang"]))
def test_any_reply_is_read_or_refused(hostile, events, engine):
    lines = [b"data: " + (each if isinstance(each, bytes) else json.dumps(each).encode()) + b"\n\n" for each in events]
    hostile.raw = {CHAT: lambda: iter([HEAD, *lines, DONE])}
    load = streaming.Load("tiny", "", "chat", 24, 1.0, ENGINES[engine].counters)
    server = servers.connected(hostile.url)
    try:
        (reply,) = streaming.send(server, load, [Prompt("words", 0)], 1, lambda: None)
        assert 0 < reply.tokens < 99
        assert reply.seconds >= reply.first > 0
    except MtpforgeError as error:
        assert error.code == 4  # noqa: PT017 -- both ends are right
    finally:
        server.close()


@FUZZ
@given(raw=st.binary(max_size=80))
def test_any_bytes_are_read_or_refused(hostile, raw):
    hostile.raw = {path: lambda: iter([raw]) for path in ("/v1/models", "/metrics", "/server_info")}
    server = servers.connected(hostile.url)
    for ask in (lambda: servers.model_of(server, ""), lambda: servers.metrics(server)):
        with pytest.raises(MtpforgeError):
            ask()
    assert servers.told(server, "/server_info") is None
    server.close()


NAMES = st.sampled_from(["rounds", "accepted", "drafted", "by_position", "generated", "finished"])
POSITIONS = [f'{{position="{at}"}}' for at in ("0", "-1", "9999999999", "a")]
LABELS = st.sampled_from([*POSITIONS, "{}", "{", '{a="}', ""])
NUMBERS = st.sampled_from(["1.0", "-3", "NaN", "+Inf", "1e400", "x", "", "0x1", "1 2", "1" * 5000])


@FUZZ
@given(
    rows=st.lists(st.tuples(NAMES, LABELS, NUMBERS), max_size=6),
    rest=st.text(max_size=30),
    engine=st.sampled_from(["vllm", "sglang"]),
)
def test_any_page_of_metrics_is_read_or_refused(rows, rest, engine):
    counters = ENGINES[engine].counters
    text = "".join(f"{getattr(counters, name)}{label} {number}\n" for name, label, number in rows) + rest
    try:
        found = counting.page(text, counters, "it")
        counting.between(found, found, counters, "it")
        assert len(found.positions) <= 256
    except MtpforgeError as error:
        assert error.code == 4  # noqa: PT017 -- both ends are right


def test_no_thread_holds_the_process_of_who_gave_up():
    """An interpreter joins its threads at the end, but for daemons."""
    stays = threading.Event()

    def fails():
        raise MtpforgeError("it failed")

    with pytest.raises(MtpforgeError, match="it failed"):
        list(apart.results([stays.wait, fails], 2, lambda: None))
    ours = [thread for thread in threading.enumerate() if thread.name == "bench"]
    stays.set()
    assert ours
    assert all(thread.daemon for thread in ours)
