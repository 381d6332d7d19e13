"""Servers and command lines of which nothing comes: each is refused in one paragraph."""

from __future__ import annotations

import socket

import pytest
from benching.small import FEW, HEALTHY, WORDS
from openai_server import serving

import mtpforge
from mtpforge.benching import opening
from mtpforge.errors import MtpforgeError

REFUSED = {
    "no metrics": (lambda on, off: setattr(on, "has_metrics", False), "has no metrics", "`/metrics` is not there"),
    "a key": (lambda on, off: setattr(on, "key", "s3cret"), "wants a key", "`OPENAI_API_KEY` is not set"),
    "two models": (lambda on, off: on.models.append({"id": "other"}), "serves 2 models", "they are tiny, other"),
    "no draft": (lambda on, off: setattr(on, "accepts", None), "does not draft", "stayed where it was"),
    "both draft": (lambda on, off: setattr(off, "accepts", HEALTHY), "drafts too", "rose"),
    "bad request": (lambda on, off: setattr(on, "refuses", "no chat template"), "with 400", "no chat template"),
    "sent on": (lambda on, off: setattr(on, "sent_on", "/v1/models"), "on to http://elsewhere.invalid/", ""),
    "half a reply": (lambda on, off: setattr(on, "breaks_off", True), "broke a reply off", ""),
    "no usage": (lambda on, off: setattr(on, "uses_usage", False), "how many tokens a reply has", ""),
    "synthetic": (
        lambda on, off: setattr(
            on, "info", {"vllm_config": {"speculative_config": {"rejection_sample_method": "synthetic"}}}
        ),
        "makes acceptance up",
        "`rejection_sample_method` is `synthetic`",
    ),
    "another model": (
        lambda on, off: setattr(off, "models", [{"id": "small", "root": "org/smaller"}]),
        "serves another model than the server that drafts",
        "`org/smaller` here, `org/tiny` there",
    ),
    "another name": (
        lambda on, off: (setattr(on, "models", [{"id": "a"}]), setattr(off, "models", [{"id": "b"}])),
        "serves another model than the server that drafts",
        "`b` here, `a` there",
    ),
    "too few counted": (
        lambda on, off: setattr(on.counted, "unseen", 0.1),
        "counts fewer tokens than it gave",
        "`vllm:generation_tokens_total` rose by ",
    ),
    "contradiction": (
        lambda on, off: setattr(on, "on_request", lambda n: on.counted.positions.__setitem__(0, 9999 * n)),
        "has counters that contradict each other",
        "by position ",
    ),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_paragraph(name):
    rig, what, why = REFUSED[name]
    with serving(3, HEALTHY) as on, serving(3, None) as off:
        rig(on, off)
        with pytest.raises(MtpforgeError) as refused:
            mtpforge.bench(on.url, baseline=off.url, **{**FEW, "generate": 25})
    assert what in refused.value.what
    assert why in refused.value.why
    assert refused.value.fix
    assert refused.value.code == 4
    assert refused.value.what.startswith("http://127.0.0.1:")


SAME = [
    (("tiny", "org/tiny"), ("tiny", "org/tiny"), True),
    (("a", "/models/Tiny"), ("b", "org/tiny/"), True),
    (("a", "/hub/models--org--tiny/snapshots/0123abc"), ("org/tiny", "org/tiny"), True),
    (("served", "/x/tiny"), ("served", ""), True),
    (("served", "served"), ("served", "org/tiny"), True),
    (("org/tiny", "org/tiny"), ("x", "/y/tiny"), True),
    (("tiny", "org/tiny-FP8"), ("tiny", "org/tiny-NVFP4"), False),
    (("org/tiny", ""), ("org/other", "org/other"), False),
    (("a", ""), ("b", ""), False),
]


@pytest.mark.parametrize(("one", "other", "wanted"), SAME)
def test_models_are_compared_by_name_and_by_checkpoint(one, other, wanted):
    assert opening.is_same(*one, *other) is wanted
    assert opening.is_same(*other, *one) is wanted


def test_baseline_of_several_models_is_asked_for_the_same_one():
    with serving(3, HEALTHY) as on, serving(3, None) as off:
        on.models = [{"id": "draft-name", "root": "org/tiny"}]
        off.models = [{"id": "adapter", "root": "/lora"}, {"id": "plain", "root": "org/tiny"}]
        mtpforge.bench(on.url, baseline=off.url, **FEW)
        assert {body["model"] for body in off.asked} == {"plain"}


def test_model_without_a_chat_template_is_told_the_other_endpoint(run):
    with serving(3, HEALTHY) as server:
        server.refuses = "no chat template"
        chat, plain = (run("bench", server.url, *WORDS, "--endpoint", kind) for kind in ("chat", "completions"))
    assert "a model without a chat template: `--endpoint completions`" in chat.err
    assert " hint: the server's log says why\n" in plain.err


def test_server_that_is_started_anew_meanwhile_is_refused(run):
    with serving(3, HEALTHY) as server:
        server.on_request = lambda n: n == 4 and server.counted.reset()
        ran = run("bench", server.url, *WORDS)
    assert ran.code == 4
    assert "was started anew while it was measured" in ran.err


@pytest.mark.parametrize("key", ["s3cret\nmore", "s3crèt"])
def test_a_key_that_no_header_may_hold_is_refused_unseen(run, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    refused = run("bench", "http://127.0.0.1:9")
    assert (refused.code, "the key in OPENAI_API_KEY is none" in refused.err) == (4, True)
    assert "s3cr" not in refused.err + refused.out


def test_key_is_sent_and_named_nowhere(run, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "s3cret")
    with serving(3, HEALTHY) as server:
        server.key = "s3cret"
        ran = run("bench", server.url, *WORDS, "--json")
        server.key = "other"
        refused = run("bench", server.url, *WORDS)
    assert ran.code == 0
    assert (refused.code, "the one in OPENAI_API_KEY is refused" in refused.err) == (4, True)
    assert "s3cret" not in ran.out + refused.out + refused.err


def test_server_that_is_not_there(run):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    ran = run("bench", f"http://127.0.0.1:{port}")
    assert (ran.code, ran.out) == (4, "")
    assert ran.err.splitlines()[0] == f"error: http://127.0.0.1:{port} does not answer"
    assert f" hint: is the server up? `curl http://127.0.0.1:{port}/v1/models`" in ran.err


def test_server_that_speaks_no_tls_is_told_so(run):
    with serving(3, HEALTHY) as server:
        ran = run("bench", server.url.replace("http:", "https:"))
    assert (ran.code, "its address may begin with `http://`" in ran.err) == (4, True)


def test_name_that_leads_nowhere(run, monkeypatch):
    def unknown(*_args, **_more):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    ran = run("bench", "http://nothing.invalid")
    assert (ran.code, ran.err.splitlines()[0]) == (4, "error: http://nothing.invalid does not answer")


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("localhost:8000", "is no address of a server"),
        ("ftp://it", "is no address of a server"),
        ("http://", "is no address of a server"),
        ("http://it:99999999", "is no address of a server"),
        ("http://ann:secret@it", "the address holds a password"),
        ("http://it/v1?key=1", "is more than the address"),
    ],
)
def test_addresses_that_are_none(run, url, what):
    for words in ([url], ["http://127.0.0.1:1", "--baseline", url]):
        ran = run("bench", *words)
        assert (ran.code, what in ran.err) == (2, True)
        assert "secret" not in ran.err


def test_address_may_end_in_v1():
    with serving(3, HEALTHY) as server:
        assert mtpforge.bench(f"{server.url}/v1/", **FEW).url == server.url


@pytest.mark.parametrize(
    ("words", "what"),
    [
        *(
            (["--concurrency", text], f"`{text}` is no list of whole numbers from 1 to 999,999")
            for text in ("1,x", "0,1")
        ),
        (["--concurrency", "9999"], "9999 requests at a time cannot be sent"),
        (["--content", "poetry"], "no content `poetry` in corpus"),
        (["--dataset", "other"], "no dataset `other`"),
        (["--dataset", "speed_bench"], "`speed_bench` lies in files of its own"),
        (["--text", "a.txt", "--dataset", "spec_bench=b"], "`--text` and `--dataset` exclude each other"),
        (
            ["--prompts", "48"],
            "48 prompts are too few for 16 requests at a time: an interval needs two slices",
        ),
        (["--temperature", "9"], "a temperature of 9 is none"),
        (["--baseline", "http://127.0.0.1:1/v1"], "`--baseline` is the same server"),
    ],
)
def test_command_lines_of_which_nothing_comes(run, words, what):
    ran = run("bench", "http://127.0.0.1:1", *words)
    assert (ran.code, ran.err.splitlines()[0]) == (2, f"error: {what}")
