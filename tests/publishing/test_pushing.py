"""Model cards, and uploads to a hub on this machine that speaks what huggingface_hub speaks."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard, constants
from upload_hub import TOKEN, UploadHub

import mtpforge
from mtpforge.cli import main
from mtpforge.errors import MtpforgeError
from mtpforge.publishing.pushing import refuse_local_card

# huggingface_hub 2.4.0 hands objects to httpx2 in a way that this calls old.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

DEMO = Path(mtpforge.__file__).parent / "_demo"
TARGET = DEMO / "awq-int4"
REPO = "ann/GLM-5.2-MTP-INT4"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A draft, and a source whose card states a licence of its own."""
    home = tmp_path_factory.mktemp("push")
    source = home / "source"
    shutil.copytree(DEMO / "nvfp4", source)
    (source / "README.md").write_text(
        "---\nlicense: other\nlicense_name: glm-5.3\nlicense_link: https://example.org/LICENSE\n"
        "base_model: zai-org/GLM-5.2\n---\n# it\n"
    )
    mtpforge.build(TARGET, source, out=home / "draft", check="off")
    return home / "draft", source


@pytest.fixture
def draft(made, tmp_path):
    shutil.copytree(made[0], tmp_path / "draft")
    return tmp_path / "draft"


@pytest.fixture
def hub(monkeypatch):
    server = UploadHub()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", server.url)
    monkeypatch.setattr("mtpforge.publishing.pushing.HfApi", _api(server.url))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def _api(url):
    return lambda: HfApi(endpoint=url)


def push(draft, made, **more):
    return mtpforge.push(draft, REPO, target=TARGET, source=made[1], **more)


def test_the_card_states_licence_base_lineage_and_what_is_held(made):
    text = mtpforge.card(made[0], source=made[1], target=TARGET, name=REPO)
    stated = ModelCard(text).data.to_dict()
    assert stated["license"] == "other"
    assert stated["license_name"] == "glm-5.3"
    assert stated["license_link"] == "https://example.org/LICENSE"
    assert (stated["base_model"], stated["base_model_relation"]) == ("zai-org/GLM-5.2", "quantized")
    assert stated["library_name"] == "vllm"
    assert {"mtp", "speculative-decoding", "glm_moe_dsa", "compressed-tensors"} <= set(stated["tags"])
    assert f'"model": "{REPO}"' in text  # the command names the draft as it will be found
    assert "| routed experts | 48 | INT4 g32 asymmetric |" in text
    told = json.loads((made[0] / "mtpforge.json").read_text())
    assert told["source"]["id"] in text
    assert f"{max(told['relative_error'].values()):.3g} at most" in text
    assert str(made[0].parent) not in text  # no path of the machine that made it
    assert str(TARGET) not in text


def test_a_card_names_a_folder_whole_and_a_repository_with_a_short_commit(draft):
    told = json.loads((draft / "mtpforge.json").read_text())
    for identity, shown in (("a#b@1#0123456789abcdef", "a#b@1"), ("org/name@0123456789abcdef", "org/name@01234567")):
        told["source"]["id"] = identity
        (draft / "mtpforge.json").write_text(json.dumps(told))
        assert f" of `{shown}`, as a draft for" in mtpforge.card(draft, source=TARGET)


def test_a_card_without_a_source_claims_no_licence(made):
    stated = ModelCard(mtpforge.card(made[0])).data.to_dict()
    assert "license" not in stated
    assert "base_model" not in stated


def test_a_card_takes_no_other_file_s_place(draft, capfd):
    before = (draft / "config.json").read_bytes()
    code = main(["card", str(draft), "--target", str(TARGET), "-o", str(draft / "config.json"), "--force"])
    assert (code, "is no name of a card" in capfd.readouterr().err) == (2, True)
    assert (draft / "config.json").read_bytes() == before


def test_a_draft_and_its_card_arrive_whole_in_a_private_repository(draft, made, hub):
    sent = push(draft, made)
    assert hub.repos == {REPO: True}
    assert hub.files == {file.name: file.read_bytes() for file in draft.iterdir()}
    assert hub.files["README.md"].startswith(b"---\n")
    assert sent.files == {name: len(data) for name, data in hub.files.items()}
    assert sent.commit == f"{hub.url}/{REPO}/commit/c0ffee"


def test_a_draft_that_is_open_already_is_sent_too(draft, made, hub):
    push(mtpforge.open_checkpoint(draft), made)
    assert hub.files == {file.name: file.read_bytes() for file in draft.iterdir()}


def test_what_mtpforge_did_not_write_stays_at_home(draft, made, hub):
    (draft / "notes.txt").write_text("mine")
    (draft / ".hidden").write_text("mine")
    push(draft, made, private=False)
    assert not {"notes.txt", ".hidden"} & set(hub.files)
    assert hub.repos == {REPO: False}


def test_a_dry_run_sends_and_writes_nothing(draft, made, hub):
    before = {file.name: file.read_bytes() for file in draft.iterdir()}
    would = push(draft, made, dry_run=True)
    assert set(would.files) == {*before, "README.md"}
    assert would.commit == ""
    assert not hub.seen
    assert before == {file.name: file.read_bytes() for file in draft.iterdir()}


def test_a_card_of_ones_own_is_sent_as_it_is(draft, made, hub):
    (draft / "README.md").write_text("mine\n")
    push(draft, made)
    assert hub.files["README.md"] == b"mine\n"


def test_a_card_written_before_there_is_a_name_gets_it_when_it_is_sent(draft, made, hub):
    card = mtpforge.card(draft, source=made[1], target=TARGET)
    assert str(draft.parent) not in card
    assert '"model": "ORG/NAME"' in card
    (draft / "README.md").write_text(card)
    would = push(draft, made, dry_run=True)
    assert (draft / "README.md").read_text() == card
    push(draft, made)
    sent = hub.files["README.md"]
    assert f'"model": "{REPO}"'.encode() in sent
    assert b"ORG/NAME" not in sent
    assert would.files["README.md"] == len(sent)


def test_a_card_that_names_the_folder_is_not_sent_and_made_again_as_the_hint_says(draft, made, hub, monkeypatch):
    spaced = draft.rename(draft.with_name("my draft"))
    (spaced / "README.md").write_text(f"---\ntags:\n- mtpforge\n---\nvllm serve with {spaced}\n")
    with pytest.raises(MtpforgeError, match="names a folder of this machine") as refused:
        push(spaced, made)
    assert not hub.seen
    typed = shlex.split(refused.value.fix.split("`")[1])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(typed[1:]) == 0
    push(spaced, made)
    assert str(spaced).encode() not in hub.files["README.md"]


@pytest.mark.parametrize("head", ["", "---\nlicense: mit\n---\n"])
def test_a_readme_that_names_the_folder_and_is_no_card_is_to_be_edited(draft, made, hub, head):
    """`card --force` replaces no such file."""
    (draft / "README.md").write_text(f"{head}vllm serve with {draft}\n")
    with pytest.raises(MtpforgeError, match="names a folder of this machine") as refused:
        push(draft, made)
    assert refused.value.fix == "take the folder's name out of README.md"
    assert not hub.seen


def test_a_repository_of_the_name_of_a_folder_at_the_root_is_no_folder():
    class AtTheRoot:
        location = label = "/GLM-5.2-MTP"

    for text in (b"vllm serve me/GLM-5.2-MTP", b"https://huggingface.co/me/GLM-5.2-MTP)"):
        refuse_local_card(AtTheRoot(), text, "me/GLM-5.2-MTP")
    for text in (b"vllm serve /GLM-5.2-MTP", b"(/GLM-5.2-MTP)", b"/GLM-5.2-MTP/config.json"):
        with pytest.raises(MtpforgeError, match="names a folder of this machine"):
            refuse_local_card(AtTheRoot(), text, "me/GLM-5.2-MTP")


def test_a_draft_that_does_not_verify_is_not_sent(draft, made, hub):
    whole = bytearray((draft / "model.safetensors").read_bytes())
    whole[-1] ^= 1
    (draft / "model.safetensors").write_bytes(whole)
    with pytest.raises(MtpforgeError, match="does not verify") as refused:
        push(draft, made)
    assert refused.value.code == 1
    assert not hub.seen


def test_an_upload_that_broke_off_goes_on_with_what_has_arrived(draft, made, hub):
    hub.refuse["commit"] = 403
    with pytest.raises(MtpforgeError, match="was not written"):
        push(draft, made)
    assert hub.put_bytes == (draft / "model.safetensors").stat().st_size
    hub.refuse.clear()
    push(draft, made)
    assert hub.put_bytes == (draft / "model.safetensors").stat().st_size  # not sent again
    assert set(hub.files) == {file.name for file in draft.iterdir()}


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("step", "status", "words"),
    [
        ("create", 401, "who you are"),
        ("create", 403, "may not write"),
        ("commit", 409, "is changing that repository"),
        ("batch", 413, "no file of that size"),
        ("object", 413, "no file of that size"),
        ("commit", 507, "no storage left"),
        ("preupload", 402, "it answered 402"),
    ],
)
def test_answers_of_the_hub_in_words(step, status, words, draft, made, hub):
    hub.refuse[step] = status
    with pytest.raises(MtpforgeError) as refused:
        push(draft, made)
    assert refused.value.code == 4
    assert words in refused.value.why
    assert TOKEN not in str(refused.value)
    assert "http://" not in str(refused.value)


def test_without_a_token_the_login_is_named(draft, made, hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.utils._headers.get_token", lambda: None)
    with pytest.raises(MtpforgeError) as refused:
        push(draft, made)
    assert "hf auth login" in refused.value.fix


def test_a_repository_has_to_be_downloaded_first(made, hub, in_folder):
    with pytest.raises(MtpforgeError) as refused:
        mtpforge.push("ann/draft", "bob/draft", target=TARGET)
    assert "hf download ann/draft" in refused.value.fix
    assert not list(in_folder.iterdir())
    assert not hub.seen


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (PermissionError("token"), "who you are"),
        (PermissionError(13, "Permission denied", "model.safetensors"), "`model.safetensors` cannot be read"),
        (RuntimeError("broken"), "the transfer broke off"),
        (ConnectionResetError(), "no connection"),
    ],
)
def test_what_the_transfer_raises_is_told_by_its_cause(raised, words, draft, made, hub, monkeypatch):
    """huggingface_hub hands over to hf_xet where it is installed, whose refusals are PermissionErrors."""

    class Api(HfApi):
        def upload_folder(self, **_):
            raise raised

    monkeypatch.setattr("mtpforge.publishing.pushing.HfApi", lambda: Api(endpoint=hub.url))
    with pytest.raises(MtpforgeError) as refused:
        push(draft, made)
    assert (refused.value.code, words in refused.value.why) == (4, True)


def test_front_matter_is_read_by_its_lines_and_never_as_yaml(made, tmp_path):
    """Nested merge keys of YAML fill the memory from a few lines."""
    source = tmp_path / "source"
    shutil.copytree(made[1], source)
    bomb = "a0: &a0 {x: 1}\n" + "".join(
        f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 40)
    )
    (source / "README.md").write_text(f"---\n{bomb}license: 'mit'  # so it says\n---\n")
    assert ModelCard(mtpforge.card(made[0], source=source)).data.license == "mit"


def test_a_target_that_is_a_folder_has_to_be_named(draft, hub):
    with pytest.raises(MtpforgeError, match="its target is not known here") as refused:
        mtpforge.push(draft, REPO)
    assert "`--target CKPT`" in refused.value.fix
    assert not hub.seen


@pytest.mark.parametrize("name", ["draft", "a/b/c", "/b", "a/"])
def test_names_of_no_repository_are_refused(name, draft, hub):
    with pytest.raises(MtpforgeError, match="is no name of a repository"):
        mtpforge.push(draft, name, target=TARGET)
