"""One draft as one job: what is refused before anything takes long, what is decided, what is written."""

from __future__ import annotations

import json
import shutil

import pytest
from pruning.layers import PREFIX, pruned_copy
from safetensors.torch import load_file, save_file

from mtpforge import errors
from mtpforge.checkpoint import open_checkpoint
from mtpforge.drafting import deciding, making, refusals
from mtpforge.drafting.request import Request, Watching
from mtpforge.errors import MtpforgeError
from mtpforge.places import default_out
from mtpforge.planning import plan
from mtpforge.scheme import Rule, Scheme
from mtpforge.tensors import BF16, Quantization
from mtpforge.writing import folder, journal
from mtpforge.writing.claim import hidden_folder


@pytest.fixture
def asked(tinyglm, tmp_path):
    """A request for a draft of the tiny model, with what a test says differently."""

    def asked_(**differs):
        sides = {"target": tinyglm("awq-int4"), "source": tinyglm("nvfp4"), "out": tmp_path / "draft", "check": "off"}
        return Request(**{**sides, **differs})

    return asked_


def refused(request) -> MtpforgeError:
    with pytest.raises(MtpforgeError) as caught:
        deciding.decide(request)
    return caught.value


NOWHERE = "./there-is-no-such-checkpoint"  # whoever opened it would say so


@pytest.mark.parametrize(
    ("differs", "code", "says"),
    [
        ({"out": "eagle-draft"}, errors.USAGE, 'the draft\'s path contains "eagle-"'),
        ({"inputs": "absent.safetensors", "scales": "gptq"}, errors.INPUT, "absent.safetensors"),
        ({"keep_experts": "absent.json"}, errors.INPUT, "absent.json"),
        ({"scheme": "bf61"}, errors.USAGE, "bf61"),
        ({"check": "of"}, errors.USAGE, "'of' is no value of `check`"),  # from Python: it would compare nothing it says
        ({"memory": "2GB"}, errors.USAGE, "'2GB' is no value of `memory`"),
        ({"max_shard_bytes": "2GB"}, errors.USAGE, "'2GB' is no value of `max_shard_bytes`"),
        ({"experts": "12"}, errors.USAGE, "'12' is no value of `experts`"),
    ],
)
def test_what_a_command_line_shows_is_said_before_a_checkpoint_is_opened(asked, differs, code, says):
    error = refused(asked(target=NOWHERE, **differs))
    assert (error.code, says in str(error)) == (code, True)


def test_output_below_a_file_is_refused_before_a_checkpoint_is_opened(asked, tmp_path):
    (tmp_path / "file").write_text("")
    error = refused(asked(target=NOWHERE, out=tmp_path / "file" / "draft"))
    assert (error.code, error.what) == (errors.MACHINE, "cannot write the draft")
    assert "Not a directory" in error.why


def test_output_in_a_folder_that_may_not_be_written_is_refused_at_once(asked, tmp_path, monkeypatch):
    (tmp_path / "locked").mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: path.name != "locked")  # root may write everywhere
    error = refused(asked(target=NOWHERE, out=tmp_path / "locked" / "new" / "draft"))
    assert (error.code, error.what) == (errors.MACHINE, "cannot write the draft")
    assert "Permission denied" in error.why
    assert "locked" in error.why


def test_foreign_folder_is_never_advised_to_be_forced(asked, tmp_path):
    (tmp_path / "draft").mkdir()
    (tmp_path / "draft" / "mine.txt").write_text("mine")
    error = refused(asked())
    assert error.what == "the output exists and is no draft"
    assert "--force" not in error.fix


def test_existing_output_hides_no_fault_of_the_plan(asked, tinyglm, tmp_path):
    (tmp_path / "draft").mkdir()
    (tmp_path / "draft" / "mtpforge.json").write_text("")
    assert refused(asked()).what == "the output exists already"
    for differs in ({"source": tinyglm("awq-int4")}, {"target": NOWHERE}):
        assert refused(asked(**differs)).code == errors.INPUT
    assert refused(asked(memory=10)).code == errors.USAGE


def test_existing_output_is_said_before_experts_are_scored(asked, tinyglm, tmp_path, monkeypatch):
    (tmp_path / "draft").mkdir()
    monkeypatch.setattr("mtpforge.pruning.expert_choice.scores", lambda *_: pytest.fail("scored"))
    error = refused(asked(target=tinyglm("awq-int4-12experts"), prune_by="aimer"))
    assert error.what == "the output exists already"


def test_default_output_is_held_to_the_same_rules_as_a_named_one(asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").write_text("")
    assert refused(asked(out=None)).what == "cannot write the draft"


def test_memory_below_what_the_plan_needs_names_what_it_needs(asked):
    error = refused(asked(memory=10))
    assert (error.code, error.what) == (errors.USAGE, "this draft needs 0.59 GiB, 10 B are allowed")
    assert error.fix == "`--memory 601MiB` or more"
    assert deciding.decide(asked(memory=601 << 20)).plan.steps


@pytest.mark.parametrize("experts", [14, "keep"])
def test_more_experts_than_the_target_has_are_refused_by_the_comparison_as_by_the_build(asked, tinyglm, experts):
    request = asked(target=tinyglm("awq-int4-12experts"), experts=experts)
    with pytest.raises(MtpforgeError) as caught:
        deciding.compare(request)
    assert str(caught.value).splitlines()[1:] == str(refused(request)).splitlines()[1:]


def test_too_many_experts_are_refused_before_they_are_scored(asked, tinyglm, monkeypatch):
    monkeypatch.setattr("mtpforge.pruning.expert_choice.scores", lambda *_: pytest.fail("scored"))
    refused(asked(target=tinyglm("awq-int4-12experts"), experts=14))


def test_job_of_python_records_what_chose_its_experts(asked, tinyglm):
    draft = making.make(deciding.decide(asked(target=tinyglm("awq-int4-12experts"))))
    assert draft.manifest.body["kept_by"] == {"method": "bias", "inputs": None}


def half_pruned(tinyglm, to):
    """A checkpoint whose main layers hold 12 experts and whose MTP layer still holds 16."""
    shutil.copytree(tinyglm("awq-int4-12experts"), to)
    layer = {}
    for file in sorted(tinyglm("bf16").glob("*.safetensors")):
        layer |= {name: tensor for name, tensor in load_file(file).items() if name.startswith(PREFIX)}
    save_file(layer, to / "mtp.safetensors")
    index = to / "model.safetensors.index.json"
    if index.exists():
        named = json.loads(index.read_text())["weight_map"]
    else:
        (only,) = (file for file in to.glob("*.safetensors") if file.name != "mtp.safetensors")
        named = dict.fromkeys(load_file(only), only.name)
    named = {name: file for name, file in named.items() if not name.startswith(PREFIX)}
    named |= dict.fromkeys(layer, "mtp.safetensors")
    index.write_text(json.dumps({"metadata": {}, "weight_map": named}))
    return to


def test_extract_counts_the_layer_where_the_main_layers_were_pruned_without_it(asked, tinyglm, tmp_path):
    source = half_pruned(tinyglm, tmp_path / "half")
    job = deciding.decide(asked(target=None, source=source, scheme="bf16"))
    draft = making.make(job)
    assert draft.report.ok
    assert draft.manifest.n_experts == draft.config["n_routed_experts"] == 16


def test_extract_is_stated_by_the_first_engine_that_has_words_for_its_scheme(asked, tinyglm):
    layer = {"target": None, "source": tinyglm("nvfp4")}
    for preset, engine in (("bf16", ""), ("fp8-block128", "vllm"), ("w4afp8", "sglang")):
        job = deciding.decide(asked(**layer, scheme=preset))
        assert job.plan.engine == engine
        assert job.plan.config.get("quantization_config", {}).get("quant_method") == {
            "w4afp8": "w4afp8",
            "fp8-block128": "fp8",
        }.get(preset)
    assert "no quantization method" in refused(asked(**layer, scheme=_two_methods())).what


def _two_methods() -> Scheme:
    int4 = Quantization("awq", 4, strategy="group", group_size=128, symmetric=False, scale_dtype="F16")
    fp8 = Quantization("fp8_block", 8, strategy="block", block=(128, 128), scale_dtype="F32", input_scale="dynamic")
    return Scheme("two", (Rule("mlp.experts.*", int4, ""), Rule("self_attn.o_proj", fp8, ""), Rule("*", BF16, "")))


def test_report_of_an_extract_says_nothing_of_serving(asked, tinyglm):
    draft = making.make(deciding.decide(asked(target=None, source=tinyglm("nvfp4"), scheme="bf16")))
    names = {check.name for check in draft.report.checks}
    assert names.isdisjoint({"path", "target", "serving", "loader"})
    assert {"names", "values", "config"} <= names


def test_source_of_fewer_experts_than_the_target_is_warned_of(asked, tinyglm, tmp_path):
    few = pruned_copy(tinyglm("bf16"), tmp_path / "few", tuple(range(8)))
    traps = {trap.id: trap for trap in deciding.decide(asked(source=few)).plan.traps}
    assert traps["fewer-experts"].severity == "warning"
    assert "8 experts, the target's layers 16" in traps["fewer-experts"].message
    assert "fewer-experts" not in {trap.id for trap in deciding.decide(asked()).plan.traps}


def test_plan_does_not_advise_the_draft_that_it_is(asked, tinyglm, tmp_path):
    target = shutil.copytree(tinyglm("nvfp4"), tmp_path / "target")
    config = json.loads((target / "config.json").read_text())
    config.pop("moe_router_dtype", None)
    (target / "config.json").write_text(json.dumps(config))
    traps = {trap.id: trap for trap in deciding.decide(asked(target=target, source=None)).plan.traps}
    assert (traps["router-dtype"].severity, traps["router-dtype"].fix) == ("note", "")


class Hub:
    """A target as the hub names it."""

    def __init__(self, name):
        self.label, self.identity, self.location, self.revision = f"{name}@main", f"{name}@0123", name, "0123"


def test_second_target_of_a_name_gets_an_output_with_its_organisation(asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = Hub("one/GLM"), Hub("two/GLM")
    assert str(default_out(first, "int4")) == str(default_out(second, "int4")) == "out/GLM-MTP-int4"
    unfinished(tmp_path / "out" / "GLM-MTP-int4", "one/GLM@4567")
    assert str(default_out(first, "int4")) == "out/GLM-MTP-int4"
    assert str(default_out(second, "int4")) == "out/two-GLM-MTP-int4"
    unfinished(tmp_path / "out" / "two-GLM-MTP-int4", "two/GLM@0123")
    shutil.rmtree(hidden_folder(tmp_path / "out" / "GLM-MTP-int4"))
    assert str(default_out(first, "int4")) == "out/GLM-MTP-int4"
    assert str(default_out(second, "int4")) == "out/two-GLM-MTP-int4"  # there it goes on


def unfinished(out, target):
    """What an interrupted build for this target leaves."""
    hidden_folder(out).mkdir(parents=True)
    (hidden_folder(out) / "journal").write_bytes(json.dumps({"key": "k", "target": target}).encode() + b"\n")


@pytest.mark.parametrize("line", [b"", b"{", b"[]\n", b'{"key":"k"}\n', b"[" * 100_000])
def test_journal_that_names_no_target_is_nobody_s(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    unfinished(tmp_path / "out" / "GLM-MTP-int4", "x")
    (hidden_folder(tmp_path / "out" / "GLM-MTP-int4") / "journal").write_bytes(line)
    assert str(default_out(Hub("one/GLM"), "int4")) == "out/GLM-MTP-int4"


def test_folders_of_one_name_get_outputs_of_their_own(asked, tinyglm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for home in ("a", "b"):
        shutil.copytree(tinyglm("awq-int4"), tmp_path / home / "GLM")
    config = tmp_path / "b" / "GLM" / "config.json"
    config.write_text(config.read_text() + "\n")
    first, second = (deciding.decide(asked(target=f"{home}/GLM", out=None)) for home in ("a", "b"))
    plain = "out/GLM-MTP-int4-g32-asym"
    assert (str(first.out), str(second.out)) == (plain, plain)
    made = making.make(first)
    assert made.report.ok
    content = open_checkpoint("b/GLM").identity.partition("#")[2]
    again = deciding.decide(asked(target="b/GLM", out=None))
    assert str(again.out) == f"out/GLM-{content[:7]}-MTP-int4-g32-asym"
    assert making.make(again).path != made.path
    assert refused(asked(target="a/GLM", out=None)).where == plain
    assert refused(asked(target="b/GLM", out=None)).where == str(again.out)


def test_output_that_another_build_wrote_meanwhile_is_told_as_that(asked, tmp_path):
    first, second = (deciding.decide(asked()) for _ in range(2))
    making.make(first)
    with pytest.raises(MtpforgeError) as caught:
        making.make(second)
    assert (caught.value.what, caught.value.code) == ("the output exists already", errors.MACHINE)
    assert caught.value.why.endswith("another build wrote it meanwhile")


def test_target_that_drafts_for_itself_needs_nothing(asked, tinyglm):
    found = deciding.decide(asked(target=tinyglm("fp8"), source=None))
    assert isinstance(found, deciding.Needless)
    assert isinstance(deciding.decide(asked(target=tinyglm("fp8"), source=None, standalone=True)), deciding.Job)


def test_base_model_is_chosen_beside_a_folder_of_its_organisation(asked, tinyglm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zai-org" / "my-draft").mkdir(parents=True)
    of_hub = {"zai-org/GLM-5.2": tinyglm("nvfp4")}
    monkeypatch.setattr(
        "mtpforge.checkpoint.hub.repository.open_hub", lambda name, *_, **__: open_checkpoint(of_hub[name])
    )
    target = shutil.copytree(tinyglm("awq-int4"), tmp_path / "GLM-5.2-AWQ")
    assert deciding.decide(asked(target=target, source=None)).source.location == str(tinyglm("nvfp4"))
    assert refused(asked(source="zai-org/GLM-5.2")).what == "`zai-org/GLM-5.2` is no checkpoint"  # typed: a path


def test_whoever_watches_is_told_what_was_decided(asked, tinyglm):
    said = []
    deciding.decide(asked(target=tinyglm("awq-int4-12experts")), Watching.by(said.append, None))
    assert [remark.about for remark in said] == ["target", "source", "experts"]
    assert str(said[2]) == "experts 12 of 16   by bias, highest scores dropped"


def test_checkpoints_that_are_open_already_are_taken(asked, tinyglm):
    target, source = (open_checkpoint(str(tinyglm(name))) for name in ("awq-int4", "nvfp4"))
    job = deciding.decide(asked(target=target, source=source))
    assert (job.target, job.source) == (target, source)


def test_what_is_kept_is_read_from_the_journal(tmp_path):
    out = tmp_path / "draft"
    assert folder.kept_steps(out) == "no step was finished, nothing is kept"
    hidden = hidden_folder(out)
    hidden.mkdir()
    lines = journal.lines({0: {"a": "0" * 64}, 7: {"b": "1" * 64}})
    (hidden / "journal").write_bytes(b'{"key":"k"}\n' + lines + b'{"step":8,"sha')  # the last one was torn
    assert folder.kept_steps(out) == f"2 finished steps are kept in {hidden}"


def test_refusal_of_a_path_names_the_option_that_mends_it(tmp_path):
    with pytest.raises(MtpforgeError) as caught:
        refusals.of_output(tmp_path / "eagle3", Request(target="T"))
    assert caught.value.fix.endswith("`--out PATH`")


def test_layer_alone_is_held_to_what_the_engine_loads(tinyglm):
    """SGLang reads `kv_b_proj.weight` again after loading: packed ones have none."""
    source = open_checkpoint(str(tinyglm("bf16")))
    packed = Quantization("pack_quantized", 4, strategy="group", group_size=32, scale_dtype="BF16")
    rules = (Rule("mlp.experts.*", packed, ""), Rule("*", BF16, ""))
    made = plan(source, None, engine="sglang", scheme=Scheme("experts", rules))
    assert made.scheme.of("mlp.experts.*.up_proj").quantization == packed
    with pytest.raises(MtpforgeError) as caught:
        plan(source, None, engine="sglang", scheme=Scheme("more", (Rule("self_attn.kv_b_proj", packed, ""), *rules)))
    assert caught.value.what == "SGLang cannot load `self_attn.kv_b_proj` as INT4 g32"
    assert "reads `kv_b_proj.weight` again after loading" in caught.value.why
