"""Reference checks: equal digests pass, every difference and every dead child is named."""

import ast
import base64
import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mtpforge import checking, formats
from mtpforge.checking import Sample, choose, comparing
from mtpforge.errors import MtpforgeError
from mtpforge.tensors import BF16, Quantization, Spec, TensorRef

INT4 = Quantization("pack_quantized", 4, "", "group", 32, symmetric=False, scale_dtype="BF16")
INT3 = Quantization("pack_quantized", 3, strategy="channel", symmetric=False, scale_dtype="F16")
INT8 = Quantization("int_quantized", 8, strategy="channel", symmetric=False, scale_dtype="BF16")
BLOCK = Quantization("fp8_block", 8, strategy="block", block=(128, 128), scale_dtype="F32")
SCALED = [
    Quantization("fp8_scaled", 8, strategy=s, block=(128, 128) if s == "block" else None, scale_dtype="F32")
    for s in ("tensor", "channel", "block")
]
NVFP4 = formats.nvfp4.quantization(static=False)
MODELOPT = formats.modelopt_nvfp4.quantization(static=False)
STORED = [INT4, INT3, INT8, BLOCK, *SCALED, NVFP4, MODELOPT]
ROWS, COLUMNS = 300, 160


def refs(path):
    """TensorRefs of a safetensors file."""
    with path.open("rb") as file:
        n_bytes = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(n_bytes))
    header.pop("__metadata__", None)
    start = 8 + n_bytes
    return {
        name: TensorRef(
            name,
            Spec(entry["dtype"], tuple(entry["shape"])),
            path.name,
            *(start + offset for offset in entry["data_offsets"]),
        )
        for name, entry in header.items()
    }


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A file with one weight of every format, the samples of it, and our own digests."""
    path = tmp_path_factory.mktemp("stored") / "model.safetensors"
    weight = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(7))
    parts = [formats.encode([weight * 0.02], quantization)[0] for quantization in STORED]
    save_file({f"m{i}.{s}": t for i, tensors in enumerate(parts) for s, t in tensors.items()}, path)
    located = refs(path)
    samples = [
        Sample(
            f"m{i}",
            q.format,
            q,
            (ROWS, COLUMNS),
            {suffix: located[f"m{i}.{suffix}"] for suffix in parts[i]},
            (128, ROWS) if i % 2 else (0, ROWS),
        )
        for i, q in enumerate(STORED)
    ]
    digests = {
        s.key: digest(formats.decode(p, (ROWS, COLUMNS), s.quantization)[slice(*s.rows)])
        for s, p in zip(samples, parts, strict=True)
    }
    return path, samples, digests


def digest(values):
    return hashlib.sha256(checking.bf16_bytes(values)).hexdigest()


def test_every_format_equals_its_library(stored):
    path, samples, digests = stored
    with checking.ReferenceCheck(samples, {path.name: path}) as check:
        result = check.finish(digests)
    assert result.n_tensors == len(STORED)
    assert result.n_elements == sum((s.rows[1] - s.rows[0]) * COLUMNS for s in samples)
    assert sorted(result.libraries) == ["compressed-tensors", "nvidia-modelopt"]


class Library:
    """In place of the child: answers for the library, from values given."""

    def __init__(self, values):
        self.values = values.bfloat16()

    def __call__(self, samples, paths, *, values):
        return self

    def answers(self):
        raw = bytes(checking.bf16_bytes(self.values))
        answer = {"sha256": hashlib.sha256(raw).hexdigest(), "values": base64.b64encode(raw).decode()}
        return [answer], {"nvidia-modelopt": "0.47.0"}

    def kill(self):
        pass


def test_one_other_value_is_named_with_index_and_both_values(stored, monkeypatch):
    path, samples, _ = stored
    sample = samples[3]  # rows 128 to 300
    ours = comparing._decoded(sample, {path.name: path})
    theirs = ours.clone()
    theirs[5, 7], theirs[6, 8] = 0.5, 0.25
    assert not torch.equal(ours, theirs)
    monkeypatch.setattr(comparing, "_Child", Library(theirs))
    check = checking.ReferenceCheck([sample], {path.name: path})
    with pytest.raises(MtpforgeError) as caught:
        check.finish({sample.key: digest(ours)})
    assert str(caught.value) == (
        "error: `m3` decodes differently in mtpforge and in nvidia-modelopt 0.47.0\n"
        "where: model.safetensors, m3 [133, 7]\n"
        f"cause: mtpforge reads {ours[5, 7].bfloat16().item()!r}, nvidia-modelopt 0.47.0 0.5;"
        f" 2 of {172 * COLUMNS} values differ (fp8_block)\n"
        " hint: report this message; `--check off` builds without the comparison"
    )
    assert caught.value.code == 1


def test_other_bytes_in_what_the_build_read_are_named(stored, monkeypatch):
    path, samples, _ = stored
    ours = comparing._decoded(samples[0], {path.name: path})
    monkeypatch.setattr(comparing, "_Child", Library(ours))
    check = checking.ReferenceCheck(samples[:1], {path.name: path})
    with pytest.raises(MtpforgeError) as caught:
        check.finish({samples[0].key: digest(ours + 1)})
    assert str(caught.value) == (
        "error: `m0` was decoded from other bytes than the file holds now\n"
        "where: model.safetensors, m0\n"
        "cause: mtpforge and nvidia-modelopt 0.47.0 agree on the file; it changed while it was read, or memory is"
        " faulty\n"
        " hint: build again; if it comes back, test the memory and the disk of this machine"
    )


def test_the_real_library_finds_swapped_nibbles(stored, monkeypatch):
    """Two nibbles read the wrong way round; the child decodes again, for real, to name the first value."""
    path, samples, _ = stored
    sample = samples[STORED.index(NVFP4)]

    def swapped(parts, shape, quantization):
        packed = parts["weight_packed"].clone()
        packed[0, 0] = (packed[0, 0] >> 4) | (packed[0, 0] << 4)
        return formats.nvfp4.decode({**parts, "weight_packed": packed}, shape, quantization)

    ours = comparing._decoded(sample, {path.name: path})
    monkeypatch.setitem(formats.FORMATS, "nvfp4", replace(formats.nvfp4.FORMAT, decode=swapped))
    wrong = comparing._decoded(sample, {path.name: path})
    assert not torch.equal(wrong, ours)
    library = f"compressed-tensors {version('compressed-tensors')}"
    found = checking.ReferenceCheck([], {path.name: path})._difference(sample)
    assert str(found).splitlines()[:3] == [
        f"error: `{sample.module}` decodes differently in mtpforge and in {library}",
        f"where: model.safetensors, {sample.module} [{sample.rows[0]}, 0]",
        (
            f"cause: mtpforge reads {wrong[0, 0].bfloat16().item()!r}, {library} {ours[0, 0].bfloat16().item()!r};"
            f" 2 of {ours.numel()} values differ (nvfp4)"
        ),
    ]


def test_a_missing_library_says_how_to_go_on(stored, tmp_path, monkeypatch):
    """A folder of that name that cannot be imported stands before the real one."""
    path, samples, digests = stored
    (tmp_path / "compressed_tensors.py").write_text("raise ImportError(\"No module named 'compressed_tensors'\")\n")
    usual = comparing._environment()
    monkeypatch.setattr(
        comparing, "_environment", lambda: usual | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{usual['PYTHONPATH']}"}
    )
    with (
        checking.ReferenceCheck(samples[:1], {path.name: path}) as check,
        pytest.raises(MtpforgeError) as caught,
    ):
        check.finish(digests)
    assert str(caught.value) == (
        "error: a library that the reference check needs is missing\n"
        "cause: No module named 'compressed_tensors'\n"
        " hint: `pip install compressed-tensors nvidia-modelopt requests`, or `--check off` builds without the"
        " comparison"
    )
    assert caught.value.code == 5


def test_a_killed_child_is_an_error(stored):
    path, samples, digests = stored
    with checking.ReferenceCheck(samples, {path.name: path}) as check:
        check._child._process.kill()
        with pytest.raises(MtpforgeError) as caught:
            check.finish(digests)
    assert str(caught.value) == (
        "error: the reference check ended before it was done\n"
        "cause: killed by signal 9\n"
        " hint: `--check off` builds without the comparison"
    )


def test_a_source_that_is_gone_is_the_child_s_error(stored, tmp_path):
    path, samples, digests = stored
    with (
        checking.ReferenceCheck(samples[:1], {path.name: tmp_path / "gone"}) as check,
        pytest.raises(MtpforgeError) as caught,
    ):
        check.finish(digests)
    assert "cause: FileNotFoundError: [Errno 2] No such file or directory" in str(caught.value)


def test_leaving_the_check_ends_the_child(stored):
    path, samples, _ = stored
    with checking.ReferenceCheck(samples, {path.name: path}) as check:
        process = check._child._process
        assert process.poll() is None
    assert process.poll() is not None


def test_the_child_ends_with_its_parent(stored, tmp_path):
    """A parent that is killed leaves no process behind: the child's stdin ends with it."""
    path, samples, _ = stored
    request = tmp_path / "request"
    request.write_bytes(comparing.request(samples, {path.name: path}, values=False))
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            (
                "import subprocess, sys, time\n"
                "quiet = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL}\n"
                "command = [sys.executable, '-m', 'mtpforge.checking']\n"
                "child = subprocess.Popen(command, stdin=subprocess.PIPE, **quiet)\n"
                "child.stdin.write(open(sys.argv[1], 'rb').read()); child.stdin.flush()\n"
                "print(child.pid, flush=True); time.sleep(60)\n"
            ),
            str(request),
        ],
        stdout=subprocess.PIPE,
        env=comparing._environment(),
    )
    child = int(parent.stdout.readline())
    assert Path(f"/proc/{child}").exists()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 30
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(child)


def alive(pid):
    """Whether a process runs; a zombie waits only for whoever inherited it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_nothing_to_compare_starts_no_child():
    check = checking.ReferenceCheck([], {})
    assert check._child is None
    assert check.finish({}) == checking.CheckResult(0, 0, {})


def test_the_child_shares_no_decoder_with_us():
    """What it imports of mtpforge: dtype names, nothing that decodes or lays out."""
    package = Path(checking.__file__).parent
    for name, allowed in (("libraries", {"mtpforge.tensors"}), ("__main__", {"mtpforge.checking"})):
        tree = ast.parse((package / f"{name}.py").read_text())
        found = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert {module for module in found if module.startswith("mtpforge")} == allowed


# ---- choosing


def move(number, leaf, quantization, shape=(4096, 2048), kind="routed experts", **extra):
    from mtpforge.planning import Move

    form = formats.FORMATS[quantization.format]
    specs = form.layout(shape, quantization) | extra
    reads = {s: TensorRef(s, spec, "f", 0, spec.n_bytes) for s, spec in specs.items()}
    module = f"mlp.experts.{number}.{leaf}"
    return Move(module, kind, shape, reads, quantization, quantization, "copy", (), "")


def name(sample):
    return f"{sample.module}[{sample.rows[0]}:{sample.rows[1]}]"


def steps(*moves):
    from mtpforge.planning import Step

    return [Step(moves=(m,)) for m in moves]


def test_a_small_layer_is_compared_whole():
    selection = choose(steps(move(0, "gate_proj", INT4), move(0, "up_proj", BLOCK)), "sample")
    assert selection.mode == "full"
    assert [name(s) for s in selection.samples] == [
        "mlp.experts.0.gate_proj[0:2048]",
        "mlp.experts.0.gate_proj[2048:4096]",
        "mlp.experts.0.up_proj[0:2048]",
        "mlp.experts.0.up_proj[2048:4096]",
    ]
    assert selection.bands == {f"mlp.experts.0.{leaf}": [(0, 2048), (2048, 4096)] for leaf in ("gate_proj", "up_proj")}


def test_a_sample_covers_every_kind_and_format_and_is_bounded():
    moves = [move(e, leaf, INT4) for e in range(64) for leaf in ("gate_proj", "up_proj")]
    moves += [move(0, "o_proj", BLOCK, (6144, 16384), "attention"), move(64, "up_proj", NVFP4)]
    selection = choose(steps(*moves), "sample")
    assert selection.mode == "sample"
    assert [name(s) for s in selection.samples] == [
        "mlp.experts.0.gate_proj[0:2048]",
        "mlp.experts.31.gate_proj[2048:4096]",
        "mlp.experts.63.gate_proj[2048:4096]",
        "mlp.experts.0.up_proj[0:2048]",
        "mlp.experts.31.up_proj[2048:4096]",
        "mlp.experts.63.up_proj[2048:4096]",
        "mlp.experts.0.o_proj[0:256]",
        "mlp.experts.0.o_proj[2816:3072]",
        "mlp.experts.0.o_proj[5888:6144]",
        "mlp.experts.64.up_proj[0:2048]",
        "mlp.experts.64.up_proj[2048:4096]",
    ]
    assert choose(steps(*moves), "sample") == selection
    assert len(choose(steps(*moves), "full").samples) == 2 * (len(moves) - 1) + 24


def test_what_cannot_be_compared_is_counted_by_reason():
    old = Quantization("pack_quantized", 3, "", "group", 32, scale_dtype="BF16")
    odd = [
        move(0, "gate_proj", BF16),
        move(1, "gate_proj", BF16),
        move(2, "gate_proj", INT4, weight_g_idx=Spec("I32", (2048,))),
        move(3, "gate_proj", old, weight_packed=Spec("I32", (4096, 205))),
    ]
    selection = choose(steps(*odd), "full")
    assert selection.samples == ()
    assert selection.uncompared == {
        "dense, nothing to decode": 2,
        "act-order, which compressed-tensors no longer reads": 1,
        "packed as compressed-tensors 0.17.1 and earlier did, which it no longer reads": 1,
    }


def test_off_chooses_nothing():
    assert choose(steps(move(0, "gate_proj", INT4)), "off") == checking.Selection("off", ())
