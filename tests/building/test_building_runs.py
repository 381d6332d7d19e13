"""How a build runs, what it leaves behind and how it goes on; plans by hand over a small folder."""

from __future__ import annotations

import hashlib
import threading

import pytest
import torch
from safetensors.torch import load_file
from small_plans import INT4, MODELOPT, carry, checkpoint, move, plan, weight, weights_of

from mtpforge import manifest
from mtpforge.building import build, building
from mtpforge.building.workers import Workers
from mtpforge.checking import CheckResult
from mtpforge.durable import effects
from mtpforge.errors import MtpforgeError
from mtpforge.formats import FORMATS
from mtpforge.planning.steps import Step
from mtpforge.report import Check, Report
from mtpforge.writing import folder

SHAPE = (640, 256)


def stored(quantization, values):
    """Parts of a weight for a source; how they were made does not matter here."""
    form = FORMATS[quantization.format]
    matrix = form.matrix_parts(tuple(values.shape), quantization, values.abs().amax())
    return matrix | form.encode(values, quantization, matrix)


def refused(source, steps, out, **options):
    with pytest.raises(MtpforgeError) as caught:
        build(plan(source, steps), {"source": source}, out, check="off", **options)
    assert [p.name for p in out.parent.iterdir() if p.name != "source"] == []
    return caught.value


def test_judge_sees_the_whole_draft_and_its_no_leaves_nothing(dense, tmp_path):
    source, made, tensors = dense
    seen = []

    def judge(path):
        seen.append((sorted(p.name for p in path.iterdir()), set(load_file(path / "model.safetensors"))))
        return Report("verify", (Check("names", "failed", "3 are missing", "build again"),))

    with pytest.raises(MtpforgeError) as caught:
        build(made, {"source": source}, tmp_path / "draft", check="off", judge=judge)
    assert seen == [(["LICENSE", "NOTICE", "config.json", "model.safetensors", "mtpforge.json"], set(tensors))]
    assert (caught.value.code, caught.value.why, caught.value.fix) == (1, "names: 3 are missing", "build again")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_word_of_the_judge_is_in_the_manifest(dense, tmp_path):
    source, made, _ = dense
    report = Report("verify", (Check("names", "passed", "7 tensors"),), facts={"relative_error": {"m": 0.25}})
    draft = build(made, {"source": source}, tmp_path / "draft", check="off", judge=lambda _: report)
    assert draft.report.checks == (Check("reference", "not checked", "switched off"), *report.checks)
    assert draft.manifest.relative_error == {"m": 0.25}
    assert {"name": "names", "verdict": "passed", "detail": "7 tensors", "fix": ""} in draft.manifest.body["checks"]


def test_not_enough_disk_is_said_before_anything_is_written(dense, tmp_path, monkeypatch):
    source, made, _ = dense
    monkeypatch.setattr("mtpforge.writing.preflight.room", lambda _: 1000)
    with pytest.raises(MtpforgeError, match=r"not enough disk: 24\.6 kB are needed, 1\.00 kB are free"):
        build(made, {"source": source}, tmp_path / "draft", check="off")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def interrupt_at(monkeypatch, n, failure):
    real, left = effects.put, [n]

    def put(*args):
        left[0] -= 1
        if not left[0]:
            raise failure
        real(*args)

    monkeypatch.setattr(effects, "put", put)


def test_interruption_keeps_finished_steps_and_the_same_command_goes_on(dense, tmp_path, monkeypatch):
    source, made, tensors = dense
    whole = build(made, {"source": source}, tmp_path / "whole", check="off")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5, KeyboardInterrupt())  # the header and three tensors are written
        with pytest.raises(MtpforgeError) as caught:
            build(made, {"source": source}, tmp_path / "draft", check="off", workers=1)
    assert str(caught.value) == (
        f"error: interrupted\ncause: 3 finished steps are kept in {tmp_path}/.draft.mtpforge-tmp\n"
        " hint: the same command goes on from there"
    )
    assert caught.value.code == 130
    assert not (tmp_path / "draft").exists()
    written = []
    put = DraftPut(monkeypatch, written)
    draft = build(made, {"source": source}, tmp_path / "draft", check="off", workers=1)
    assert put.names == [*list(tensors)[3:]]
    assert {p.name: p.read_bytes() for p in draft.path.iterdir()} == {
        p.name: p.read_bytes() for p in whole.path.iterdir()
    }


class DraftPut:
    """Notes which tensors are written."""

    def __init__(self, monkeypatch, names):
        self.names, real = names, folder.DraftFolder.put

        def put(draft, name, offset, data):
            names.append(name)
            real(draft, name, offset, data)

        monkeypatch.setattr(folder.DraftFolder, "put", put)


def test_damaged_step_of_an_earlier_run_is_made_again(dense, tmp_path, monkeypatch):
    source, made, tensors = dense
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5, KeyboardInterrupt())
        with pytest.raises(MtpforgeError):
            build(made, {"source": source}, tmp_path / "draft", check="off", workers=1)
    weights = tmp_path / ".draft.mtpforge-tmp" / "draft" / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    at = damaged.index(bytes(tensors["layer.1.weight"].view(torch.uint8).numpy().data))
    damaged[at] ^= 1
    weights.write_bytes(damaged)
    put = DraftPut(monkeypatch, [])
    draft = build(made, {"source": source}, tmp_path / "draft", check="off", workers=1)
    assert put.names[0] == "layer.1.weight"
    assert torch.equal(load_file(draft.path / "model.safetensors")["layer.1.weight"], tensors["layer.1.weight"])


def test_bug_in_an_encoder_is_no_draft(tmp_path, monkeypatch):
    source = checkpoint(tmp_path / "source", {"norm": weight(2, 2)})
    step = carry(source, "norm", "F32")
    monkeypatch.setattr("mtpforge.building.dense_tensors._cast", lambda _, values: values)
    with pytest.raises(AssertionError, match=r"norm: torch.bfloat16 \[2, 2\] made, F32 \[2, 2\] planned"):
        build(plan(source, [step]), {"source": source}, tmp_path / "draft", check="off")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_steps_wait_for_memory_and_a_large_one_runs_alone():
    steps = [Step(peak_bytes=n << 30) for n in (1, 1, 1, 9, 1)]
    lock, held, most = threading.Lock(), [], []

    def work(_, step):
        with lock:
            held.append(step.peak_bytes >> 30)
            most.append(sorted(held))
        threading.Event().wait(0.01)
        with lock:
            held.remove(step.peak_bytes >> 30)

    Workers(steps, 4, (2 << 30) + (600 << 20)).run(lambda: work)
    assert len(most) == 5
    assert max(len(now) for now in most) == 2
    assert [9] in most
    assert not any(9 in now and len(now) > 1 for now in most)


def test_failure_of_the_earliest_step_is_told():
    barrier = threading.Barrier(2, timeout=10)

    def work(index, _):
        barrier.wait()
        raise ValueError(index)

    with pytest.raises(ValueError, match=r"^0$"):
        Workers([Step(), Step()], 2, 4 << 30).run(lambda: work)


def test_torch_keeps_its_threads_for_the_caller(dense, tmp_path):
    source, made, _ = dense
    before = torch.get_num_threads()
    build(made, {"source": source}, tmp_path / "draft", check="off", workers=2)
    assert torch.get_num_threads() == before


def test_progress_ends_at_its_total(dense, tmp_path):
    source, made, _ = dense
    told = []
    build(made, {"source": source}, tmp_path / "draft", check="off", on_progress=told.append)
    total = sum(spec.n_bytes for spec in weights_of(made.steps).values())
    built = [(p.done, p.total) for p in told if p.phase == "build"]
    assert built[-1] == (total, total)
    assert built == sorted(built)


def test_manifest_is_the_same_on_another_machine(dense, tmp_path, monkeypatch):
    source, made, _ = dense
    one = build(made, {"source": source}, tmp_path / "one", check="off")
    monkeypatch.setenv("HOSTNAME", "elsewhere")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "source").rename("moved")
    from mtpforge.checkpoint import open_checkpoint

    moved = open_checkpoint("moved")
    two = build(made, {"source": moved}, tmp_path / "two", check="off")
    text = (one.path / manifest.FILE).read_text()
    assert text == (two.path / manifest.FILE).read_text()
    assert str(tmp_path) not in text


class Library:
    """Stands for the process that decodes with a format's library: keeps what the build hands over."""

    def __init__(self, selection):
        Library.samples = selection.samples

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def begin(self, files):
        Library.files = files

    def finish(self, digests, _on_progress):
        Library.digests = dict(digests)
        return CheckResult(1, SHAPE[0] * SHAPE[1], {"some-library": "1.2"})


@pytest.mark.parametrize("action", ["copy", "encode"])
def test_reference_check_gets_the_decoded_values_of_every_drawn_band(tmp_path, monkeypatch, action):
    monkeypatch.setattr(building, "ReferenceCheck", Library)
    parts = stored(MODELOPT, weight(*SHAPE).float())
    source = checkpoint(tmp_path / "source", {f"m.{s}": t for s, t in parts.items()})
    wanted = MODELOPT if action == "copy" else INT4
    step = Step(moves=(move(source, "m", SHAPE, MODELOPT, wanted, action=action),))
    draft = build(plan(source, [step]), {"source": source}, tmp_path / "draft", check="full")
    values = FORMATS["modelopt_nvfp4"].decode(parts, SHAPE, MODELOPT).bfloat16()
    assert Library.files == {"model.safetensors": tmp_path / "source" / "model.safetensors"}
    assert sum(last - first for _, first, last in Library.digests) == SHAPE[0]
    for sample in Library.samples:
        band = values[slice(*sample.rows)].view(torch.uint8).numpy().tobytes()
        assert Library.digests[sample.key] == hashlib.sha256(band).hexdigest()
    assert draft.manifest.body["checks"] == [
        {
            "name": "reference",
            "verdict": "passed",
            "detail": "163,840 values of 1 weights equal as BF16 in some-library 1.2 (full)",
            "fix": "",
        }
    ]


def test_resumed_steps_are_checked_as_well(dense, tmp_path, monkeypatch):
    monkeypatch.setattr(building, "ReferenceCheck", Library)
    parts = {f"{n}.{s}": t for n in "ab" for s, t in stored(MODELOPT, weight(*SHAPE).float()).items()}
    source = checkpoint(tmp_path / "source", {n: t.clone() for n, t in parts.items()})
    steps = [Step(moves=(move(source, n, SHAPE, MODELOPT, INT4),)) for n in "ab"]
    whole = build(plan(source, steps), {"source": source}, tmp_path / "whole", check="full")
    seen = Library.digests
    with monkeypatch.context() as patch:
        interrupt_at(patch, 25, KeyboardInterrupt())
        with pytest.raises(MtpforgeError, match="interrupted") as caught:
            build(plan(source, steps), {"source": source}, tmp_path / "draft", workers=1)
    assert "1 finished steps are kept" in caught.value.why
    draft = build(plan(source, steps), {"source": source}, tmp_path / "draft", check="full")
    assert Library.digests == seen
    assert (draft.path / manifest.FILE).read_bytes() == (whole.path / manifest.FILE).read_bytes()
