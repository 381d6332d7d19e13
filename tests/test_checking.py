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
import whole_weights
from safetensors.torch import save_file

from mtpforge import checking, formats
from mtpforge.checking import Sample, comparing, libraries, plain
from mtpforge.checking import __main__ as child
from mtpforge.checking.parts import Part
from mtpforge.errors import MtpforgeError
from mtpforge.report import Progress
from mtpforge.tensors import Quantization, Spec, TensorRef

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
STORED = [
    INT4,
    INT3,
    INT8,
    BLOCK,
    *SCALED,
    NVFP4,
    MODELOPT,
    *whole_weights.MICROSCALED,
    *whole_weights.OTHER_SHAPES[:2],
]
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
    parts = [whole_weights.encode([weight * 0.02], quantization)[0] for quantization in STORED]
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
        s.key: digest(whole_weights.decode(p, (ROWS, COLUMNS), s.quantization)[slice(*s.rows)])
        for s, p in zip(samples, parts, strict=True)
    }
    return path, samples, digests


def started(samples, paths, mode="sample"):
    """A check that runs: by the libraries, unless everything of a little is compared."""
    check = checking.ReferenceCheck(checking.Selection(mode, tuple(samples)))
    check.begin(paths)
    return check


def digest(values):
    return hashlib.sha256(checking.bf16_bytes(values)).hexdigest()


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    """A file of NVFP4 and the samples of it.

    Rows: every scale that is a number. Columns: every code in either nibble. Matrices: global scales of any size.
    """
    path = tmp_path_factory.mktemp("every") / "every.safetensors"
    low = torch.arange(16, dtype=torch.uint8)
    packed = torch.cat([low | (low << 4), low | ((15 - low) << 4)])[None]  # 64 columns, four blocks
    scales = torch.tensor([byte for byte in range(256) if byte & 127 != 127], dtype=torch.uint8)
    codes = packed.expand(len(scales), -1)
    held = scales[:, None].expand(-1, 4).contiguous().view(torch.float8_e4m3fn)
    tensors = {}
    for name, weight, scale, shape, extreme in (
        ("x", "weight", "weight_scale_2", (), 1e-45),
        ("y", "weight_packed", "weight_global_scale", (1,), 3e38),
    ):
        for number, factor in enumerate((extreme, 1e-35, 3.3e-5, 0.1, 1.0, 7.7, 1e30)):
            parts = {weight: codes.clone(), "weight_scale": held.clone(), scale: torch.full(shape, factor)}
            tensors |= {f"{name}{number}.{suffix}": tensor for suffix, tensor in parts.items()}
    save_file(tensors, path)
    parts = {}
    for ref in refs(path).values():
        parts.setdefault(ref.name.partition(".")[0], {})[ref.name.partition(".")[2]] = ref
    kinds = {"x": MODELOPT, "y": NVFP4}
    shape = (len(scales), 64)
    samples = [Sample(n, (q := kinds[n[0]]).format, q, shape, parts[n], (0, shape[0])) for n in sorted(parts)]
    return path, samples


def plain_digest(sample, path):
    parts = {s: Part(str(path), r.spec.dtype, r.spec.shape, r.start) for s, r in sample.reads.items()}
    return hashlib.sha256(plain.decode(sample.format, parts, sample.rows)).hexdigest()


@pytest.mark.slow
def test_every_format_and_the_plain_decoders_equal_the_libraries(stored, every):
    """One child for all: the libraries take long to load."""
    path, samples, digests = stored
    other, codes = every
    plainly = {s.key: plain_digest(s, other) for s in codes}
    with started([*samples, *codes], {path.name: path, other.name: other}) as check:
        result = check.finish(digests | plainly)
    assert result.n_tensors == len(STORED) + len(codes)
    assert result.n_elements == sum((s.rows[1] - s.rows[0]) * s.shape[1] for s in [*samples, *codes])
    assert sorted(result.libraries) == ["compressed-tensors", "nvidia-modelopt"]


class Library:
    """In place of the child: answers for the library, from values given."""

    def __init__(self, values):
        self.values = values.bfloat16()

    def __call__(self, samples, *, little):
        return self

    def ask(self, line):
        pass

    def answers(self, on_progress=None):
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
    check = started([sample], {path.name: path})
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
    check = started(samples[:1], {path.name: path})
    with pytest.raises(MtpforgeError) as caught:
        check.finish({samples[0].key: digest(ours + 1)})
    assert str(caught.value) == (
        "error: `m0` was decoded from other bytes than the file holds now\n"
        "where: model.safetensors, m0\n"
        "cause: mtpforge and nvidia-modelopt 0.47.0 agree on the file; it changed while it was read, or memory is"
        " faulty\n"
        " hint: build again; if it comes back, test the memory and the disk of this machine"
    )


@pytest.mark.slow
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
    found = started([], {path.name: path})._difference(sample)
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
        started(samples[:1], {path.name: path}) as check,
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
    with started(samples, {path.name: path}) as check:
        check._child._process.kill()
        with pytest.raises(MtpforgeError) as caught:
            check.finish(digests)
    assert str(caught.value) == (
        "error: the reference check ended before it was done\n"
        "cause: killed by signal 9\n"
        " hint: `--check off` builds without the comparison"
    )


@pytest.mark.slow
def test_a_source_that_is_gone_is_the_child_s_error(stored, tmp_path):
    path, samples, digests = stored
    with (
        started(samples[:1], {path.name: tmp_path / "gone"}) as check,
        pytest.raises(MtpforgeError) as caught,
    ):
        check.finish(digests)
    assert "cause: FileNotFoundError: [Errno 2] No such file or directory" in str(caught.value)


def test_leaving_the_check_ends_the_child(stored):
    path, samples, _ = stored
    with started(samples, {path.name: path}) as check:
        process = check._child._process
        assert process.poll() is None
    assert process.poll() is not None


def test_the_child_ends_with_its_parent(stored, tmp_path):
    """A parent that is killed leaves no process behind: the child's stdin ends with it."""
    path, samples, _ = stored
    request = tmp_path / "request"
    lines = comparing.opening(samples, little=False), comparing.request(samples, {path.name: path}, values=False)
    request.write_bytes(b"".join(lines))
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
    pid = int(parent.stdout.readline())
    assert Path(f"/proc/{pid}").exists()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 30
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(pid)


def alive(pid):
    """Whether a process runs; a zombie waits only for whoever inherited it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_nothing_to_compare_starts_no_child():
    check = started([], {})
    assert check._child is None
    assert check.finish({}) == checking.CheckResult(0, 0, {})


def test_the_child_shares_no_decoder_with_us():
    """What it imports of mtpforge: dtype names, nothing that decodes or lays out."""
    package = Path(checking.__file__).parent
    for name in ("__main__", "libraries", "plain", "parts"):
        tree = ast.parse((package / f"{name}.py").read_text())
        found = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        found |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        ours = {module for module in found if module.startswith("mtpforge")}
        assert ours <= {"mtpforge.tensors", "mtpforge.checking", "mtpforge.checking.parts"}, name


def test_the_child_says_how_far_it_is_while_it_is_waited_for(stored):
    path, samples, digests = stored
    samples = [sample for sample in samples if sample.quantization in {NVFP4, MODELOPT}]
    heard = []
    with started(samples, {path.name: path}, "full") as check:
        check.finish(digests, heard.append)
    assert heard[0] == Progress("check", 0, len(samples), "items")
    assert heard[-1] == Progress("check", len(samples), len(samples), "items")
    assert [step.done for step in heard] == sorted(step.done for step in heard)


# ---- a little, by plain decoders


def test_a_little_nvfp4_is_compared_without_a_library(stored, monkeypatch):
    path, samples, digests = stored
    usual = comparing._environment()
    # a folder of that name that cannot be imported stands before the real ones
    broken = path.parent / "broken"
    broken.mkdir()
    for library in ("torch", "modelopt", "compressed_tensors"):
        (broken / f"{library}.py").write_text(f"raise ImportError({library!r})\n")
    search = f"{broken}{os.pathsep}{usual['PYTHONPATH']}"
    monkeypatch.setattr(comparing, "_environment", lambda: usual | {"PYTHONPATH": search})
    few = [sample for sample in samples if sample.quantization in {NVFP4, MODELOPT}]
    with started(few, {path.name: path}, "full") as check:
        result = check.finish(digests)
    assert result.libraries == {"a plain decoder of NVFP4 in numpy": version("numpy")}
    with (
        started(few, {path.name: path}, "full") as check,
        pytest.raises(MtpforgeError, match="decoded from other bytes") as caught,
    ):
        check.finish(digests | {few[0].key: ""})
    assert "a plain decoder of NVFP4 in numpy" in caught.value.why


def test_a_format_without_a_plain_decoder_asks_its_library_however_little(monkeypatch):
    loaded = []
    monkeypatch.setattr(libraries, "load", loaded.extend)
    decoders = child._loaded({"readers": ["int_quantized", "nvfp4"], "little": True})
    names = {name: decoder.name for name, decoder in decoders.items()}
    assert names == {"int_quantized": "compressed-tensors", "nvfp4": "a plain decoder of NVFP4 in numpy"}
    assert loaded == ["int_quantized"]
    child._loaded({"readers": ["int_quantized", "nvfp4"], "little": False})
    assert loaded == ["int_quantized", "int_quantized", "nvfp4"]
