"""Which files of a folder or repository are one model, and what it then holds."""

import shutil

import gguf
import pytest
from checkpoint.hub.test_repository import contents
from faults.hub_server import serving
from gguf_files import Type, convert

from mtpforge.checkpoint import open_checkpoint, open_served
from mtpforge.checkpoint.gguf import checkpoint, choosing
from mtpforge.errors import MtpforgeError

LAYER = "model.layers.3."
KINDS = {"_exps": Type.Q4_0, "attn_k_b": Type.F16, "": Type.Q8_0}
REPO = "org/GLM-5.2-GGUF"
SPLIT = [f"Q4/m-Q4-{n:05d}-of-00003.gguf" for n in (1, 2, 3)]


@pytest.fixture(scope="module")
def model(tinyglm, tmp_path_factory):
    """A folder with the tiny model in three parts."""
    folder = tmp_path_factory.mktemp("model")
    keys = {"general.name": "GLM 5.2", "general.base_model.0.repo_url": "https://huggingface.co/zai-org/GLM-5.2"}
    convert(tinyglm("bf16"), folder / "tiny.gguf", KINDS, parts=3, keys=keys)
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serving(tmp_path, monkeypatch) as server:
        yield server


def layer_of(checkpoint):
    return checkpoint.locate(name for name in checkpoint.names if name.startswith(LAYER))


def test_a_folder_and_any_of_its_parts_are_the_same_model(model):
    whole = open_checkpoint(str(model))
    for part in sorted(model.iterdir()):
        named = open_checkpoint(str(part))
        assert (named.identity, named.names, named.config) == (whole.identity, whole.names, whole.config)
        assert (named.location, named.label) == (str(model), str(part))
    assert whole.identity.startswith("tiny-00001-of-00003.gguf#")
    assert whole.base_models() == ("zai-org/GLM-5.2",)
    assert whole.config["general.name"] == "GLM 5.2"


def test_its_bytes_are_those_that_the_package_reads(model):
    opened = open_checkpoint(str(model))
    theirs = {}
    for part in sorted(model.iterdir()):
        theirs |= {tensor.name: bytes(tensor.data) for tensor in gguf.GGUFReader(part).tensors}
    held = contents(opened, opened.locate(opened.names))
    experts = [held[f"{LAYER}mlp.experts.{n}.up_proj.weight_q4_0"] for n in range(16)]
    assert b"".join(experts) == theirs["blk.3.ffn_up_exps.weight"]
    assert held[f"{LAYER}self_attn.kv_b_proj.k_b"] == theirs["blk.3.attn_k_b.weight"]
    assert held["model.embed_tokens.weight_q8_0"] == theirs["token_embd.weight"]
    assert sum(map(len, held.values())) == sum(map(len, theirs.values())), "every byte once"


def test_one_byte_in_a_later_part_makes_another_identity(model, tmp_path):
    other = shutil.copytree(model, tmp_path / "other")
    assert open_checkpoint(str(other)).identity == open_checkpoint(str(model)).identity
    last = max(other.iterdir())
    last.write_bytes(last.read_bytes()[:-1] + b"\x55")
    assert open_checkpoint(str(other)).identity != open_checkpoint(str(model)).identity


def test_safetensors_are_read_before_gguf(model, tinyglm, tmp_path):
    both = shutil.copytree(tinyglm("bf16"), tmp_path / "both")
    shutil.copy(next(model.iterdir()), both / "x.gguf")
    assert open_checkpoint(str(both)).only_source == ""


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda parts: parts[1].unlink(), "part 2 of `tiny` is missing"),
        (lambda parts: [part.unlink() for part in parts[1:]], "part 2 and 1 more of `tiny` is missing"),
        (lambda parts: shutil.copy(parts[0], parts[1]), "`tiny-00002-of-00003.gguf` is not a valid GGUF file"),
        (lambda parts: shutil.copy(parts[0], parts[0].with_name("tiny-00001-of-00002.gguf")), "contradict each other"),
        (lambda parts: shutil.copy(parts[0], parts[0].with_name("tiny.gguf")), "contradict each other"),
        (lambda parts: shutil.copy(parts[0], parts[0].with_name("other.gguf")), "holds 2 models in GGUF"),
        (
            lambda parts: parts[2].write_bytes(parts[2].read_bytes()[:-3000]),
            "`tiny-00003-of-00003.gguf` is not a valid",
        ),
        (lambda parts: parts[2].write_bytes(b""), "`tiny-00003-of-00003.gguf` is not a valid GGUF file"),
    ],
)
def test_parts_that_are_not_whole_are_refused(model, tmp_path, spoil, what):
    folder = shutil.copytree(model, tmp_path / "spoiled")
    spoil(sorted(folder.iterdir()))
    with pytest.raises(MtpforgeError) as caught:
        open_checkpoint(str(folder))
    assert what in caught.value.what


def test_a_part_under_another_name_says_which_it_is(model, tmp_path):
    shutil.copy(sorted(model.iterdir())[1], tmp_path / "alone.gguf")
    with pytest.raises(MtpforgeError) as caught:
        open_checkpoint(str(tmp_path / "alone.gguf"))
    assert caught.value.why == "it says that it is part 1 of 3, counted from 0; by the files' names it is 0 of 1"


def merged(model, to, count):
    """What `llama-gguf-split --merge` writes: the parts' tensors, the first part's keys but for the number of parts."""
    parts = [gguf.GGUFReader(part) for part in sorted(model.iterdir())]
    writer = gguf.GGUFWriter(to, "glm-dsa")
    for key, field in parts[0].fields.items():
        if not key.startswith(("GGUF.", "general.architecture", "tokenizer.")):
            writer.add_key_value(key, count if key == "split.count" else field.contents(), field.types[0])
    for tensor in (tensor for part in parts for tensor in part.tensors):
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert {"split.no", "split.count", "split.tensors.count"} <= gguf.GGUFReader(to).fields.keys()
    return to


def test_merged_parts_are_one_file(model, tmp_path):
    parts, whole = open_checkpoint(str(model)), open_checkpoint(str(merged(model, tmp_path / "m.gguf", 0)))
    assert contents(whole, layer_of(whole)) == contents(parts, layer_of(parts))
    with pytest.raises(MtpforgeError, match="not a valid GGUF file"):
        open_checkpoint(str(merged(model, tmp_path / "two.gguf", 2)))


def test_tensors_are_counted_over_all_parts(model, monkeypatch):
    """Headers are read until there are too many: of what each may claim there could be thousands."""
    opened, read = [], checkpoint.header.read
    counts = [len(gguf.GGUFReader(part).tensors) for part in sorted(model.iterdir())]
    monkeypatch.setattr(checkpoint, "_THREADS", 1)
    monkeypatch.setattr(checkpoint, "_MOST_WEIGHTS", counts[0] + counts[1] - 1)
    monkeypatch.setattr(checkpoint.header, "read", lambda piece, file: opened.append(file) or read(piece, file))
    with pytest.raises(MtpforgeError, match="not a valid GGUF file") as caught:
        open_checkpoint(str(model))
    assert "more than" in caught.value.why
    assert len(opened) == 2


def test_of_later_parts_only_their_place_is_kept(model):
    holder = open_checkpoint(str(model))._holder
    first, *others = checkpoint._headers(holder, holder.files)
    assert "glm-dsa.block_count" in first.values
    assert [sorted(part.values) for part in others] == [["split.count", "split.no"]] * 2


def test_it_can_be_no_target(model):
    with pytest.raises(MtpforgeError, match="cannot be a target") as caught:
        open_served(str(model))
    assert "made by its own converter" in caught.value.why


FILES = ["Q8_0.gguf", "a/GLM-5.2-Q4_K_M.gguf", "a/GLM-5.2-UD-Q4_K_XL.gguf", *SPLIT, "b/mmproj-F16.gguf", "imatrix.gguf"]


@pytest.mark.parametrize(
    ("wanted", "files"),
    [
        ("Q8_0", ["Q8_0.gguf"]),
        ("q8_0", ["Q8_0.gguf"]),
        ("Q4_K_M", ["a/GLM-5.2-Q4_K_M.gguf"]),
        ("a/GLM-5.2-Q4_K_M.gguf", ["a/GLM-5.2-Q4_K_M.gguf"]),
        ("a/GLM-5.2-Q4_K_M", ["a/GLM-5.2-Q4_K_M.gguf"]),
        ("Q4", SPLIT),
        (SPLIT[2], SPLIT),
        ("Q4_K_XL", ["a/GLM-5.2-UD-Q4_K_XL.gguf"]),
    ],
)
def test_a_model_is_chosen_by_file_name_folder_or_how_it_ends(wanted, files):
    assert list(choosing.chosen(FILES, wanted, "org/x", lambda name, _: name)) == files


@pytest.mark.parametrize("wanted", ["", "a", "Q5_K_M", "K_M.gguf", "_K_M", "b/mmproj-F16.gguf", "imatrix", "("])
def test_what_fits_several_or_none_is_answered_with_the_choices(wanted):
    with pytest.raises(MtpforgeError) as caught:
        choosing.chosen(FILES, wanted, "org/x", lambda name, _: f"`org/x:{name}`")
    listed = "there are `Q4/m-Q4`, `Q8_0`, `a/GLM-5.2-Q4_K_M`, `a/GLM-5.2-UD-Q4_K_XL`"
    assert caught.value.why == listed
    assert caught.value.fix.startswith("say which: `org/x:")


@pytest.mark.parametrize("others", [[], SPLIT])
def test_what_is_for_images_is_said_to_be_no_language_model(tmp_path, others):
    for name in ["mmproj-F16.gguf", *(name.rpartition("/")[2] for name in others)]:
        (tmp_path / name).write_bytes(b"GGUF")
    named = str(tmp_path / "mmproj-F16.gguf")
    with pytest.raises(MtpforgeError) as caught:
        open_checkpoint(named)
    assert caught.value.what == f"`{named}` holds no language model"
    if others:
        assert caught.value.fix == f"say which: `{tmp_path / 'm-Q4-00001-of-00003.gguf'}`"
    else:
        assert caught.value.fix.startswith("name the file that holds the text model")


def test_what_is_for_images_in_a_repository_is_no_revision(hub, tmp_path):
    (folder := tmp_path / "repo").mkdir()
    (folder / "mmproj-F16.gguf").write_bytes(b"GGUF")
    hub.add(REPO, folder)
    with pytest.raises(MtpforgeError, match="holds no language model") as caught:
        open_checkpoint(f"{REPO}:mmproj-F16.gguf")
    assert "revision" not in caught.value.fix


@pytest.mark.parametrize(("typed", "meant"), [(":main", "@main"), (":Q4@main", "@main")])
def test_a_choice_where_there_is_no_gguf_is_told_from_a_revision(hub, tinyglm, typed, meant):
    hub.add(REPO, tinyglm("bf16"))
    with pytest.raises(MtpforgeError) as caught:
        open_checkpoint(REPO + typed)
    assert caught.value.what == f"`{REPO}{typed}` holds no model in GGUF"
    assert caught.value.fix == f"a revision is typed `{REPO}{meant}`"


def test_of_a_repository_headers_and_wanted_bytes_are_fetched(hub, model, tmp_path):
    commit = hub.add(REPO, model)
    remote, local = open_checkpoint(REPO), open_checkpoint(str(model))
    assert (remote.names, remote.config, remote.identity) == (local.names, local.config, f"{REPO}@{commit}")
    assert (remote.label, remote.location, remote.revision) == (REPO, REPO, commit)
    headers = sum(len(file.read_bytes()) - _data_bytes(file) for file in model.iterdir())
    assert hub.sent["range"] <= headers + 3 * (64 << 10)
    before = hub.sent["range"]
    refs = layer_of(remote)
    promised = remote.missing_bytes(refs.values())
    remote.fetch(refs.values())
    assert hub.sent["range"] - before == promised
    assert hub.sent["whole"] == 0
    assert contents(remote, refs) == contents(local, layer_of(local))


def _data_bytes(file):
    return len(file.read_bytes()) - min(t.data_offset for t in gguf.GGUFReader(file).tensors)


def test_of_several_models_in_a_repository_one_is_named(hub, model, tmp_path):
    folder = tmp_path / "repo"
    shutil.copytree(model, folder / "Q4")
    shutil.copytree(model, folder / "Q8")
    (folder / "config.json").write_text('{"model_type": "glm_moe_dsa"}')
    (folder / "README.md").write_text("---\nbase_model: zai-org/GLM-5.1\n---\n")
    commit = hub.add(REPO, folder)
    with pytest.raises(MtpforgeError) as caught:
        open_checkpoint(REPO)
    assert caught.value.why == "there are `Q4/tiny`, `Q8/tiny`"
    assert caught.value.fix == f"say which: `{REPO}:Q4/tiny`"
    chosen = open_checkpoint(f"{REPO}:Q8@{commit}")
    assert (chosen.label, chosen.identity) == (f"{REPO}:Q8@{commit}", f"{REPO}:Q8@{commit}")
    assert chosen.base_models() == ("zai-org/GLM-5.1",)
    assert {ref.file.partition("/")[0] for ref in layer_of(chosen).values()} == {"Q8"}
    assert open_checkpoint(chosen.identity).names == chosen.names, "what a manifest keeps can be typed"


def test_a_path_to_a_config_means_the_folder_of_gguf_files_too(model, tmp_path):
    folder = tmp_path / "repo"
    shutil.copytree(model, folder)
    (folder / "config.json").write_text('{"model_type": "glm_moe_dsa"}')
    whole, by_config = open_checkpoint(folder), open_checkpoint(folder / "config.json")
    assert isinstance(whole, checkpoint.Gguf)
    assert (by_config.identity, by_config.names) == (whole.identity, whole.names)


def test_types_that_no_weight_has_are_refused_by_name(tinyglm, tmp_path):
    made = convert(tinyglm("bf16"), tmp_path / "x.gguf", {"": Type.Q8_0})
    raw = made.first.read_bytes()
    name, old, new = b"blk.3.attn_output.weight", Type.Q8_0, Type.I8
    at = raw.index(name) + len(name) + 4 + 16
    assert int.from_bytes(raw[at : at + 4], "little") == old.value
    # the same bytes as int8 of another width: 136 of them are 128 weights in Q8_0
    width = at - 16
    spoiled = raw[:width] + (136).to_bytes(8, "little") + raw[width + 8 : at] + new.value.to_bytes(4, "little")
    made.first.write_bytes(spoiled + raw[at + 4 :])
    opened = open_checkpoint(str(made.first))
    with pytest.raises(MtpforgeError) as caught:
        layer_of(opened)
    assert caught.value.what == "`blk.3.attn_output.weight` is stored as I8, which is not read"
    assert f"{made.first}, tensor blk.3.attn_output.weight" in caught.value.where
