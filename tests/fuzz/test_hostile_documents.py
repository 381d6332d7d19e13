"""index, config.json, quantization blocks and model cards that lie. A plan comes out, or an error that can be shown."""

from __future__ import annotations

import json
import os

import pytest
from fuzz import tiny
from fuzz.bounds import cases, outcome
from fuzz.mutating import ODD, WORDS, Raw, mutated, mutations, text
from hypothesis import example, given
from hypothesis import strategies as st

from mtpforge.checkpoint import open_checkpoint
from mtpforge.engines import ENGINES
from mtpforge.errors import MtpforgeError
from mtpforge.families import family_of
from mtpforge.inspecting import inspect
from mtpforge.planning import plan
from mtpforge.source_choice import choose_source

INDEX, SIDE = "model.safetensors.index.json", "hf_quant_config.json"
FILES = st.sampled_from(
    [
        "model.safetensors", "./model.safetensors", "model.safetensors/", "/etc/passwd", "/model.safetensors",
        "../source/model.safetensors", "a/../../model.safetensors", "absent.safetensors", "a" * 300 + ".safetensors",
        "a/" * 2000 + "x.safetensors", "a\0.safetensors", "\ud800.safetensors", "\x1b[2J.safetensors", "config.json",
        "folder.safetensors", "sub/loop.safetensors", "sub/pipe.safetensors", "sub/out.safetensors", ".safetensors",
        "C:\\x.safetensors",
    ]
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory, target):
    """A folder whose documents are rewritten, with all that a folder may hold beside them, and a good target."""
    path = tiny.folder(tmp_path_factory.mktemp("documents") / "source", "bf16")
    (path / "folder.safetensors").mkdir()
    (path / "sub").mkdir()
    (path / "sub" / "loop.safetensors").symlink_to("loop.safetensors")
    (path / "sub" / "out.safetensors").symlink_to("/etc/passwd")
    os.mkfifo(path / "sub" / "pipe.safetensors")
    return path, open_checkpoint(str(target("int4")))


def use(path, target):
    """Everything that reads documents: as a source, and as a target that may bring its own source."""
    opened = outcome(lambda: open_checkpoint(str(path)))
    if isinstance(opened, MtpforgeError):
        return
    outcome(lambda: inspect(opened))
    outcome(lambda: plan(opened, target).digest)
    outcome(lambda: plan(open_checkpoint(str(path)), opened).digest)
    outcome(lambda: choose_source(opened, family_of(opened.config), ENGINES["vllm"], never))


def never(name):
    raise MtpforgeError(f"`{ascii(name)[:100]}` is not to be asked for here")


def rewritten(path, **texts):
    """The folder with these documents and no others."""
    names = {"config": "config.json", "index": INDEX, "side": SIDE, "card": "README.md"}
    for key, name in names.items():
        (path / name).unlink(missing_ok=True)
        if key in texts:
            data = texts[key]
            (path / name).write_bytes(data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass"))
    return path


@cases(120)
@given(mutations(st.one_of(FILES, ODD)))
@example([((1, 0), "set", "a" * 300 + ".safetensors")])
@example([((1, 0), "set", "sub/loop.safetensors")])
@example([((1, 0), "rename", "model.layers." + "9" * 5000 + ".x")])
@example([((1, 0), "rename", "model.layers.1.\x1b[2J")])
def test_an_index_that_lies_ends_in_a_plan_or_an_error(place, changes):
    path, target = place
    weight_map = dict.fromkeys(tiny.tensors("bf16"), "model.safetensors")
    index = mutated({"metadata": {"total_size": 1}, "weight_map": weight_map}, changes)
    use(rewritten(path, config=json.dumps(tiny.config()), index=index), target)


@cases(130)
@given(mutations())
@example([((20,), "set", 10**4000), ((25,), "set", 10**4000)])  # their product cannot be printed
@example([((4,), "set", Raw("[" * 300 + "]" * 300))])  # nothing that calls itself a level can copy it
def test_a_config_that_lies_ends_in_a_plan_or_an_error(place, changes):
    path, target = place
    use(rewritten(path, config=mutated(tiny.config(), changes)), target)


@pytest.mark.parametrize("key", sorted(tiny.CONFIG))
@pytest.mark.parametrize(
    "value", [10**4000, Raw("[" * 300 + "]" * 300), float("nan"), "\x1b[31m" * 100], ids=lambda v: str(v)[:9]
)
def test_no_field_of_a_config_is_believed(place, key, value):
    path, target = place
    config = {**tiny.config(), key: value}
    use(rewritten(path, config=text(config)), target)


@cases(110)
@given(st.sampled_from(sorted(tiny.BLOCKS)), mutations(WORDS), st.booleans())
@example("int4", [((2, 0), "set", "re:(.*.*.*.*.*)*x")], False)
def test_a_quantization_block_that_lies_ends_in_a_plan_or_an_error(place, name, changes, beside):
    path, target = place
    block = mutated(tiny.BLOCKS[name] or {"quant_method": "x"}, changes)
    config = {**tiny.config(), **({} if beside else {"quantization_config": Raw(block)})}
    rewritten(path, config=text(config), **({"side": block} if beside else {}))
    use(path, target)


CARD_PIECES = st.one_of(
    st.sampled_from(
        [
            "---", "base_model:", "base_model: a/b", "- a/b", "  - 'a/b'", "[a/b, c/d]", "{x: y/z}", "&a", "*a",
            "- /etc/passwd", "- ../secret", "- ~/x", "- ./org/name", "- \x1b[31ma/b", "- a/b@main", "- a/b # c/d",
            "license: mit", "<<: [*a, *a]", "a: &a {x: 1}", "b: &b {<<: [*a, *a, *a, *a, *a, *a, *a]}", "? [",
            "- " + "a" * 200 + "/b", "!!python/object:os.x",
        ]
    ),
    st.text(max_size=20),
)  # fmt: skip
BOMB = ["---", "a0: &a0 {x: 1}", *(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 12))]


@cases(80)
@given(st.lists(CARD_PIECES, max_size=12), st.booleans())
@example([*BOMB, "base_model: a/b", "---"], False)
@example(["---", "base_model:", *["- a/b"] * 50_000, "---"], False)
@example(["---", "x: " + "[" * 400_000, "---"], False)
def test_a_model_card_names_hub_ids_or_nothing(place, lines, front):
    path, _ = place
    card = "\n".join(["---", "base_model:", *lines, "---"] if front else lines)
    opened = open_checkpoint(str(rewritten(path, config=json.dumps(tiny.config()), card=card)))
    for name in outcome(opened.base_models):
        assert len(name) <= 96
        assert not name.startswith(("/", ".", "~"))
        assert all(c.isascii() and (c.isalnum() or c in "-_./") for c in name)
        assert name.count("/") == 1


def test_a_card_cannot_name_a_folder_of_this_machine_as_the_source(place, source):
    path, _ = place
    card = f"---\nbase_model: {source('bf16')}\n---\n"
    opened = open_checkpoint(str(rewritten(path, config=json.dumps(tiny.config(num_hidden_layers=2)), card=card)))
    asked = []

    def never_found(name):
        asked.append(name)
        raise MtpforgeError("not there")

    with pytest.raises(MtpforgeError):
        choose_source(opened, family_of(opened.config), ENGINES["vllm"], never_found)
    assert asked == []
