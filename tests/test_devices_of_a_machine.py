"""What doctor says of GPUs: a tool in the place of the driver's prints what drivers print."""

from __future__ import annotations

import os

import pytest

from mtpforge.drafting import devices, machine


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
    driver("NVIDIA H200, 9.0, 143771, 570.124.06, 1980\nNVIDIA H200, 9.0, 143771, 570.124.06, 1980\n")
    first, second = devices.gpus()
    assert first == second == devices.Gpu("NVIDIA H200", "9.0", 143771 * 1024**2, "570.124.06", 1980)
    assert [check.detail for check in devices.checks()[:2]] == [
        "NVIDIA H200, sm_90, 140.40 GiB, driver 570.124.06, up to 1,980 MHz"
    ] * 2
    assert "--format=csv,noheader,nounits" in (tmp_path / "asked").read_text()


def test_memory_that_is_shared_with_the_cpu_is_no_zero(driver):
    driver("NVIDIA GB10, 12.1, [N/A], 580.95.05, [N/A]\n")
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
    check = devices.checks()[0]
    assert (check.name, check.verdict) == ("GPU", "not checked")
    assert said in check.detail
    assert machine.doctor().ok


def test_a_machine_without_the_tool_says_so(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert devices.gpus() == "no `nvidia-smi` on PATH"
    names = [check.name for check in devices.checks()]
    assert names == ["GPU", "memory", "disk"]
