"""`--device` on the command line."""

import pytest
import torch

from mtpforge.building import device


@pytest.fixture
def sides(tinyglm):
    return "--source", tinyglm("bf16"), "--target", tinyglm("awq-int4")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "CUDA", "cuda:1234"])
def test_a_name_that_is_no_device_is_refused(run, sides, in_folder, name):
    ran = run("build", *sides, "--device", name)
    assert ran.code == 2
    assert f"`{name}` is no device" in ran.err
    assert not any(in_folder.iterdir())


@pytest.mark.parametrize("more", [(), ("--dry-run",)], ids=str)
@pytest.mark.parametrize("command", ["build", "extract"])
def test_a_device_that_is_not_there_ends_with_5_at_once(run, tinyglm, in_folder, monkeypatch, command, more):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    target = ("--target", tinyglm("awq-int4")) if command == "build" else ()
    ran = run(command, "--source", tinyglm("bf16"), *target, "--device", "cuda:1", "-o", "draft", *more)
    assert ran.code == 5
    assert not ran.out
    assert "there is no device cuda:1" in ran.err
    assert "`--device cpu` makes the same bytes" in ran.err
    assert not any(in_folder.iterdir())


def test_the_name_reaches_the_build(run, sides, in_folder, monkeypatch):
    asked = []
    monkeypatch.setattr(device, "choose", lambda name, steps: asked.append((name, bool(steps))))
    assert run("build", *sides, "--device", "auto", "--check", "off", "-o", "one").code == 0
    assert run("build", *sides, "--check", "off", "-o", "two").code == 0
    assert asked == [("auto", True), ("cpu", True)]
