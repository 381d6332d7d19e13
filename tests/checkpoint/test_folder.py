from __future__ import annotations

import gc
import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from mtpforge.checkpoint import folder_files, open_checkpoint
from mtpforge.errors import INPUT, MACHINE, MtpforgeError
from mtpforge.tensors import Spec

LAYOUTS = ["bf16", "fp8", "nvfp4", "int4-int8mix", "awq-int4", "awq-int4-12experts"]
A, B, C = (np.arange(6, dtype="<f4").reshape(2, 3) + n for n in (0, 100, 200))


@pytest.fixture
def folder(tmp_path):
    """Two shards under an index: a, b in the first, c in the second."""
    home = tmp_path / "model"
    home.mkdir()
    (home / "config.json").write_text('{"model_type": "x"}')
    save_file({"a": A, "b": B}, home / "one.safetensors")
    save_file({"c": C}, home / "two.safetensors")
    write_index(home, a="one.safetensors", b="one.safetensors", c="two.safetensors")
    return home


def write_index(home, **weight_map):
    (home / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def content(checkpoint, ref):
    buffer = bytearray(ref.stop - ref.start)
    checkpoint.read(ref, memoryview(buffer))
    return bytes(buffer)


def refusal(call, *arguments) -> MtpforgeError:
    with pytest.raises(MtpforgeError) as caught:
        call(*arguments)
    assert caught.value.what
    assert caught.value.fix
    return caught.value


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_tensor_of_a_checkpoint_is_located_where_the_library_finds_it(tinyglm, layout):
    home = tinyglm(layout)
    checkpoint = open_checkpoint(str(home))
    refs = checkpoint.locate(checkpoint.names)
    total = 0
    for file in sorted(home.glob("*.safetensors")):
        with safe_open(file, "numpy") as theirs:
            for name in theirs.keys():  # noqa: SIM118  # no mapping
                part = theirs.get_slice(name)
                assert refs[name].spec == Spec(part.get_dtype(), tuple(part.get_shape()))
                assert refs[name].file == file.name
                total += 1
    assert total == len(refs)
    assert checkpoint.strays("") == ()


def test_bytes_are_those_of_the_tensor_and_of_its_rows(folder):
    checkpoint = open_checkpoint(str(folder))
    refs = checkpoint.locate(["b", "c"])
    assert content(checkpoint, refs["b"]) == B.tobytes()
    assert content(checkpoint, refs["c"].rows(1, 2)) == C[1:].tobytes()
    assert checkpoint.missing_bytes(refs.values()) == 0
    assert checkpoint.fetch(refs.values()) is None


def test_only_the_headers_of_the_files_that_hold_the_tensors_are_read(folder):
    (folder / "two.safetensors").write_bytes(b"broken")
    checkpoint = open_checkpoint(str(folder))
    assert set(checkpoint.locate(["a"])) == {"a"}
    assert refusal(checkpoint.locate, ["c"]).what == "`two.safetensors` is not a valid safetensors file"


@pytest.mark.parametrize("file", ["model.safetensors", "anything.safetensors"])
def test_a_single_file_needs_no_index(tmp_path, file):
    (tmp_path / "config.json").write_text("{}")
    save_file({"a": A}, tmp_path / file)
    checkpoint = open_checkpoint(str(tmp_path))
    assert checkpoint.names == {"a"}
    assert content(checkpoint, checkpoint.locate(["a"])["a"]) == A.tobytes()


def test_several_files_without_an_index_are_read_together(folder):
    (folder / "model.safetensors.index.json").unlink()
    assert open_checkpoint(str(folder)).names == {"a", "b", "c"}


def test_consolidated_files_are_the_only_ones_read_without_an_index(folder):
    (folder / "model.safetensors.index.json").unlink()
    save_file({"d": A}, folder / "consolidated.safetensors")
    assert open_checkpoint(str(folder)).names == {"d"}


def test_a_tensor_in_two_files_without_an_index_is_ambiguous(folder):
    (folder / "model.safetensors.index.json").unlink()
    save_file({"a": A}, folder / "again.safetensors")
    checkpoint = open_checkpoint(str(folder))
    error = refusal(checkpoint.locate, ["a"])
    assert error.what == "`a` lies in 2 files"
    assert "again.safetensors" in error.where
    assert "one.safetensors" in error.where
    assert [(s.name, s.files, s.indexed) for s in checkpoint.strays("")] == [
        ("a", ("again.safetensors", "one.safetensors"), "")
    ]


def test_strays_are_tensors_outside_the_index_and_superseded_copies(folder):
    save_file({"a": A, "x": B}, folder / "old.safetensors")
    strays = open_checkpoint(str(folder)).strays("")
    assert [(s.name, s.files, s.indexed) for s in strays] == [
        ("a", ("old.safetensors", "one.safetensors"), "one.safetensors"),
        ("x", ("old.safetensors",), ""),
    ]
    assert open_checkpoint(str(folder)).strays("x")[0].name == "x"
    assert open_checkpoint(str(folder)).strays("b") == ()


def test_a_stray_spelled_with_escapes_is_found(folder):
    raw = b'{"\\u0078y":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    (folder / "old.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + b"1")
    assert [s.name for s in open_checkpoint(str(folder)).strays("xy")] == ["xy"]


def test_a_config_alone_is_a_checkpoint_without_tensors(tmp_path):
    (tmp_path / "config.json").write_text('{"a": 1}')
    checkpoint = open_checkpoint(str(tmp_path))
    assert (checkpoint.config, checkpoint.names, checkpoint.has_headers) == ({"a": 1}, frozenset(), False)
    assert (checkpoint.quantization, checkpoint.revision, checkpoint.location) == ({}, "", str(tmp_path))
    assert checkpoint.strays("") == ()
    assert refusal(checkpoint.locate, ["a"]).why == "the folder holds a config and no weights"


def test_pickled_weights_are_named_as_the_reason(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    error = refusal(open_checkpoint(str(tmp_path)).locate, ["a"])
    assert error.why == "`pytorch_model.bin` is pickle, only safetensors are read"


def test_an_absent_tensor_is_named(folder):
    error = refusal(open_checkpoint(str(folder)).locate, ["zz"])
    assert error.what.endswith("has no tensor `zz`")
    assert error.why == "model.safetensors.index.json does not name it"


def test_an_index_that_names_an_absent_file_names_both(folder):
    (folder / "two.safetensors").unlink()
    checkpoint = open_checkpoint(str(folder))
    assert set(checkpoint.locate(["a", "b"])) == {"a", "b"}  # the shards that are here can be used
    error = refusal(checkpoint.locate, ["c"])
    assert error.what == f"`two.safetensors` is not in `{folder}`"
    assert error.why == "model.safetensors.index.json says that it holds `c`"


def test_an_index_that_names_the_wrong_file_names_both(folder):
    write_index(folder, a="two.safetensors")
    error = refusal(open_checkpoint(str(folder)).locate, ["a"])
    assert error.what == "`two.safetensors` does not hold `a`"


@pytest.mark.parametrize(
    "target", ["../secret.safetensors", "/etc/secret.safetensors", "x/../../y.safetensors", "", ".", "a\\b.safetensors",
               "a\x00.safetensors", "config.json", "model.bin"]
)  # fmt: skip
def test_an_index_cannot_name_files_elsewhere(folder, target):
    write_index(folder, a=target)
    error = refusal(lambda: open_checkpoint(str(folder)).names)
    assert "which is no safetensors file below the checkpoint" in error.what


def test_a_weight_file_in_a_subfolder_is_read(folder):
    (folder / "sub").mkdir()
    (folder / "two.safetensors").rename(folder / "sub" / "two.safetensors")
    write_index(folder, c="sub/two.safetensors")
    checkpoint = open_checkpoint(str(folder))
    assert content(checkpoint, checkpoint.locate(["c"])["c"]) == C.tobytes()


def test_shards_and_config_that_are_links_to_elsewhere_are_followed(folder, tmp_path):
    (tmp_path / "disk").mkdir()
    for file in [*folder.iterdir()]:
        file.rename(tmp_path / "disk" / file.name)
        (folder / file.name).symlink_to(tmp_path / "disk" / file.name)
    checkpoint = open_checkpoint(str(folder))
    assert content(checkpoint, checkpoint.locate(["c"])["c"]) == C.tobytes()


def test_an_index_cannot_lead_out_of_the_folder_through_a_linked_folder(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (folder / "two.safetensors").rename(tmp_path / "elsewhere" / "two.safetensors")
    (folder / "sub").symlink_to(tmp_path / "elsewhere")
    write_index(folder, c="sub/two.safetensors")
    error = refusal(open_checkpoint(str(folder)).locate, ["c"])
    assert error.what == "`sub/two.safetensors` is a link that leads out of the checkpoint"
    assert str(tmp_path / "elsewhere") in error.why


@pytest.mark.parametrize("name", ["LICENSE", "NOTICE.txt"])
def test_what_is_copied_into_a_draft_cannot_be_pulled_in_from_elsewhere(folder, tmp_path, name):
    (tmp_path / "secret").write_text("{}")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(tmp_path / "secret")
    assert (
        refusal(open_checkpoint(str(folder)).documents).what == f"`{name}` is a link that leads out of the checkpoint"
    )


def test_a_link_within_the_folder_and_a_linked_folder_are_fine(folder, tmp_path):
    (folder / "two.safetensors").rename(folder / "real.bin")
    (folder / "two.safetensors").symlink_to("real.bin")
    (tmp_path / "alias").symlink_to(folder)
    checkpoint = open_checkpoint(str(tmp_path / "alias"))
    assert content(checkpoint, checkpoint.locate(["c"])["c"]) == C.tobytes()
    assert checkpoint.location == str(tmp_path / "alias")


def test_a_snapshot_of_a_hub_cache_may_link_to_its_blobs_and_no_further(folder, tmp_path):
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(repository / "blobs" / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    checkpoint = open_checkpoint(str(snapshot))
    assert content(checkpoint, checkpoint.locate(["a"])["a"]) == A.tobytes()
    (tmp_path / "other").write_text("x")
    (snapshot / "LICENSE").symlink_to("../../../other")
    assert "leads out of the checkpoint" in refusal(checkpoint.documents).what


def test_a_file_that_changed_since_its_header_was_read_is_refused(folder):
    checkpoint = open_checkpoint(str(folder))
    ref = checkpoint.locate(["a"])["a"]
    with (folder / "one.safetensors").open("r+b") as file:
        file.seek(ref.start)
        file.write(b"\x01")
    os.utime(folder / "one.safetensors", ns=(1, 1))  # file systems with coarse clocks
    error = refusal(content, checkpoint, ref)
    assert error.what == "`one.safetensors` changed while it was being used"
    assert error.why == "since its header was read, it was written or replaced"


def test_a_file_that_shrank_is_refused_with_both_sizes(folder):
    checkpoint = open_checkpoint(str(folder))
    ref = checkpoint.locate(["b"])["b"]
    size = (folder / "one.safetensors").stat().st_size
    os.truncate(folder / "one.safetensors", size - 4)
    error = refusal(content, checkpoint, ref)
    assert error.why == f"since its header was read, its size went from {size} to {size - 4} bytes"


def test_a_replaced_file_is_refused_once_it_is_opened_anew(folder, monkeypatch):
    monkeypatch.setattr(folder_files, "MAX_OPEN_FILES", 1)
    checkpoint = open_checkpoint(str(folder))
    refs = checkpoint.locate(["a", "c"])  # the second file pushes the first one out
    copy = (folder / "one.safetensors").read_bytes()
    (folder / "new").write_bytes(copy)
    (folder / "new").replace(folder / "one.safetensors")
    assert "changed while it was being used" in refusal(content, checkpoint, refs["a"]).what


def test_a_file_cut_short_names_tensor_and_file(folder):
    checkpoint = open_checkpoint(str(folder))
    ref = checkpoint.locate(["a"])["a"]
    beyond = type(ref)("a", ref.spec, ref.file, ref.start + 1000, ref.stop + 1000)
    error = refusal(content, checkpoint, beyond)
    assert error.what == "`one.safetensors` is cut short"
    assert error.where.endswith("one.safetensors, tensor a")


def test_a_buffer_of_the_wrong_size_is_a_bug_of_the_caller(folder):
    checkpoint = open_checkpoint(str(folder))
    with pytest.raises(ValueError, match="a buffer of 1 bytes for 24"):
        checkpoint.read(checkpoint.locate(["a"])["a"], memoryview(bytearray(1)))


def test_few_files_stay_open(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for number in range(40):
        save_file({f"t{number}": A}, tmp_path / f"{number:02}.safetensors")
    gc.collect()  # files of earlier tests, held by their tracebacks
    before = len(list(Path("/proc/self/fd").iterdir()))
    checkpoint = open_checkpoint(str(tmp_path))
    assert len(checkpoint.names) == 40
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= folder_files.MAX_OPEN_FILES
    del checkpoint
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_threads_that_crowd_out_each_others_files_read_the_right_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_files, "MAX_OPEN_FILES", 1)
    (tmp_path / "config.json").write_text("{}")
    for number in range(4):
        save_file({f"t{number}": A + number}, tmp_path / f"{number}.safetensors")
    checkpoint = open_checkpoint(str(tmp_path))
    refs = checkpoint.locate(checkpoint.names)
    wrong = []

    def work(number):
        truth = (A + np.float32(number)).tobytes()
        wrong.extend(number for _ in range(50) if content(checkpoint, refs[f"t{number}"]) != truth)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_identity_says_the_folder_and_changes_with_its_content(folder, tmp_path):
    first = open_checkpoint(str(folder)).identity
    assert first.startswith("model#")
    assert len(first) == len("model#") + 16
    assert open_checkpoint(str(folder)).identity == first
    moved = tmp_path / "elsewhere" / "model"
    moved.parent.mkdir()
    folder.rename(moved)
    assert open_checkpoint(str(moved)).identity == first
    save_file({"c": C + 1}, moved / "two.safetensors")  # same header, same size, other weights
    second = open_checkpoint(str(moved)).identity
    (moved / "config.json").write_text('{"model_type": "y"}')
    third = open_checkpoint(str(moved)).identity
    assert len({first, second, third}) == 3


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ("[]", "it holds no JSON object"),
        ("[" * 100_000, "it is nested too deeply"),
        ('{"a": 1, "a": 2}', "the key 'a' appears twice in one object"),
        ("1" * 5000, "a number of 5000 digits"),
    ],
)
def test_a_config_that_cannot_be_read_says_why(folder, text, why):
    (folder / "config.json").write_text(text)
    error = refusal(open_checkpoint, str(folder))
    assert error.what == "`config.json` cannot be read as JSON"
    assert why in error.why


def test_a_config_that_is_no_text_says_where(folder):
    (folder / "config.json").write_bytes(b"{}\xff")
    assert refusal(open_checkpoint, str(folder)).why == "it is not UTF-8 text: invalid start byte at byte 2"


def test_a_huge_config_is_not_read(folder):
    os.truncate(folder / "config.json", 100_000_001)
    error = refusal(open_checkpoint, str(folder))
    assert error.why == "it has 100,000,001 bytes, at most 100,000,000 are read"


@pytest.mark.parametrize("weight_map", ["[]", '{"a": 1}', "null"])
def test_an_index_of_wrong_types_is_refused(folder, weight_map):
    (folder / "model.safetensors.index.json").write_text(f'{{"weight_map": {weight_map}}}')
    error = refusal(lambda: open_checkpoint(str(folder)).names)
    assert error.what.startswith("`weight_map")


def test_licences_and_notices_are_found_whatever_their_case(folder):
    (folder / "LICENSE").write_text("mit")
    (folder / "License-extra.txt").write_text("more")
    (folder / "NOTICE.md").write_text("who")
    (folder / "notes.txt").write_text("no")
    assert open_checkpoint(str(folder)).documents() == {
        "LICENSE": b"mit", "License-extra.txt": b"more", "NOTICE.md": b"who",
    }  # fmt: skip
    (folder / "NOTICE.md").write_bytes(b" " * 1_000_001)
    assert refusal(open_checkpoint(str(folder)).documents).what == "`NOTICE.md` is too large for a licence or notice"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_the_machines_fault(folder):
    (folder / "two.safetensors").chmod(0)
    assert refusal(open_checkpoint(str(folder)).locate, ["c"]).code == MACHINE


def test_a_folder_without_a_config_is_no_checkpoint(tmp_path):
    error = refusal(open_checkpoint, str(tmp_path))
    assert (error.what, error.code) == (f"`{tmp_path}` has no config.json", INPUT)
