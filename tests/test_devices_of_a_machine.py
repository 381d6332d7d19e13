"""What doctor says of GPUs: a tool in the place of the driver's prints what drivers print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

from mtpforge.drafting import devices, kernels, machine
from mtpforge.engines import ENGINES
from mtpforge.errors import MtpforgeError
from mtpforge.report import Check, plain

SPARK = devices.Gpu("NVIDIA GB10", "12.1", None, "580.95.05", None, None)


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """Puts an `nvidia-smi` before all others that prints these lines, and notes what it was asked."""

    def install(lines: str, code: int = 0, stream: int = 1) -> None:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\necho \"$@\" > {tmp_path}/asked\ncat >&{stream} <<'END'\n{lines}END\nexit {code}\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return install


def test_gpus_are_told_one_a_line(driver, tmp_path):
    driver("NVIDIA H200, 9.0, 143771, 570.124.06, 1980, 345\nNVIDIA H200, 9.0, 143771, 570.124.06, 1980, 345\n")
    first, second = devices.gpus()
    assert first == second == devices.Gpu("NVIDIA H200", "9.0", 143771 * 1024**2, "570.124.06", 1980, 345)
    assert [check.detail for check in devices.checks((first, second))[:2]] == [
        "NVIDIA H200, sm_90, 140.40 GiB, driver 570.124.06, up to 1,980 MHz, now at 345"
    ] * 2
    assert "memory of a server" not in [check.name for check in devices.checks((first, second))]
    assert "--format=csv,noheader,nounits" in (tmp_path / "asked").read_text()


def test_memory_that_is_shared_with_the_cpu_is_no_zero(driver):
    driver("NVIDIA GB10, 12.1, [N/A], 580.95.05, [N/A], [N/A]\n")
    (found,) = devices.gpus()
    assert (found.capability, found.memory_bytes, found.megahertz) == ("12.1", None, None)
    assert found.told == "NVIDIA GB10, sm_121, memory shared with the CPU or not told, driver 580.95.05"


@pytest.mark.parametrize(
    ("lines", "code", "stream", "said"),
    [
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", 9, 1, "has failed because"),
        ("No devices were found\n", 6, 2, "No devices were found"),
        ("", 0, 1, "it ends with 0"),
        ("a, b\n", 0, 1, "tells of none"),
    ],
)
def test_a_driver_that_does_not_work_is_said_and_fails_nothing(driver, lines, code, stream, said):
    driver(lines, code, stream)
    check = devices.checks(devices.gpus())[0]
    assert (check.name, check.verdict) == ("GPU", "not checked")
    assert said in check.detail
    assert machine.doctor().ok


def test_a_machine_without_the_tool_says_so(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert devices.gpus() == "no `nvidia-smi` on PATH"
    names = [check.name for check in devices.checks(devices.gpus())]
    assert names == ["GPU", "memory", "disk"]


MEMINFO = "MemTotal: 125829120 kB\nMemFree: {} kB\nMemAvailable: 115343360 kB\nCached: 20971520 kB\n"


@pytest.mark.parametrize(
    ("text", "verdict", "said"),
    [
        (MEMINFO.format(113246208), "passed", "108.00 GiB of 120.00 GiB free, 20.00 GiB of the rest page cache"),
        (MEMINFO.format(113246207), "warning", "; a server is given 90% on spark-x2 and spark-x4, and"),  # a KiB less
        (MEMINFO.format(100663296), "warning", "; a server is given 90% on spark-x2 and spark-x4, and"),
        (MEMINFO.format(100663295), "warning", "given 80% on spark-x1, 90% on spark-x2 and spark-x4, and"),
        (MEMINFO.format(94371839), "warning", "given 75% on spark-x8, 80% on spark-x1, 90% on spark-x2 and"),
        ("MemTotal: much\n", "not checked", "does not tell"),
    ],
)
def test_page_cache_in_the_gpu_s_memory_is_told(monkeypatch, tmp_path, text, verdict, said):
    (tmp_path / "meminfo").write_text(text)
    monkeypatch.setattr(devices, "_MEMORY", tmp_path / "meminfo")
    (check,) = [c for c in devices.checks((SPARK,)) if c.name == "memory of a server"]
    assert check.verdict == verdict
    assert said in check.detail
    assert ("drop_caches" in check.fix) == (verdict == "warning")


def rows(report):
    return [(check.name, check.verdict, check.detail) for check in report.checks]


TABLES = {
    "versions": {"vllm": "0.33.0", "torch": "2.13.0+cu130"},
    "methods": {"awq": 75, "fp_quant": 100, "compressed-tensors": 70},
    "schemes": {"W8A8Fp8": 89},
    "kernels": {"fp8": ["Marlin"], "mxfp6": []},
}


@pytest.fixture
def engine(monkeypatch):
    """vLLM answers with a table, SGLang is not there; what was asked."""
    asked = []

    def tables(capability, python):
        asked.append((capability, python))
        return TABLES

    def none(*_):
        raise MtpforgeError("no engine found to ask", code=5)

    told = {"vllm": replace(ENGINES["vllm"], tables=tables), "sglang": replace(ENGINES["sglang"], tables=none)}
    monkeypatch.setattr(kernels, "ENGINES", told)
    return asked


def test_kernels_are_told_by_the_engine_s_own_tables(engine, driver):
    driver("NVIDIA A100, 8.0, 81920, 570, 1410, 210\nNVIDIA H200, 9.0, 143771, 570, 1980, 345\n")
    report = machine.doctor(sys.executable)
    assert engine == [(80, sys.executable)]  # the older GPU decides
    assert [row for row in rows(report) if row[0].startswith("vLLM")] == [
        ("vLLM, asked", "passed", f"0.33.0 in {sys.executable}, torch 2.13.0+cu130"),
        ("vLLM, quantization", "passed", "at sm_80: awq, compressed-tensors"),
        ("vLLM, quantization", "warning", "wants a newer GPU for fp_quant (sm_100)"),
        ("vLLM, compressed-tensors", "warning", "wants a newer GPU for W8A8Fp8 (sm_89)"),
        ("vLLM, fp8", "passed", "Marlin"),
        ("vLLM, mxfp6", "warning", "no kernel at this capability"),
    ]
    assert plain(report)["facts"]["engines"] == {"vLLM": TABLES | {"python": sys.executable}}
    assert [gpu["capability"] for gpu in plain(report)["facts"]["gpus"]] == ["8.0", "9.0"]


def test_without_a_gpu_least_capabilities_are_told_and_no_kernel(engine, monkeypatch):
    monkeypatch.setattr(devices, "gpus", lambda: "no `nvidia-smi` on PATH")
    told = rows(machine.doctor(sys.executable))
    assert [(verdict, detail) for name, verdict, detail in told if name == "vLLM, quantization"] == [
        ("not checked", "from sm_70: compressed-tensors"),
        ("not checked", "from sm_75: awq"),
        ("not checked", "from sm_100: fp_quant"),
    ]
    (asked,) = [detail for name, _, detail in told if name == "vLLM, asked"]
    assert asked.endswith("; no GPU is known here: the least capability of each is told")
    assert "vLLM, fp8" not in {name for name, *_ in told}


def test_an_engine_that_was_asked_is_not_said_to_be_absent(engine, monkeypatch):
    monkeypatch.setattr(machine, "versions", lambda: {"vllm": "", "sglang": ""})
    assert "vllm" not in {name for name, *_ in rows(machine.doctor(sys.executable))}
    assert ("sglang", "not checked", "not installed here") in rows(machine.doctor(sys.executable))
    monkeypatch.setattr(machine, "versions", lambda: {"vllm": "0.30.0"})
    assert ("vllm", "passed", "0.30.0") in rows(machine.doctor(sys.executable))


def test_long_lists_are_told_in_rows_that_a_terminal_has_room_for(engine, driver, monkeypatch):
    methods = {f"method_{number:02}": 75 for number in range(40)}
    told = {"vllm": replace(ENGINES["vllm"], tables=lambda *_: {"methods": methods})}
    monkeypatch.setattr(kernels, "ENGINES", told)
    driver("NVIDIA H200, 9.0, 143771, 570, 1980, 345\n")
    report = machine.doctor(sys.executable)
    details = [detail for name, _, detail in rows(report) if name == "vLLM, quantization"]
    assert len(details) > 3
    assert max(map(len, details)) < 110
    assert ", ".join(detail.removeprefix("at sm_90: ") for detail in details) == ", ".join(methods)
    (asked,) = [detail for name, _, detail in rows(report) if name == "vLLM, asked"]
    assert asked == f"version unknown in {sys.executable}"


def broken(*_):
    raise MtpforgeError("the engine's loader ended without a verdict", why="exit 1: boom", fix="try it", code=5)


def test_an_engine_that_fails_is_said_beside_one_that_answers(engine, monkeypatch):
    both = {name: replace(each, tables=broken) for name, each in kernels.ENGINES.items() if name == "sglang"}
    monkeypatch.setattr(kernels, "ENGINES", kernels.ENGINES | both)
    report = machine.doctor(sys.executable)
    (found,) = [check for check in report.checks if check.name.startswith("SGLang")]
    assert found == Check(
        "SGLang, tables", "not checked", "the engine's loader ended without a verdict: exit 1: boom", "try it"
    )
    assert plain(report)["facts"]["engines"] == {"vLLM": TABLES | {"python": sys.executable}}


def test_of_two_that_do_not_answer_the_one_that_is_there_is_told(engine, monkeypatch):
    """vLLM, asked first, is not installed; SGLang is, and its tables die."""
    absent = kernels.ENGINES["sglang"].tables
    told = {"vllm": replace(ENGINES["vllm"], tables=absent), "sglang": replace(ENGINES["sglang"], tables=broken)}
    monkeypatch.setattr(kernels, "ENGINES", told)
    with pytest.raises(MtpforgeError, match="ended without a verdict"):
        machine.doctor(sys.executable)


def test_methods_that_an_engine_could_not_ask_are_named(engine, monkeypatch):
    lacking = {"torchao": "ImportError: no torchao"}
    told = {"vllm": replace(ENGINES["vllm"], tables=lambda *_: TABLES | {"missing": lacking})}
    monkeypatch.setattr(kernels, "ENGINES", told)
    (found,) = [check for check in machine.doctor(sys.executable).checks if check.name == "vLLM, not asked"]
    assert (found.verdict, found.detail) == ("not checked", "torchao (ImportError: no torchao)")


def test_an_engine_that_is_there_and_cannot_be_imported_is_not_called_absent(tmp_path, monkeypatch):
    (tmp_path / "sglang").mkdir()
    (tmp_path / "sglang/__init__.py").write_text("raise ImportError('libcuda.so.1: cannot open')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(MtpforgeError, match="ended without a verdict") as refused:
        machine.doctor(sys.executable)
    assert "exit 3: ImportError: libcuda.so.1: cannot open" in refused.value.why


def test_interpreter_without_an_engine_is_refused(engine, monkeypatch):
    monkeypatch.setattr(kernels, "ENGINES", {"sglang": kernels.ENGINES["sglang"]})
    with pytest.raises(MtpforgeError, match="no engine found to ask"):
        machine.doctor(sys.executable)
    with pytest.raises(MtpforgeError, match="no engine found to ask"):
        machine.doctor("/nope")


def test_extras_and_nccl_are_told_with_their_versions(monkeypatch):
    rows = ["torch>=2.5", "matplotlib>=3.8; extra == 'plots'", 'nope-nope>=1; extra == "gguf"', "ruff; extra == 'dev'"]
    monkeypatch.setattr(machine, "requires", lambda _: rows)
    told = {check.name: (check.verdict, check.detail) for check in machine._extras()}
    assert told == {
        "matplotlib, for plots": ("passed", version("matplotlib")),
        "nope-nope, for gguf": ("not checked", "not installed; `pip install 'mtpforge[gguf]'` brings it"),
    }
    package = SimpleNamespace(metadata={"Name": "nvidia-nccl-cu13"})
    monkeypatch.setattr(machine, "distributions", lambda: [package])
    monkeypatch.setattr(machine, "version", lambda name: {"nvidia-nccl-cu13": "2.27.5"}[name])
    assert machine._nccl() == Check("NCCL", "passed", "2.27.5 (nvidia-nccl-cu13)")
    monkeypatch.setattr(machine, "distributions", list)
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda _: SimpleNamespace(ncclGetVersion=answers(22_304)))
    assert machine._nccl().detail == "2.23.4 (libnccl.so.2)"


def answers(number):
    def get(reference):
        reference._obj.value = number
        return 0

    return get


@pytest.mark.engine
@pytest.mark.parametrize(
    ("name", "variable"), [("vllm", "MTPFORGE_TEST_ENGINE_PYTHON"), ("sglang", "MTPFORGE_TEST_SGLANG_PYTHON")]
)
def test_an_engine_s_tables_are_those_of_its_source(name, variable):
    """The numbers stand in the engine's files, which are read here as text."""
    python = os.environ[variable]
    told = ENGINES[name].tables(90, python)
    package = {"vllm": "vllm/model_executor/layers/quantization", "sglang": "sglang/srt/layers/quantization"}[name]
    prefix = subprocess.run(
        [python, "-c", "import sys; print(sys.prefix)"], check=True, capture_output=True, text=True
    ).stdout.strip()
    (home,) = Path(prefix).glob(f"lib/python*/site-packages/{package}")
    scheme = home / "compressed_tensors" / "schemes" / "compressed_tensors_w8a8_fp8.py"
    (least,) = set(re.findall(r"def get_min_capability.*?return (\d+)", scheme.read_text(), flags=re.DOTALL))
    assert told["schemes"]["CompressedTensorsW8A8Fp8"] == int(least)
    assert {"compressed-tensors", "awq"} <= set(told["methods"])
    if name == "vllm":
        older = ENGINES[name].tables(75, python)["kernels"]
        assert "CutlassFP8ScaledMMLinearKernel" in told["kernels"]["fp8"]
        assert "CutlassFP8ScaledMMLinearKernel" not in older["fp8"]
        assert older["int4, groups of 32, zero points"] == ["MarlinLinearKernel"]
        # On Hopper vLLM prefers Triton for BF16, says oracle/unquantized.py; activations of four bits are Blackwell's.
        newer = ENGINES[name].tables(100, python)["kernels"]
        chosen = [of["experts, nvfp4"] for of in (older, told["kernels"], newer)]
        assert (told["kernels"]["experts, bf16"], chosen) == (["TRITON"], [["MARLIN"], ["MARLIN"], ["VLLM_CUTLASS"]])
        assert "experts" not in told["missing"]
