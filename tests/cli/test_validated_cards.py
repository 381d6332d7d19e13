"""Cards of drafts that an engine was asked about: its own words stand in place of what build left to it."""

from __future__ import annotations

import json
import shutil

import pytest

import mtpforge
from mtpforge.errors import MtpforgeError

CLASS = "vllm.models.deepseek_v32.nvidia.mtp.DeepseekV32MTP"
SAID = (  # as validate prints it, of vLLM on a machine without a GPU
    ("engine loads the draft", "passed", f"vLLM 0.33.0: {CLASS}"),
    ("draft is complete", "passed", "242 tensors, 49 of 51 parameters loaded"),
    ("forward pass", "not checked", "there is no GPU to run it on: no `nvidia-smi` on PATH"),
)


@pytest.fixture(scope="module")
def draft(tinyglm, tmp_path_factory):
    out = tmp_path_factory.mktemp("validated") / "draft"
    return mtpforge.build(tinyglm("awq-int4"), tinyglm("nvfp4"), out=out, check="off").path


@pytest.fixture
def document(run, draft, tinyglm, tmp_path):
    """What validate prints with an engine, without `--inputs`: a function of what the engine said."""
    report = run("verify", str(draft), "--target", str(tinyglm("awq-int4")), "--json").document["report"]

    def written(said=SAID, change=lambda body: None):
        checks = [{"name": name, "verdict": verdict, "detail": detail, "fix": ""} for name, verdict, detail in said]
        body = {"command": "validate", "draft": "out/draft", "report": report, "engine": {"checks": checks}}
        change(body)
        file = tmp_path / "validate.json"
        file.write_text(json.dumps(body))
        return file

    return written


def checked(card):
    lines = card.partition("## Checked\n")[2].partition("\n## ")[0].splitlines()
    return [tuple(cell.strip() for cell in line.strip("|").split(" | ")) for line in lines if line.startswith("| ")]


def test_the_engine_s_words_stand_in_place_of_what_was_not_checked(draft, document):
    before = checked(mtpforge.card(draft))
    assert before[-1][:2] == ("loader", "not checked")
    after = checked(mtpforge.card(draft, reports=[document()]))
    left = ("forward pass", "not checked", "this check was not made where the draft was validated")
    assert after == [*before[:-1], *SAID[:-1], left]


@pytest.mark.parametrize("verdict", ["not checked", "failed", "warning", "passed"])
@pytest.mark.parametrize(
    "detail",
    [
        'no engine found: SGLang cannot be imported by /srv/meier/env/bin/python: File "/srv/meier/a b/x.py", line 3',
        "refused: FileNotFoundError: '/data/a meier/out/draft'",
        "refused: PATH=/srv/meier:/srv/meier/bin, file:///srv/meier/x, ~meier/x, ~/meier, ../meier (C:\\Users\\meier)",
        "refused: it ends in /srv/meier",
        "refused: '/srv/meier and so on... (900 characters)",
    ],
)
def test_no_path_of_the_machine_that_was_asked_is_on_the_card(draft, document, verdict, detail):
    name, found, told = checked(mtpforge.card(draft, reports=[document([("forward pass", verdict, detail)])]))[-1]
    assert (name, found) == ("forward pass", verdict)
    assert "meier" not in told
    assert ("refused" in told) == ("refused" in detail and verdict != "not checked")


def test_what_an_engine_says_of_files_and_addresses_stays(draft, document):
    detail = "off by 1/2 of org/name, see https://docs.vllm.ai/en/a: no '/srv/meier/model.safetensors' / 3.5 tokens/s"
    (*_, told) = checked(mtpforge.card(draft, reports=[document([("forward pass", "failed", detail)])]))[-1]
    assert told == detail.replace("/srv/meier/", ".../")


def test_a_home_folder_with_a_space_in_its_name_is_left_out_whole(draft, document, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann meier")
    detail = "refused: /home/ann meier/x is a folder"
    (*_, told) = checked(mtpforge.card(draft, reports=[document([("forward pass", "failed", detail)])]))[-1]
    assert told == "refused: ... is a folder"


def test_what_the_engine_refused_is_told_too(draft, document):
    refused = (("engine loads the draft", "failed", "vLLM 0.33.0 refuses it: KeyError"),)
    assert checked(mtpforge.card(draft, reports=[document(refused)]))[-1] == refused[0]


def test_nothing_is_said_of_measuring_where_nothing_was(draft, document):
    assert "## Measured" not in mtpforge.card(draft, reports=[document()])


def test_what_an_engine_said_of_other_tensors_is_refused(draft, document):
    def other(body):
        hashes = body["report"]["facts"]["sha256"]
        hashes[next(iter(hashes))] = "0" * 64

    with pytest.raises(MtpforgeError, match="was measured of another draft") as refused:
        mtpforge.card(draft, reports=[document(change=other)])
    assert refused.value.why == f"it read out/draft; the tensors of {draft} are not those"
    assert f"mtpforge validate {draft} " in refused.value.fix


@pytest.mark.parametrize("engine", [[], {"checks": "many"}, {"checks": [{"name": 5}]}])
def test_an_engine_s_report_that_is_none_is_refused(draft, document, engine):
    with pytest.raises(MtpforgeError, match="must be"):
        mtpforge.card(draft, reports=[document(change=lambda body: body.update(engine=engine))])


def test_a_validate_without_an_engine_or_inputs_says_nothing(draft, document):
    with pytest.raises(MtpforgeError, match="holds nothing that was measured"):
        mtpforge.card(draft, reports=[document(change=lambda body: body.pop("engine"))])


def test_push_finds_such_a_card_its_own(draft, document, run, tmp_path):
    copied = shutil.copytree(draft, tmp_path / "copied")
    assert run("card", copied, "--measured", document()).code == 0
    assert CLASS in (copied / "README.md").read_text()


def test_the_help_of_the_python_function_names_each_command_whose_document_it_takes():
    told = mtpforge.card.__doc__.partition("reports:")[2]
    assert all(f"`{command}`" in told for command in ("fidelity", "accept", "bench", "validate"))


def test_a_hostile_document_costs_no_time(draft, document):
    (*_, told) = checked(mtpforge.card(draft, reports=[document([("forward pass", "failed", "/" * 10_000_000)])]))[-1]
    assert len(told) < 1000
