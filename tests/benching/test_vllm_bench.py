"""SPEED-Bench and Spec-Bench are sent by `vllm bench serve`: its words, its document, and what fails."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from openai_server import by_chance, serving

import mtpforge
from mtpforge.benching import server as servers
from mtpforge.benching import vllm_bench
from mtpforge.benching.slices import Slice
from mtpforge.benching.streaming import Load
from mtpforge.engines.vllm import VLLM
from mtpforge.errors import MtpforgeError

PARSE = """
import argparse, json, sys
from vllm.benchmarks.serve import add_cli_args, main
parser = argparse.ArgumentParser()
add_cli_args(parser)
taken = parser.parse_args(sys.argv[1:])
"""
TELL = PARSE + "print(json.dumps({k: v for k, v in vars(taken).items() if isinstance(v, int | float | str)}))"
SERVE = PARSE + "main(taken)"
# what vLLM 0.33 does with these words, as far as it is read: requests one after another, times and lengths of each
STAND_IN = """#!{python}
import json, pathlib, sys, time, urllib.request
words = dict(zip(sys.argv[3::1], sys.argv[4::1]))
rows = [json.loads(line) for line in open(words["--dataset-path"])]
texts = [row["turns"][0] for row in rows if row["category"] == words["--spec-bench-category"]]
lens, ttfts, itls, starts = [], [], [], []
for at in range(int(words["--num-prompts"])):
    body = {{"model": words["--served-model-name"], "max_completion_tokens": int(words["--spec-bench-output-len"]),
            "messages": [{{"role": "user", "content": texts[at % len(texts)]}}], "stream": True}}
    asked = urllib.request.Request(words["--base-url"] + words["--endpoint"], json.dumps(body).encode())
    began = time.perf_counter()
    text = urllib.request.urlopen(asked).read().decode()
    starts.append(float(at))
    lens.append(int(text.split('"completion_tokens": ')[1].split(",")[0]))
    ttfts.append(0.5)
    itls.append([0.25, 0.25])
out = pathlib.Path(words["--result-dir"]) / words["--result-filename"]
found = {{"output_lens": lens, "ttfts": ttfts, "itls": itls, "start_times": starts, "errors": [""] * len(lens)}}
out.write_text(json.dumps(found))
"""
SOME = Slice("qa", 2, 3, 0, 4, 8)


@pytest.fixture
def questions(tmp_path):
    rows = [{"category": c, "turns": [f"question {n} of {c}"]} for c in ("writing", "qa") for n in range(4)]
    file = tmp_path / "question.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """`vllm` on PATH; its body is replaced by another one where a test wants that."""
    program = tmp_path / "bin" / "vllm"
    program.parent.mkdir()
    program.write_text(STAND_IN.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return program


def words(url: str, questions: Path, out: Path) -> list[str]:
    load = Load("tiny", str(Path(mtpforge.__file__).parent / "_demo" / "nvfp4"), "chat", 24, 0.5, VLLM.counters)
    return vllm_bench.words("vllm", "spec_bench", questions, servers.connected(url), load, SOME, out)


def test_load_of_vllm_is_measured_by_our_counters(questions, stand_in):
    with serving(3, by_chance(0.84, 0.66, 0.49)) as server:
        found = mtpforge.bench(server.url, dataset=f"spec_bench={questions}", concurrency=[1], prompts=4, generate=24)
        asked = [body["messages"][0]["content"] for body in server.asked]
    assert [cell.content for cell in found.cells] == ["writing", "qa"]
    assert len(asked) == 1 + 2 * 4
    assert found.cells[0].first == 0.5
    assert found.cells[0].speed == pytest.approx(24 / 1.0)
    assert found.totals[0].length.mean > 1
    assert found.dataset == "spec_bench"


def test_content_is_of_the_dataset(run, questions, stand_in):
    ran = run("bench", "http://127.0.0.1:1", "--dataset", f"spec_bench={questions}", "--content", "prose")
    assert (ran.code, "known: writing, qa" in ran.err) == (2, True)


def test_without_vllm_it_says_what_to_install(run, questions, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    ran = run("bench", "http://127.0.0.1:1", "--dataset", f"spec_bench={questions}")
    assert ran.code == 5
    assert "error: `spec_bench` is read and sent by `vllm bench serve`, and `vllm` is not on PATH" in ran.err
    assert "`pip install 'vllm[bench]'`" in ran.err


@pytest.mark.parametrize(
    ("text", "what"), [("no json\n", "cannot be read"), ("", "is empty"), ('{"turns": []}\n', "cannot")]
)
def test_dataset_that_is_none(run, questions, stand_in, text, what):
    questions.write_text(text)
    ran = run("bench", "http://127.0.0.1:1", "--dataset", f"spec_bench={questions}")
    assert (ran.code, what in ran.err) == (3, True)


def test_failure_of_vllm_is_told_by_its_last_line(questions, stand_in):
    stand_in.write_text("#!/bin/sh\necho first >&2; echo 'ImportError: Please install vllm[bench]' >&2; exit 1\n")
    with serving(1, by_chance(0.8)) as server, pytest.raises(MtpforgeError) as refused:
        mtpforge.bench(server.url, dataset=f"spec_bench={questions}", concurrency=[1], prompts=2)
    assert (refused.value.what, refused.value.code) == ("`vllm bench serve` failed", 5)
    assert refused.value.why == "ImportError: Please install vllm[bench]"


def test_failed_request_of_vllm_is_refused():
    result = {
        "output_lens": [3, 0],
        "ttfts": [0.1, 0],
        "itls": [[0.1], []],
        "start_times": [0.0, 0.0],
        "errors": ["", "Traceback:\n  OSError: gone\n"],
    }
    with pytest.raises(MtpforgeError, match="a request of `vllm bench serve` failed") as refused:
        vllm_bench.replies(result)
    assert refused.value.why == "OSError: gone"


GOOD = {
    "output_lens": [3, 4],
    "ttfts": [0.1, 0.1],
    "itls": [[0.1], [0.2]],
    "start_times": [7.0, 7.5],
    "errors": ["", ""],
}


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"ttfts": [0.1]}, "wrote no single requests"),
        ({"itls": 3}, "wrote no single requests"),
        ({"ttfts": [None, 0.1]}, "`vllm bench serve` failed"),
        ({"itls": [["x"], []]}, "`vllm bench serve` failed"),
        ({"output_lens": [0, 4]}, "1 of 2 requests of `vllm bench serve` brought no token"),
        ({"ttfts": [0.0, 0.1], "itls": [[], []]}, "1 of 2 requests"),
    ],
)
def test_document_of_vllm_that_is_none_is_refused(changed, what):
    assert [reply.began for reply in vllm_bench.replies(GOOD)] == [7.0, 7.5]
    with pytest.raises(MtpforgeError, match=what):
        vllm_bench.replies(GOOD | changed)


def wait_for(file: Path, child: subprocess.Popen | None = None) -> str:
    end = time.monotonic() + 60
    while not (file.exists() and file.read_text().endswith("\n")):
        assert child is None or child.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    return file.read_text()


def has_ended(pid: int) -> bool:
    """Soon: the system takes a moment for whoever a signal was sent to with its group."""
    end = time.monotonic() + 10
    while is_running(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not is_running(pid)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


STALLS = "#!/bin/sh\nsleep 600 & echo $! > {pids}.new; mv {pids}.new {pids}; wait\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_first_signal_ends_it_with_whatever_it_started(questions, stand_in, tmp_path, number, code):
    stand_in.write_text(STALLS.format(pids=tmp_path / "pids"))
    with serving(1, by_chance(0.8)) as server:
        words = [sys.executable, "-m", "mtpforge", "bench", server.url, "--dataset", f"spec_bench={questions}"]
        child = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        pid = int(wait_for(tmp_path / "pids", child))
        assert is_running(pid)
        child.send_signal(number)
        assert child.wait(20) == code
    assert has_ended(pid)


def test_stalled_it_is_given_up(questions, stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_bench, "_STARTS", 0.3)
    monkeypatch.setattr(vllm_bench, "longest", lambda _: 0.2)
    stand_in.write_text(STALLS.format(pids=tmp_path / "pids"))
    with serving(1, by_chance(0.8)) as server, pytest.raises(MtpforgeError) as refused:
        mtpforge.bench(server.url, dataset=f"spec_bench={questions}", concurrency=[1], prompts=2)
    assert (refused.value.why, refused.value.code) == ("it did not end within 0 seconds", 5)
    assert has_ended(int(wait_for(tmp_path / "pids")))


@pytest.fixture(scope="module")
def python():
    found = os.environ.get("MTPFORGE_TEST_ENGINE_PYTHON")
    if not found:
        pytest.skip("MTPFORGE_TEST_ENGINE_PYTHON names no interpreter")
    return found


@pytest.mark.engine
def test_vllm_knows_every_word(python, questions, tmp_path):
    argv = words("http://127.0.0.1:1", questions, tmp_path / "r.json")
    ran = subprocess.run([python, "-c", TELL, *argv[3:]], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    taken = json.loads(ran.stdout.splitlines()[-1])
    assert (taken["dataset_name"], taken["spec_bench_category"], taken["spec_bench_output_len"]) == (
        "spec_bench",
        "qa",
        24,
    )
    assert (taken["num_prompts"], taken["max_concurrency"], taken["seed"], taken["temperature"]) == (4, 2, 3, 0.5)


@pytest.mark.engine
def test_vllm_itself_sends_the_load(python, questions, tmp_path):
    """Its own latencies are the seconds that are read of its document."""
    asked = subprocess.run([python, "-c", "import pandas"], capture_output=True, check=False)
    if asked.returncode:
        pytest.skip("vllm[bench] is not installed: no pandas")
    out = tmp_path / "r.json"
    with serving(3, by_chance(0.84, 0.66, 0.49)) as server:
        argv = words(server.url, questions, out)
        ran = subprocess.run([python, "-c", SERVE, *argv[3:]], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    result = json.loads(out.read_text())
    found = vllm_bench.replies(result)
    assert [reply.seconds for reply in found] == pytest.approx(result["latencies"])
    assert [reply.tokens for reply in found] == [24] * 4


def test_stand_in_is_no_vllm_of_this_machine(stand_in):
    assert shutil.which("vllm") == str(stand_in)
