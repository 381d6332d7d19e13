"""Builds on a device make the bytes of builds on the CPU, and fail as they do.

Without a GPU the device is the CPU, made late: what it hands out is garbage until it is waited for, and what it was
given must not change before. With one, the tests at the end take it.
"""

import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from small_plans import DENSE, FP8, INT4, MODELOPT, NVFP4, checkpoint, move, plan, weight
from test_building_runs import Library, interrupt_at

from mtpforge.building import build, building, device, executing
from mtpforge.building.output import raw
from mtpforge.checkpoint import open_checkpoint
from mtpforge.errors import MtpforgeError
from mtpforge.formats import FORMATS
from mtpforge.planning import plan as planned
from mtpforge.planning.steps import Step
from mtpforge.tensors import Quantization
from mtpforge.weights import Band, Buffers
from mtpforge.weights.stored import OpenWeight

SHAPE = (601, 256)  # four bands of 128 rows and a ragged one
F32, F16 = Quantization("dense", 32, "F32"), Quantization("dense", 16, "F16")
PAIRS = [(DENSE, INT4), (DENSE, NVFP4), (MODELOPT, INT4), (MODELOPT, DENSE), (FP8, MODELOPT), (INT4, FP8), (NVFP4, FP8)]
TINY = [
    (source, target, scales)
    for source in ("bf16", "fp8", "nvfp4")
    for target in ("awq-int4", "nvfp4", "int4-int8mix", "bf16")
    for scales in ("rtn", *(("mse", "hqq") if source == "bf16" and target == "awq-int4" else ()))
]


class Late:
    """The CPU in the place of a device. `fail`: raised by the n-th copy to it."""

    def __init__(self, fail=None, at=0):
        self.copies, self.events, self._fail, self._at = 0, [], fail, at
        self._thread = threading.local()
        self.record = device.Device("late:0", self.host, self.stream, self.copy_in, self.copy_out, self.mark)

    def host(self, n_bytes):
        return torch.full((n_bytes,), 0xAB, dtype=torch.uint8)

    def stream(self):
        @contextmanager
        def opened():
            self._thread.queue = []
            yield
            del self._thread.queue

        return opened

    def copy_in(self, tensor):
        self.copies += 1
        if self.copies == self._at:
            raise self._fail
        self._thread.queue.append((tensor, tensor.clone(), True))
        return tensor.clone()

    def copy_out(self, tensor):
        late = torch.full((tensor.numel() * tensor.element_size(),), 0xAB, dtype=torch.uint8)
        late = late.view(tensor.dtype).view(tensor.shape)
        self._thread.queue.append((late, tensor.clone(), False))
        return late

    def mark(self):
        queue = self._thread.queue

        def wait():
            self.events.append("wait")
            for there, then, is_given in queue:
                if is_given:
                    assert raw(there) == raw(then), "a buffer was used again before its copy was waited for"
                else:
                    there.copy_(then)

        return wait


@pytest.fixture
def on(monkeypatch):
    """Builds that ask for a device get this one."""

    def use(late):
        monkeypatch.setattr(device, "choose", lambda name, steps: late.record if name == "cuda" else None)
        return late

    return use


def source_of(folder, stored, values):
    form = FORMATS[stored.format]
    matrix = form.matrix_parts(tuple(values.shape), stored, values.abs().amax() if form.needs_amax(stored) else None)
    parts = matrix | form.encode(values, stored, matrix)
    return checkpoint(folder, {f"{n}.{s}": t.clone() for n in "ab" for s, t in parts.items()})


def steps_of(source, stored, wanted, shape=SHAPE):
    return plan(source, [Step(moves=(move(source, n, shape, stored, wanted),)) for n in "ab"])


def files(draft):
    return {p.name: p.read_bytes() for p in draft.path.iterdir()}


@pytest.mark.parametrize(("stored", "wanted"), PAIRS, ids=str)
@pytest.mark.parametrize("workers", [1, 3])
def test_a_device_changes_no_byte(tmp_path, on, monkeypatch, stored, wanted, workers):
    late = on(Late())
    source = source_of(tmp_path / "source", stored, weight(*SHAPE).float())
    made = steps_of(source, stored, wanted)
    here = build(made, {"source": source}, tmp_path / "here", check="off")
    assert not late.copies
    monkeypatch.setattr(executing.Executor, "_plain", None)  # nothing is left to the plain path
    there = build(made, {"source": source}, tmp_path / "there", check="off", workers=workers, device="cuda")
    assert files(there) == files(here)
    assert late.events.count("wait") == 2 * 5 * (2 if FORMATS[wanted.format].needs_amax(wanted) else 1)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("source", "target", "scales"), TINY)
def test_layouts_of_the_tiny_model_change_no_byte(tinyglm, tmp_path, on, source, target, scales):
    late = on(Late())
    stored, served = open_checkpoint(str(tinyglm(source))), open_checkpoint(str(tinyglm(target)))
    decided, given = planned(stored, served, scales=scales), {"source": stored, "target": served}
    here = build(decided, given, tmp_path / "here", check="off")
    there = build(decided, given, tmp_path / "there", check="off", device="cuda")
    assert files(there) == files(here)
    assert bool(late.copies) == (source != target)


def test_the_next_band_is_read_while_the_device_works(tmp_path, on, monkeypatch):
    late = on(Late())
    source = source_of(tmp_path / "source", DENSE, weight(*SHAPE).float())
    band = OpenWeight.band
    monkeypatch.setattr(OpenWeight, "band", lambda *a: late.events.append(f"read {a[1]}") or band(*a))
    build(steps_of(source, DENSE, INT4), {"source": source}, tmp_path / "draft", check="off", workers=1, device="cuda")
    ahead = ["read 0", "read 128", "wait", "read 256", "wait", "read 384", "wait", "read 512", "wait", "wait"]
    assert late.events == ahead * 2


def test_one_buffer_would_be_noticed(tmp_path, on, monkeypatch):
    on(Late())
    source = source_of(tmp_path / "source", DENSE, weight(*SHAPE).float())
    monkeypatch.setattr(building, "Buffers", lambda count, allocate: Buffers(1, allocate))
    with pytest.raises(AssertionError, match="used again before its copy"):
        build(steps_of(source, DENSE, INT4), {"source": source}, tmp_path / "draft", check="off", device="cuda")


@pytest.mark.parametrize("how", ["cuda", "cpu"])
def test_an_interrupted_build_goes_on_on_either(tmp_path, on, monkeypatch, how):
    late = on(Late())
    source = source_of(tmp_path / "source", MODELOPT, weight(*SHAPE).float())
    made = steps_of(source, MODELOPT, INT4)
    whole = build(made, {"source": source}, tmp_path / "whole", check="off")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 25, KeyboardInterrupt())
        with pytest.raises(MtpforgeError, match="interrupted") as caught:
            build(made, {"source": source}, tmp_path / "draft", check="off", workers=1, device="cuda")
    assert "1 finished steps are kept" in caught.value.why
    before = late.copies
    draft = build(made, {"source": source}, tmp_path / "draft", check="off", workers=1, device=how)
    assert files(draft) == files(whole)
    assert before > 0
    assert late.copies - before == (5 * 4 if how == "cuda" else 0)  # one step: parts of five bands, one matrix part


FULL = (
    "error: the memory of late:0 is full\nwhere: option `--device`\ncause: CUDA out of memory. Tried 16 MiB\n"
    " hint: fewer `--workers`, or `--device cpu`, which goes on with what is finished and makes the same bytes"
)
FAILED = (
    "error: late:0 failed\nwhere: option `--device`\ncause: CUDA error: an illegal memory access was encountered\n"
    " hint: `--device cpu`, which goes on with what is finished and makes the same bytes"
)


@pytest.mark.parametrize(
    ("failure", "text"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried 16 MiB\nmore"), FULL),
        (RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with ..."), FAILED),
    ],
    ids=["memory", "access"],
)
def test_a_device_that_fails_publishes_nothing_and_a_cpu_goes_on(tmp_path, on, monkeypatch, failure, text):
    source = source_of(tmp_path / "source", MODELOPT, weight(*SHAPE).float())
    made = steps_of(source, MODELOPT, INT4)
    whole = build(made, {"source": source}, tmp_path / "whole", check="off")
    on(Late(failure, at=30))
    with pytest.raises(MtpforgeError) as caught:
        build(made, {"source": source}, tmp_path / "draft", check="off", workers=1, device="cuda")
    assert (str(caught.value), caught.value.code) == (text, 5)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".draft.mtpforge-tmp", "source", "whole"]
    written = []
    encode = executing.Executor._encode
    monkeypatch.setattr(executing.Executor, "_encode", lambda *a: written.append(a[1].module) or encode(*a))
    assert files(build(made, {"source": source}, tmp_path / "draft", check="off", workers=1)) == files(whole)
    assert written == ["b"]


def test_a_bug_is_not_blamed_on_the_device(tmp_path, on):
    on(Late(RuntimeError("shapes differ"), at=3))
    source = source_of(tmp_path / "source", DENSE, weight(*SHAPE).float())
    with pytest.raises(RuntimeError, match="shapes differ"):
        build(steps_of(source, DENSE, INT4), {"source": source}, tmp_path / "draft", check="off", device="cuda")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def bad_dense(number, dtype):
    values = weight(*SHAPE).to(dtype)
    values[300, 7] = number
    return values


@pytest.mark.parametrize(
    ("stored", "wanted", "number"),
    [
        (DENSE, INT4, float("nan")),
        (DENSE, NVFP4, float("inf")),
        (F32, DENSE, float("nan")),
        (F32, DENSE, 3.4e38),
        (F32, F16, 1e6),
    ],
    ids=str,
)
def test_what_a_build_refuses_is_told_in_the_same_words(tmp_path, on, stored, wanted, number):
    late = on(Late())
    values = bad_dense(number, {DENSE: torch.bfloat16, F32: torch.float32}[stored])
    source = checkpoint(tmp_path / "source", {f"{n}.weight": values.clone() for n in "ab"})
    told = []
    for how in ("cpu", "cuda"):
        made, given = steps_of(source, stored, wanted), {"source": source}
        with pytest.raises(MtpforgeError) as caught:
            build(made, given, tmp_path / "draft", check="off", workers=1, device=how)
        told.append((str(caught.value), caught.value.code))
        assert [p.name for p in tmp_path.iterdir()] == ["source"]
    assert told[0] == told[1]
    assert "tensor a.weight" in told[0][0]
    assert late.copies


def test_the_reference_check_sees_what_the_device_decoded(tmp_path, on, monkeypatch):
    monkeypatch.setattr(building, "ReferenceCheck", Library)
    source = source_of(tmp_path / "source", MODELOPT, weight(*SHAPE).float())
    made = steps_of(source, MODELOPT, NVFP4)
    build(made, {"source": source}, tmp_path / "here", check="full")
    expected = Library.digests
    on(Late())
    build(made, {"source": source}, tmp_path / "there", check="full", device="cuda")
    assert Library.digests == expected
    monkeypatch.setattr(Band, "decoded", lambda *a, real=Band.decoded: real(*a) * 2)
    build(made, {"source": source}, tmp_path / "wrong", check="full", device="cuda")
    assert expected.keys() == Library.digests.keys()
    assert expected != Library.digests


def plan_of(n_weights):
    return (Step(moves=(SimpleNamespace(action="encode", shape=(n_weights >> 10, 1 << 10)),)),)


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(MtpforgeError) as caught:
        device.choose("cuda", ())
    assert str(caught.value) == (
        "error: there is no device cuda\nwhere: option `--device`\n"
        f"cause: torch {torch.__version__} is built without CUDA and finds 0 devices\n"
        " hint: `--device cpu` makes the same bytes"
    )
    assert caught.value.code == 5
    assert device.choose("auto", plan_of(1 << 40)) is None
    assert device.choose("cpu", plan_of(1 << 40)) is None


def test_auto_takes_a_gpu_where_there_is_one_and_enough_to_do(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert device.choose("auto", plan_of(device.WORTH_A_GPU)).name == "cuda:0"
    assert device.choose("auto", plan_of(device.WORTH_A_GPU - 1024)) is None
    assert device.choose("cuda:1", ()).name == "cuda:1"
    with pytest.raises(MtpforgeError, match="there is no device cuda:2") as caught:
        device.choose("cuda:2", ())
    assert "is built for CUDA 13.0 and finds 2 devices" in caught.value.why


@pytest.mark.gpu
@pytest.mark.parametrize(("source", "target", "scales"), TINY)
def test_a_gpu_changes_no_byte(tinyglm, tmp_path, source, target, scales):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    stored, served = open_checkpoint(str(tinyglm(source))), open_checkpoint(str(tinyglm(target)))
    decided, given = planned(stored, served, scales=scales), {"source": stored, "target": served}
    here = build(decided, given, tmp_path / "here", check="full")
    there = build(decided, given, tmp_path / "there", check="full", device="cuda", workers=3)
    assert files(there) == files(here)
