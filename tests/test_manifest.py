"""mtpforge.json: what it says, and what is refused when it is read."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from small_plans import carry, checkpoint, plan, weights_of

from mtpforge import manifest
from mtpforge.checkpoint.folder import open_folder
from mtpforge.errors import MtpforgeError
from mtpforge.report import Check, Report
from mtpforge.tensors import Spec

DIGEST = "88d4266fd4e6338d13b845fcf289579d209c897823b9217da3e161936f031589"


@pytest.fixture
def made(tmp_path):
    source = checkpoint(tmp_path / "source", {"b": torch.zeros(2, 2), "a": torch.zeros(3)})
    return plan(source, [carry(source, "b"), carry(source, "a")])


@pytest.fixture
def written(made, tmp_path):
    report = Report(
        "verify", (Check("names", "passed", "2"),), facts={"relative_error": {"m.up": 0.1234567, "m.gate": 0.125}}
    )
    checks = (Check("reference", "passed", "2 tensors"),)
    raw = manifest.write(made, weights_of(made.steps), {"a": DIGEST, "b": DIGEST}, checks, report)
    (tmp_path / manifest.FILE).write_bytes(raw)
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_every_tensor_comes_back_with_dtype_shape_and_digest(written, made):
    found = manifest.read(open_folder(written))
    assert found.tensors == {
        "a": manifest.Entry(Spec("F32", (3,)), DIGEST),
        "b": manifest.Entry(Spec("F32", (2, 2)), DIGEST),
    }
    assert (found.source, found.target, found.plan) == (made.source.identity, "org/target@0123", made.digest)
    assert (found.layer, found.n_experts) == (3, 12)
    assert found.relative_error == {"m.gate": 0.125, "m.up": 0.123457}


def test_file_is_sorted_and_names_no_path_of_this_machine(written, made):
    text = (written / manifest.FILE).read_text()
    body = json.loads(text)
    assert list(body["tensors"]) == ["a", "b"]
    assert [c["name"] for c in body["checks"]] == ["reference", "names"]
    assert body["scheme"]["rules"][0]["reason"] == "because"
    assert str(written) not in text
    assert made.source.location not in text


def test_versions_are_read_without_importing_the_libraries():
    script = (
        "import sys; from mtpforge import manifest; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


BAD = [
    ("not json", "Expecting value"),
    ("[]", "it is no JSON object"),
    ("[" * 100_000, "recursion"),
    ({"tensors": []}, "`tensors` is no table"),
    ({"plan": 3}, "`plan` is no text"),
    ({"layer": True}, "`layer` is no whole number"),
    ({"relative_error": {"m": "small"}}, "`relative_error` is no table of numbers"),
    ({"source": None}, "`source` is no table"),
    ({"scales": "magic"}, "`scales` is no method of this mtpforge"),
    ({"tensors": {"a\n": {"dtype": "F7", "shape": [1], "sha256": ""}}}, "the entry of a\\n is no dtype"),
    ({"tensors": {"a": {"dtype": "F32", "shape": [-1], "sha256": ""}}}, "the entry of a is no dtype"),
]


@pytest.mark.parametrize(("change", "why"), BAD, ids=range(len(BAD)))
def test_damaged_manifest_is_an_error_that_says_where(written, change, why):
    path = written / manifest.FILE
    text = change if isinstance(change, str) else json.dumps(json.loads(path.read_text()) | change)
    path.write_text(text)
    with pytest.raises(MtpforgeError) as caught:
        manifest.read(open_folder(written))
    assert (caught.value.what, caught.value.where) == ("mtpforge.json is damaged", str(path))
    assert why in caught.value.why


@pytest.mark.parametrize("schema", [2, 0, None])
def test_any_other_schema_asks_for_an_update(written, schema):
    path = written / manifest.FILE
    body = {key: value for key, value in json.loads(path.read_text()).items() if key != "schema"}
    path.write_text(json.dumps(body if schema is None else body | {"schema": schema}))
    with pytest.raises(MtpforgeError, match=rf"mtpforge\.json has schema {schema}, this mtpforge reads 1"):
        manifest.read(open_folder(written))


def test_a_manifest_of_more_than_the_limit_is_not_parsed(written, monkeypatch):
    size = (written / manifest.FILE).stat().st_size
    monkeypatch.setattr(manifest, "_MAX_BYTES", size)
    manifest.read(open_folder(written))
    monkeypatch.setattr(manifest, "_MAX_BYTES", size - 1)
    with pytest.raises(MtpforgeError, match="damaged") as caught:
        manifest.read(open_folder(written))
    assert caught.value.why == "it is no JSON object of a usual size"


def test_folder_without_a_manifest_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(MtpforgeError) as caught:
        manifest.read(open_folder(tmp_path))
    assert (caught.value.what, caught.value.where) == ("no mtpforge.json in the draft", str(tmp_path))
