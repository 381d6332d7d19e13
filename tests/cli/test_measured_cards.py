"""Cards with what was measured: a row for each document, numbers as the documents hold them, other drafts refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import mtpforge
from mtpforge.checkpoint import open_checkpoint
from mtpforge.errors import MtpforgeError
from mtpforge.verifying.tensor_hashes import layer_identity

STORED = Path(__file__).parents[1] / "data" / "reports"
# The stored bench was made of a server of this model.
MODEL = "GLM-5.2-NVFP4"


@pytest.fixture(scope="module")
def draft(tinyglm, tmp_path_factory):
    out = tmp_path_factory.mktemp("measured") / "draft"
    return mtpforge.build(tinyglm("awq-int4"), tinyglm("nvfp4"), out=out, check="off").path


def document(name, tmp_path, change):
    body = json.loads((STORED / f"{name}.json").read_text())
    change(body)
    file = tmp_path / f"{name}.json"
    file.write_text(json.dumps(body))
    return file


def of(draft, number):
    """A stored document whose draft of this number is the one at hand."""

    def change(body):
        key = {"fidelity": "fidelity", "accept": "acceptance"}[body["command"]]
        for each in body[key]["drafts"]:
            each["identity"] = "other#0123456789abcdef"
        body[key]["drafts"][number]["identity"] = layer_identity(open_checkpoint(draft))

    return change


def rows(card):
    lines = card.partition("## Measured\n")[2].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| `")]


def test_every_document_is_a_row_with_the_numbers_of_this_draft(draft, tinyglm, tmp_path):
    files = [document("fidelity", tmp_path, of(draft, 0)), document("accept", tmp_path, of(draft, 1))]
    (fidelity, accept) = rows(card := mtpforge.card(draft, source=tinyglm("nvfp4"), reports=files))
    assert fidelity[:2] == ["`mtpforge fidelity`", "against `out/bf16`, 800 tokens"]
    assert fidelity[2].startswith("step 1: 95.4% the same token, total variation 0.041<br>step 2: 91.9%")
    assert accept[:2] == ["`mtpforge accept`", "beside `models/awq-int4`, 6 windows, k = 4, temperature 1"]
    assert accept[2].startswith("0.783 ± 0.023 of first tokens accepted; ")
    assert "was not measured" not in card


def test_document_that_fidelity_itself_writes_is_taken(draft, tinyglm, run, tmp_path):
    ran = run("fidelity", draft, "--reference", tinyglm("nvfp4"), "--json")
    file = tmp_path / "written.json"
    file.write_text(ran.out)
    told = run("card", draft, "--measured", file, "-o", tmp_path / "card.md")
    assert told.code == 0, told.err
    (row,) = rows((tmp_path / "card.md").read_text())
    agreement = json.loads(ran.out)["fidelity"]["drafts"][0]["steps"][0]["agreement"]
    assert row[2].startswith(f"step 1: {agreement:.1%} the same token")


def test_document_of_a_draft_with_other_codes_in_its_middle_is_refused(draft, tinyglm, run, tmp_path):
    """Same names, sizes and ends: only the codes between are others, as those of another `--scales`."""
    shutil.copytree(draft, tmp_path / "other")
    weights = tmp_path / "other" / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[len(raw) // 2] ^= 1
    weights.write_bytes(raw)
    documents = {}
    for each in (draft, tmp_path / "other"):
        ran = run("fidelity", each, "--reference", tinyglm("nvfp4"), "--k", "1", "--json")
        documents[each] = json.loads(ran.out)["fidelity"]["drafts"][0]["identity"]
        (tmp_path / f"{each.name}.json").write_text(ran.out)
    assert documents[draft].rpartition("#")[2] != documents[tmp_path / "other"].rpartition("#")[2]
    assert mtpforge.card(draft, reports=[tmp_path / "draft.json"])
    with pytest.raises(MtpforgeError, match="was measured of another draft"):
        mtpforge.card(draft, reports=[tmp_path / "other.json"])


def test_bench_is_taken_where_the_server_ran_the_target(draft, tmp_path):
    def of_target(body):
        body["bench"]["model"] = "org/awq-int4"

    card = mtpforge.card(draft, reports=[document("bench", tmp_path, of_target)])
    ((what, how, found),) = rows(card)
    assert (what, how) == ("`mtpforge bench`", "vLLM serving `org/awq-int4`, k = 3, temperature 1")
    assert found.startswith("1 at a time: 3.01 (2.90 to 3.12) tokens a round, 1.96 (1.88 to 2.06) times as fast")
    assert "its owner's word" in card
    assert "was not measured" not in card


@pytest.mark.parametrize(
    ("model", "checkpoint"),
    [
        ("glm", "/models/awq-int4"),
        ("/models/AWQ-INT4/", "/models/AWQ-INT4/"),
        ("glm", "/cache/hub/models--org--awq-int4/snapshots/0123abc"),
    ],
)
def test_bench_of_a_server_with_a_name_of_its_own_is_taken_by_its_checkpoint(draft, tmp_path, model, checkpoint):
    def of_target(body):
        body["bench"] |= {"model": model, "checkpoint": checkpoint}

    assert len(rows(mtpforge.card(draft, reports=[document("bench", tmp_path, of_target)]))) == 1


def failing(checks):
    checks[0] |= {"name": "one", "verdict": "failed", "detail": "of this | and that"}
    checks[1] |= {"name": "two", "verdict": "warning", "detail": "less"}
    for check in checks[2:]:
        check["verdict"] = "passed"


@pytest.mark.parametrize("name", ["fidelity", "accept", "bench"])
def test_what_the_command_doubted_of_its_numbers_stands_beside_them(draft, tmp_path, name):
    def of_doubtful(body):
        if name == "bench":
            body["bench"]["model"] = "awq-int4"
            failing(body["bench"]["checks"])
            return
        of(draft, 0)(body)
        own = body[{"fidelity": "fidelity", "accept": "acceptance"}[name]]["drafts"][0]
        own["checks"] = [own["checks"][0] | {}, own["checks"][0] | {}]
        failing(own["checks"])

    card = mtpforge.card(draft, reports=[document(name, tmp_path, of_doubtful)])
    assert "<br>failed: one, of this \\| and that<br>warning: two, less |" in card


def test_validate_that_ran_fidelity_is_taken_for_it(draft, tmp_path):
    def of_validate(body):
        of(draft, 0)(body)
        body["command"] = "validate"

    by_validate = document("fidelity", tmp_path, of_validate).rename(tmp_path / "validate.json")
    ((what, how, _),) = alone = rows(mtpforge.card(draft, reports=[by_validate]))
    assert (what, how) == ("`mtpforge fidelity`", "against `out/bf16`, 800 tokens")
    of_its_own = document("fidelity", tmp_path, of(draft, 0))
    assert rows(mtpforge.card(draft, reports=[by_validate, of_its_own])) == alone, "the same numbers twice"


def nothing(body):
    pass


def gone(body):
    body["acceptance"]["drafts"][1]["sampled"]["positions"] = "many"


def text(body):
    body["fidelity"]["n_tokens"] = "800"


def no_object(body):
    body["fidelity"] = []


@pytest.mark.parametrize(
    ("name", "change", "said", "typed"),
    [
        ("fidelity", nothing, "was measured of another draft", "mtpforge fidelity DRAFT --reference SOURCE --json"),
        ("accept", nothing, "was measured of another draft", "mtpforge accept DRAFT --target CKPT --text FILE --json"),
        ("bench", nothing, f"the server ran {MODEL}, the draft was made for awq-int4", "mtpforge bench URL --json"),
        ("verify", nothing, "holds nothing that was measured", "mtpforge fidelity DRAFT --reference SOURCE --json"),
        ("accept", gone, "must be a list of objects", "mtpforge accept DRAFT --target CKPT --text FILE --json"),
        ("fidelity", text, "must be a number", "mtpforge fidelity DRAFT --reference SOURCE --json"),
        ("fidelity", no_object, "must be an object", "mtpforge fidelity DRAFT --reference SOURCE --json"),
    ],
)
def test_other_drafts_and_other_documents_are_refused(draft, tmp_path, name, change, said, typed):
    def both(body):
        if change is not nothing:
            of(draft, 1)(body)
        change(body)

    with pytest.raises(MtpforgeError) as caught:
        mtpforge.card(draft, reports=[document(name, tmp_path, both)])
    assert said in f"{caught.value.what} {caught.value.why}"
    assert typed.replace("DRAFT", str(draft)) in caught.value.fix
    assert "fetch" not in caught.value.fix


def test_file_that_is_not_there_is_an_error_of_one_paragraph(run, draft, tmp_path):
    ran = run("card", draft, "--measured", tmp_path / "none.json", "-o", tmp_path / "c.md")
    assert (ran.code, "cannot be read" in ran.err, (tmp_path / "c.md").exists()) == (3, True, False)


def test_a_text_is_no_measured_document_and_nothing_to_fetch_again(run, draft, tmp_path):
    (tmp_path / "README.md").write_text("# A project\n")
    ran = run("card", draft, "--measured", tmp_path / "README.md", "-o", tmp_path / "c.md")
    assert (ran.code, "fetch" in ran.err) == (3, False)
    assert f"hint: `mtpforge fidelity {draft} --reference SOURCE --json > fidelity.json` writes one" in ran.err
