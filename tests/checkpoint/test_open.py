from __future__ import annotations

import pytest

from mtpforge.checkpoint import open_base_model, open_checkpoint
from mtpforge.errors import MtpforgeError


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "org" / "name" / "config.json").write_text("{}")
    return tmp_path


@pytest.fixture
def asked(monkeypatch):
    """What the hub was asked for; nothing is sent."""
    calls = []

    def open_hub(name, revision, *, choice="", offline=False):
        calls.append((name, revision, offline, *filter(None, [choice])))
        return "hub"

    monkeypatch.setattr("mtpforge.checkpoint.hub.repository.open_hub", open_hub)
    return calls


@pytest.mark.parametrize("text", ["org/name", "org/name/", "./org/name", "org/name/config.json", "org/../org/name"])
def test_what_exists_on_disk_wins_over_the_hub(here, asked, text):
    checkpoint = open_checkpoint(text)
    assert (checkpoint.label, checkpoint.location) == (text, str(here / "org" / "name"))
    assert asked == []


def test_a_tilde_is_the_home_folder(here, asked, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    assert open_checkpoint("~/org/name").location == str(here / "org" / "name")


@pytest.mark.parametrize(
    ("text", "name", "revision"),
    [
        ("zai-org/GLM-5.2", "zai-org/GLM-5.2", None),
        ("zai-org/GLM-5.2/", "zai-org/GLM-5.2", None),
        ("zai-org/GLM-5.2@main", "zai-org/GLM-5.2", "main"),
        ("zai-org/GLM-5.2@refs/pr/7", "zai-org/GLM-5.2", "refs/pr/7"),
    ],
)
def test_a_hub_id_is_split_from_its_revision(here, asked, text, name, revision):
    assert open_checkpoint(text, offline=True) == "hub"
    assert asked == [(name, revision, True)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("org2/GLM-5.2-GGUF:Q4_K_M", ("org2/GLM-5.2-GGUF", None, False, "Q4_K_M")),
        (
            "org2/GLM-5.2-GGUF:Q4/x-00001-of-00002.gguf@main",
            ("org2/GLM-5.2-GGUF", "main", False, "Q4/x-00001-of-00002.gguf"),
        ),
    ],
)
def test_which_model_of_a_repository_is_meant_stands_behind_its_name(here, asked, text, told):
    assert open_checkpoint(text) == "hub"
    assert asked == [told]


@pytest.mark.parametrize(
    "text",
    ["", " ", "name", "./org/other", "../org/other", "~/nothing/here", "~nobody-of-that-name/x", "/org/other", "a/b/c",
     "org/name:", "org/name:a b", "org/na me", "org/name@", "org/name@a b", "org/na--me", "org/na..me",
     "org/model.safetensors", "other/config.json", "a\0b", "x" * 5000, "https://huggingface.co/zai-org/GLM-5.2"],
)  # fmt: skip
def test_what_is_neither_is_refused_and_never_asked_of_the_hub(here, asked, text):
    with pytest.raises(MtpforgeError) as caught:
        open_checkpoint(text)
    assert caught.value.what.endswith("is no checkpoint")
    near = "did you mean `org/name`?"
    assert caught.value.fix in (near, "give a folder with a config.json, or a hub id such as `zai-org/GLM-5.2-FP8`")
    assert (caught.value.fix == near) == (text in ("org/na me", "org/na--me", "org/na..me"))
    assert asked == []


def test_an_address_is_answered_with_the_id_that_was_meant(here):
    with pytest.raises(MtpforgeError) as caught:
        open_checkpoint("https://huggingface.co/zai-org/GLM-5.2/tree/main")
    assert caught.value.why.endswith("did you mean `zai-org/GLM-5.2`?")


def test_a_file_that_is_not_there_is_called_a_file(here):
    with pytest.raises(MtpforgeError) as caught:
        open_checkpoint("model.gguf")
    assert caught.value.why == "there is no such file here"


def test_a_weight_file_is_answered_with_its_folder(here):
    (here / "m.safetensors").write_bytes(b"")
    with pytest.raises(MtpforgeError) as caught:
        open_checkpoint("m.safetensors")
    assert (caught.value.what, caught.value.fix) == (
        "`m.safetensors` is no folder",
        "give the folder that holds the file",
    )


def test_a_mistyped_draft_is_looked_for_here_and_not_on_the_hub(here, asked):
    with pytest.raises(MtpforgeError) as caught:
        open_checkpoint("org/nam")
    assert caught.value.why == "`org` is a folder here and holds no `nam`; the hub was not asked"
    assert caught.value.fix == "did you mean `org/name`? a repository of that name on the hub is `org/nam@main`"
    assert asked == []
    open_checkpoint("org/nam@main")
    assert asked == [("org/nam", "main", False)]


def test_a_base_model_that_nobody_typed_is_the_hub_s_beside_a_folder_of_its_organisation(here, asked):
    (here / "zai-org" / "GLM-5.2-draft").mkdir(parents=True)
    open_base_model("zai-org/GLM-5.2")
    assert asked == [("zai-org/GLM-5.2", None, False)]
    with pytest.raises(MtpforgeError, match="is no checkpoint"):
        open_checkpoint("zai-org/GLM-5.2")
    (here / "zai-org" / "GLM-5.2").mkdir()
    (here / "zai-org" / "GLM-5.2" / "config.json").write_text("{}")
    assert open_base_model("zai-org/GLM-5.2").location == str(here / "zai-org" / "GLM-5.2")
    assert len(asked) == 1
