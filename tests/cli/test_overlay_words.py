"""What `serve` and `build` say of an overlay: that it was written, and what can be typed where it cannot be."""

from __future__ import annotations

import shutil

import pytest


@pytest.fixture
def pair(tinyglm):
    """A target, and a source of another scheme, which the target has to be restated for."""
    return str(tinyglm("awq-int4")), str(tinyglm("nvfp4"))


@pytest.fixture
def made(run, pair, tmp_path):
    """An NVFP4 draft beside the INT4 target."""
    target, source = pair
    ran = run("build", "--target", target, "--source", source, "--scheme", "nvfp4", "-o", str(tmp_path / "draft"))
    assert ran.code == 0
    return tmp_path / "draft"


def test_serve_says_that_it_wrote_a_folder_or_found_it(run, made, pair, tmp_path):
    asked = ("serve", str(made), "--target", pair[0], "--overlay", str(tmp_path / "told"), "--print")
    first, second = run(*asked), run(*asked)
    assert f"{tmp_path / 'told'} was written: links to the target, beside another config.json\n" in first.err
    assert f"{tmp_path / 'told'} is there already, and says what this draft needs\n" in second.err
    assert first.out == second.out
    assert str(tmp_path / "told") in first.out


def test_build_says_that_it_wrote_a_folder(run, pair, tmp_path):
    target, source = pair
    asked = ("--scheme", "nvfp4", "-o", str(tmp_path / "draft"), "--overlay", str(tmp_path / "told"))
    ran = run("build", "--target", target, "--source", source, *asked)
    assert f"overlay {tmp_path / 'told'} was written: " in ran.out


def test_serve_names_what_it_has_where_an_overlay_cannot_be_written(run, made, pair, tmp_path):
    target, source = pair
    link = tmp_path / "link"
    link.symlink_to(made)
    copied = shutil.copytree(target, tmp_path / "target")
    for out, said, hint in (
        (made, "the output exists and is no overlay", "remove it yourself, or choose another output with `--overlay`"),
        (
            source,
            "the output exists and is no overlay",
            "remove it yourself, or choose another output with `--overlay`",
        ),
        (copied, "the output is the target", "choose another output with `--overlay`"),
        (copied / "in", "the output lies in the folder of the target", "choose another output with `--overlay`"),
        (link, "the output is a link", "name the folder that it leads to, or another output, with `--overlay`"),
    ):
        ran = run("serve", str(made), "--target", str(copied), "--overlay", str(out), "--print")
        assert ran.code == 5
        assert f"error: {said}\n" in ran.err
        assert ran.err.endswith(f" hint: {hint}\n")
        assert "--force" not in ran.err


def test_serve_does_not_offer_to_remove_the_target_that_is_an_overlay(run, made, pair, tmp_path):
    told = str(tmp_path / "told")
    assert run("serve", str(made), "--target", pair[0], "--overlay", told, "--print").code == 0
    other = str(tmp_path / "bf16")
    assert run("build", "--target", told, "--source", pair[1], "--scheme", "bf16", "-o", other).code == 0
    ran = run("serve", other, "--target", told, "--overlay", told, "--print")
    assert ran.code == 5
    assert "error: the output is the target\n" in ran.err
    assert "rm -r" not in ran.err


def test_build_names_the_overlay_s_own_option(run, pair, tmp_path):
    target, source = pair
    told = tmp_path / "told"
    asked = ("--target", target, "--source", source, "--scheme", "nvfp4", "--overlay", str(told))
    assert run("build", *asked, "-o", str(tmp_path / "one")).code == 0
    ran = run("build", *asked, "-o", str(tmp_path / "two"))
    assert ran.code == 5
    assert ran.err.endswith(" hint: `--force` replaces it, `--overlay` chooses another\n")
    ran = run("build", *asked[:-1], str(source), "-o", str(tmp_path / "two"), "--force")
    assert ran.err.endswith(
        "cause: only folders that hold mtpforge-overlay.json are replaced\n"
        " hint: remove it yourself, or choose another output with `--overlay`\n"
    )
