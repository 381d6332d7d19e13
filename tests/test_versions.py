"""Which version a checkpoint says it is of, by what, and that no head of another one is ever chosen for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from mtpforge import errors
from mtpforge.checkpoint import open_checkpoint
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.engines import ENGINES
from mtpforge.errors import MtpforgeError
from mtpforge.families import family_of
from mtpforge.source_choice import Choice, choose_source, has_candidate
from mtpforge.versions import stated

# How a target states a version: what its folder is called, its card's base models, keys of its config.json.
WAYS: dict[str, tuple[str, tuple[str, ...], dict[str, str]]] = {
    "name": ("GLM-{}-AWQ-INT4", (), {}),
    "lower-case": ("glm{}", (), {}),
    "pruned": ("GLM-{}-REAP-469B", (), {}),
    "card": ("foo", ("zai-org/GLM-{}",), {}),
    "card-of-a-quant": ("foo", ("cyankiwi/GLM-{}-AWQ-INT4",), {}),
    "config": ("foo", (), {"name_or_path": "zai-org/GLM-{}"}),
    "old-config": ("foo", (), {"_name_or_path": "/data/GLM-{}"}),
    "all": ("GLM-{}-FP8", ("zai-org/GLM-{}",), {"_name_or_path": "zai-org/GLM-{}-FP8"}),
}
PAIRS = [("5.2", "5.3"), ("5.3", "5.2"), ("5", "5.2"), ("5.1", "5")]


@pytest.fixture
def made(tinyglm, tmp_path) -> Callable[..., Path]:
    """A copy of a tiny checkpoint that states versions."""

    def make(name: str, bases: tuple[str, ...] = (), config: Mapping[str, str] = {}, layout: str = "awq-int4") -> Path:
        folder = shutil.copytree(tinyglm(layout), tmp_path / layout / name)
        text = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(text | config))
        if bases:
            (folder / "README.md").write_text("\n".join(["---", "base_model:", *(f"- {b}" for b in bases), "---"]))
        return folder

    return make


def of(made: Callable[..., Path], way: str, version: str, layout: str = "awq-int4") -> Path:
    name, bases, config = WAYS[way]
    return made(
        name.format(version),
        tuple(base.format(version) for base in bases),
        {key: value.format(version) for key, value in config.items()},
        layout,
    )


def choose(target: Path, hub: Mapping[str, Path], asked: list[str] | None = None) -> Choice:
    """The choice where only these repositories exist."""

    def opened(name: str) -> Checkpoint:
        if asked is not None:
            asked.append(name)
        if name not in hub:
            raise MtpforgeError(f"{name} does not exist", fix="look there", code=errors.REMOTE)
        return open_checkpoint(str(hub[name]))

    held = open_checkpoint(str(target))
    return choose_source(held, family_of(held.config), ENGINES["vllm"], opened)


def refused(target: Path, hub: Mapping[str, Path]) -> MtpforgeError:
    with pytest.raises(MtpforgeError, match="no source for the MTP layer") as error:
        choose(target, hub)
    return error.value


@pytest.fixture
def hub(tinyglm) -> dict[str, Path]:
    """Every published base model; all hold the layer, and say nothing of a version."""
    return {f"zai-org/GLM-{version}": tinyglm("bf16") for version in ("5", "5.1", "5.2", "5.3")}


def said(folder: Path) -> list[tuple[str, str, str]]:
    held = open_checkpoint(str(folder))
    return [(s.version, s.by, s.said) for s in stated(held, family_of(held.config))]


def test_each_way_is_told_with_its_words(made):
    folder = made("GLM-5.3-FP8", ("x/GLM-5.3",), {"_name_or_path": "a/GLM-5.3", "name_or_path": "b/GLM-5.3"})
    assert said(folder) == [
        ("5.3", "its name", "GLM-5.3-FP8"),
        ("5.3", "`base_model` of its card", "x/GLM-5.3"),
        ("5.3", "`_name_or_path` of its config.json", "a/GLM-5.3"),
        ("5.3", "`name_or_path` of its config.json", "b/GLM-5.3"),
    ]


def test_folder_that_says_nothing_states_nothing(tinyglm):
    assert said(tinyglm("bf16")) == []


def test_name_is_the_folder_s_whatever_was_typed(made, monkeypatch):
    monkeypatch.chdir(made("GLM-5.3"))
    assert said(Path()) == [("5.3", "its name", "GLM-5.3")]


@pytest.mark.parametrize("version", ["5", "5.1", "5.2", "5.3"])
@pytest.mark.parametrize("way", WAYS)
def test_last_resort_is_the_base_model_of_the_stated_version(made, hub, way, version):
    asked: list[str] = []
    choose(of(made, way, version), hub, asked)
    assert {name for name in asked if name in hub} == {f"zai-org/GLM-{version}"}


@pytest.mark.parametrize(("version", "other"), PAIRS)
@pytest.mark.parametrize("way", WAYS)
def test_no_other_version_is_taken_where_the_right_one_is_not_to_be_had(made, hub, way, version, other):
    error = refused(of(made, way, version), {f"zai-org/GLM-{other}": hub[f"zai-org/GLM-{other}"]})
    assert error.code == errors.REMOTE
    assert f"zai-org/GLM-{version} does not exist" in error.why
    assert f"zai-org/GLM-{other}:" not in error.why


@pytest.mark.parametrize(("version", "other"), PAIRS)
@pytest.mark.parametrize("way", WAYS)
def test_source_that_states_another_version_is_passed_over(made, way, version, other):
    liar = of(made, way, other, "bf16")
    error = refused(of(made, "name", version), {f"zai-org/GLM-{version}": liar})
    assert f"zai-org/GLM-{version}: is GLM-{other} by " in error.why


def test_nothing_stated_asks_and_lists_the_base_models_by_version(made, hub):
    target = made("foo")
    error = refused(target, hub)
    assert error.code == errors.INPUT
    assert error.why.startswith("no name, card or config says which GLM the target is")
    for version in ("5", "5.1", "5.2", "5.3"):
        assert f"`--source zai-org/GLM-{version}` for GLM-{version}" in error.fix
    held = open_checkpoint(str(target))
    assert not has_candidate(held, family_of(held.config))


@pytest.mark.parametrize(
    ("name", "bases", "config"),
    [
        ("GLM-5.2-AWQ", ("zai-org/GLM-5.3",), {}),
        ("foo", ("zai-org/GLM-5.3",), {"name_or_path": "zai-org/GLM-5.2"}),
        ("merge", ("zai-org/GLM-5.2", "zai-org/GLM-5.3"), {}),
    ],
)
def test_statements_that_contradict_are_told_and_nobody_is_chosen(made, hub, name, bases, config):
    target = made(name, bases, config)
    error = refused(target, hub)
    assert error.code == errors.INPUT
    assert error.why.startswith("it states more than one version: GLM-5.")
    assert "GLM-5.2 by " in error.why
    assert "GLM-5.3 by `base_model` of its card (zai-org/GLM-5.3)" in error.why
    assert "`--source zai-org/GLM-5.2` for GLM-5.2" in error.fix
    held = open_checkpoint(str(target))
    assert not has_candidate(held, family_of(held.config))


def test_version_without_a_known_base_model_is_told(made, hub):
    error = refused(made("GLM-5.9-AWQ"), hub)
    assert (error.code, error.why) == (
        errors.INPUT,
        "it is GLM-5.9 by its name (GLM-5.9-AWQ), of which no base model is known",
    )


def test_card_of_a_nameless_quant_states_the_version_of_the_chain(made, hub, tmp_path):
    target = made("foo", ("org/bar",))
    middle = made("bar", ("zai-org/GLM-5.3",))
    choice = choose(target, hub | {"org/bar": middle})
    assert choice.source.location == str(hub["zai-org/GLM-5.3"].resolve())
    assert choice.alternatives == (("org/bar", "holds no MTP layer"),)
    assert choose(target, hub | {"org/bar": made("GLM-5.1-x")}).reason == (
        "published base of GLM-5.1 by org/bar's name (GLM-5.1-x)"
    )


def test_chain_that_contradicts_the_target_is_told(made, hub):
    error = refused(
        made("GLM-5.2-AWQ", ("org/bar",)), hub | {"org/bar": made("bar", ("zai-org/GLM-5.3",), layout="bf16")}
    )
    assert error.why == (
        "it states more than one version: GLM-5.2 by its name (GLM-5.2-AWQ) and"
        " GLM-5.3 by `base_model` of org/bar's card (zai-org/GLM-5.3)"
    )


def test_base_model_of_the_card_is_taken_where_nothing_states_a_version(made, tinyglm):
    assert choose(made("foo", ("org/bar",)), {"org/bar": tinyglm("bf16")}).reason == "base model of the target's card"


def test_target_s_own_layer_is_of_its_version_and_names_no_other(made):
    choice = choose(made("GLM-5.3-x", layout="bf16"), {})
    assert choice.self_sufficient
    assert choice.alternatives == (("zai-org/GLM-5.3", "published base of GLM-5.3 by its name (GLM-5.3-x)"),)
    assert choose(made("foo", layout="bf16"), {}).alternatives == ()


@pytest.mark.parametrize(
    ("manifest", "versions"),
    [
        ({"source": {"id": "zai-org/GLM-5.3@0123abc"}}, ["5.3"]),
        ({"source": {"id": "GLM-5.2-NVFP4#0123abcd"}}, ["5.2"]),
        ({"source": {"id": "foo#0123abcd", "stated": [{"version": "5.1", "by": "its name"}]}}, ["5.1"]),
        ({"source": {"id": "GLM-5.2#0123abcd", "stated": []}}, []),
        ({"source": {"id": "GLM-5.2#0", "stated": [{"version": 5}, {}, 7]}}, []),
        ({"source": "GLM-5.2"}, []),
        ([], []),
        (None, []),
    ],
)
def test_draft_is_of_the_version_that_its_manifest_says(made, manifest, versions):
    draft = made("GLM-5.2-AWQ-MTP-int4", layout="bf16")
    (draft / "mtpforge.json").write_text("{" if manifest is None else json.dumps(manifest))
    assert [(version, by) for version, by, _ in said(draft)] == [(v, "its mtpforge.json") for v in versions]
