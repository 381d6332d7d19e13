"""Servers that are rigged, one way each: what is wrong is named, and what cannot be judged is refused."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading

import pytest
from openai_server import by_chance, serving

import mtpforge
from mtpforge.errors import MtpforgeError

FEW = {"concurrency": [1], "content": ["chat"], "prompts": 4, "generate": 24}
WORDS = ("--concurrency", "1", "--content", "chat", "--prompts", "4", "--generate", "24")
HEALTHY = by_chance(0.84, 0.66, 0.49)


def checks(found) -> dict[str, str]:
    return {check.name: check.verdict for check in found.checks}


def detail(found, name: str) -> str:
    return next(check.detail for check in found.checks if check.name == name)


def test_healthy_draft_is_measured_by_the_counters_of_the_server():
    with serving(3, HEALTHY) as server:
        found = mtpforge.bench(server.url, **FEW)
        counted = server.counted
        warm = [body for body in server.asked if body["seed"] > 100]
        asked = [body for body in server.asked if body["seed"] <= 100]
    assert (len(warm), len(asked)) == (1, 4)  # warmed up by as many as there will be at a time
    (total,) = found.totals
    assert total.n_prompts == 4
    # the warm-up is in the server's counters, and not in ours
    assert 0 < total.n_rounds < counted.rounds
    assert len(found.cells) == 1
    assert found.cells[0].length == total.length
    assert total.length.mean == pytest.approx(1 + sum(total.positions))
    assert found.k == 3
    assert checks(found)["acceptance"] == "passed"
    assert checks(found)["speed"] == checks(found)["answers"] == checks(found)["made-up acceptance"] == "not checked"
    assert found.report.exit_code == 0


def test_rounds_are_those_of_the_measured_requests_alone():
    """An independent count: what each measured request was given, from the same seeds."""
    with serving(3, HEALTHY) as server:
        found = mtpforge.bench(server.url, **FEW)
        asked = [body for body in server.asked if body["seed"] <= 100]
    rounds = accepted = 0
    for body in asked:
        left, chances = body["max_tokens"] - 1, HEALTHY(body)
        while left > 0:
            taken = next(chances)
            rounds, accepted, left = rounds + 1, accepted + taken, left - taken - 1
    (total,) = found.totals
    assert (total.n_rounds, total.length.mean) == (rounds, pytest.approx(1 + accepted / rounds))


def test_nothing_accepted_fails_and_names_causes_in_their_order(run):
    with serving(3, by_chance(0.0, 0.0, 0.0)) as server:
        ran = run("bench", server.url, *WORDS)
    assert ran.code == 1
    assert "0.000 of first tokens accepted; 1.00" in ran.out
    assert "likely causes, in this order, and what tells:" in ran.out
    causes = ran.out[ran.out.index("likely causes") :].splitlines()[1:]
    assert "mtpforge verify DRAFT --target CKPT --source SOURCE" in causes[0]
    assert "not initialized from checkpoint" in causes[1]
    assert len(causes) == 8


def test_collapse_at_the_second_token_is_named(run):
    with serving(3, by_chance(0.9, 0.1, 0.05)) as server:
        found = mtpforge.bench(server.url, **FEW)
    assert checks(found)["later tokens"] == "warning"
    assert found.totals[0].conditional[1] < 0.5
    assert "the state before the last norm goes on" in found.causes[0].what
    assert checks(found)["acceptance"] == "passed"


def test_healthy_draft_has_no_cause():
    with serving(3, HEALTHY) as server:
        assert mtpforge.bench(server.url, **FEW).causes == ()


@pytest.mark.parametrize(
    ("chances", "verdict"), [((0.84, 0.66, 0.49), "passed"), ((0.55, 0.35, 0.2), "warning")], ids=["near", "below"]
)
def test_published_curve_is_a_yardstick(chances, verdict):
    with serving(3, by_chance(*chances)) as server:
        server.models = [{"id": "served", "root": "someone/GLM-5.2-NVFP4"}]
        found = mtpforge.bench(server.url, **{**FEW, "prompts": 8, "generate": 80})
    assert checks(found)["published curve"] == verdict
    assert "GLM-5.2 gave 2.99 at k = 3" in detail(found, "published curve")


@pytest.mark.parametrize("name", ["zai-org/GLM-5.3", "GLM-5.21", "Qwen3.5", "bigglm-5.2"])
def test_published_curve_is_of_no_other_release(name):
    with serving(1, by_chance(0.8)) as server:
        server.models = [{"id": name}]
        found = mtpforge.bench(server.url, **FEW)
    assert detail(found, "published curve") == "none is known for this model"


@pytest.mark.slow
def test_drafting_that_loses_under_load_is_named_with_its_number(run):
    on, off = (lambda running: 0.01 * (1 + 1.5 * (running - 1))), (lambda _: 0.01)
    with serving(2, by_chance(0.8, 0.5), on) as drafting, serving(0, None, off) as without:
        ran = run(
            *("bench", drafting.url, "--baseline", without.url, "--concurrency", "1,4", "--content", "code"),
            *("--prompts", "16", "--generate", "20", "--json"),
        )
    found = ran.document["bench"]
    gains = [total["gain"]["mean"] for total in found["totals"]]
    assert gains[0] > 1 > gains[1]
    assert found["loses_from"] == 4
    verdicts = {check["name"]: check["verdict"] for check in found["checks"]}
    assert (verdicts["speed, 1 at a time"], verdicts["speed, 4 at a time"]) == ("passed", "warning")
    assert ran.code == 0
    assert [each["best"] for each in found["advice"]] == [2, 0]
    assert json.loads(found["schedule"]) == {
        "num_speculative_tokens": 2,
        "num_speculative_tokens_per_batch_size": [[1, 1, 2], [2, 4, 0]],
    }


def test_both_servers_get_the_same_prompts_in_turn():
    order = []
    with serving(1, by_chance(0.8)) as drafting, serving() as without:
        drafting.on_request = lambda _: order.append("on")
        without.on_request = lambda _: order.append("off")
        found = mtpforge.bench(drafting.url, baseline=without.url, **FEW)
        sent = [[(body["messages"], body["seed"]) for body in server.asked] for server in (drafting, without)]
    assert sent[0] == sent[1]
    assert order == ["on", "off", *("on", "off", "off", "on") * 2]
    assert found.totals[0].gain.low < found.totals[0].gain.mean < found.totals[0].gain.high


def test_as_many_are_under_way_as_asked_for():
    seen, all_there = [], threading.Barrier(3, timeout=20)

    def accepts(body):
        all_there.wait()
        seen.append(server.counted.running)
        return HEALTHY(body)

    with serving(3, accepts) as server:
        mtpforge.bench(server.url, **{**FEW, "concurrency": [3], "prompts": 12})
    assert max(seen) == 3


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
    "always the same": (
        lambda on, off: setattr(on, "accepts", lambda body: iter([2] * 99)),
        "makes acceptance up",
        "3.000 tokens a round in each of 4 pieces of different text",
    ),
}


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
            ["--prompts", "16"],
            "16 prompts are too few for 16 requests at a time: an interval needs two slices",
        ),
        (["--temperature", "9"], "a temperature of 9 is none"),
        (["--baseline", "http://127.0.0.1:1/v1"], "`--baseline` is the same server"),
    ],
)
def test_command_lines_of_which_nothing_comes(run, words, what):
    ran = run("bench", "http://127.0.0.1:1", *words)
    assert (ran.code, ran.err.splitlines()[0]) == (2, f"error: {what}")


def test_of_depths_beyond_the_servers_own_nothing_is_advised():
    with serving(3, HEALTHY) as server, serving(0, None) as without:
        found = mtpforge.bench(server.url, baseline=without.url, depths=[5], **FEW)
    assert (found.advice, found.schedule) == ((), "")


def test_depths_beyond_the_servers_own_are_told():
    with serving(3, HEALTHY) as server:
        found = mtpforge.bench(server.url, depths=[1, 5], **FEW)
    assert detail(found, "depths") == "5: the server says how 3 drafted tokens fare"


def test_somebody_else_on_the_server_is_told():
    with serving(3, HEALTHY) as server:
        server.on_request = lambda n: n > 1 and setattr(server.counted, "generated", server.counted.generated + 50)
        found = mtpforge.bench(server.url, **FEW)
    assert checks(found)["other users"] == "warning"


def test_text_of_ones_own_is_asked(tmp_path):
    text = tmp_path / "own.txt"
    text.write_text("alpha\fbeta\f" + "gamma " * 300)
    with serving(3, HEALTHY) as server:
        found = mtpforge.bench(server.url, text=text, **{**FEW, "content": [], "endpoint": "completions"})
        asked = [body["prompt"] for body in server.asked]
    assert found.cells[0].content == "text"
    assert asked[1] == "Continue this text.\n\nalpha"
    assert "Continue this text.\n\nbeta" in asked


@pytest.mark.parametrize("text", ["", " \n\f "])
def test_text_without_words_is_refused(run, tmp_path, text):
    (tmp_path / "empty.txt").write_text(text)
    ran = run("bench", "http://127.0.0.1:1", "--text", tmp_path / "empty.txt")
    assert (ran.code, ran.out) == (3, "")


def test_interrupt_tells_what_was_measured(run):
    """As by Ctrl-C: the second cell is stopped, the first one stands above."""

    def interrupt(n):
        if n == 12:
            os.kill(os.getpid(), signal.SIGINT)

    with serving(3, HEALTHY, lambda _: 0.002) as server:
        server.on_request = interrupt
        words = ("--concurrency", "1", "--content", "chat,code", "--prompts", "8", "--generate", "24")
        ran = run("bench", server.url, *words)
    assert ran.code == 130
    assert "chat, 1 at a time" in ran.out
    assert "lines above hold what was measured until then" in ran.err
