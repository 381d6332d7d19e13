"""Versions in names: every spelling that releases use, and names that look like one and say nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mtpforge.families import families
from mtpforge.families.versions import versions_in

FAMILIES = {family.name: family for family in families()}
LETTERED = {v: (f"deepseek-ai/DeepSeek-{v}",) for v in ("V3", "V3-0324", "R1", "R1-0528", "V3.1-Terminus", "V3.2-Exp")}
DEEPSEEK = replace(FAMILIES["glm_moe_dsa"], stem="DeepSeek", base_models={**LETTERED, "V3.2-Exp-Base": ("x",)})

STATES = {
    "cyankiwi/GLM-5.2-AWQ-INT4": "5.2",
    "nvidia/GLM-5.2-NVFP4": "5.2",
    "zai-org/GLM-5-FP8": "5",
    "zai-org/GLM-5": "5",
    "zai-org/GLM-5.1-FP8": "5.1",
    "0xSero/GLM-5.3-REAP-469B": "5.3",
    "x/GLM-5-744B-A40B": "5",
    "x/GLM-5-4bit": "5",
    "x/glm5.2-awq": "5.2",
    "x/glm_5.3": "5.3",
    "x/GLM5-INT4": "5",
    "x/glm-5p2-fp8": "5.2",
    "x/abliterated-GLM-5.2.Q4": "5.2",
    "my GLM 5.2": "5.2",
    "/models/GLM-5.3/": "5.3",
    "C:\\models\\GLM-5.3": "5.3",
    "hub/models--zai-org--GLM-5.2/snapshots/0123abcd": "5.2",
    "x/GLM-5.9": "5.9",  # of which the table knows nothing
    "GLM-5.2-FP8@0123abc": "5.2",
}
SILENT = [
    "models/foo",
    "zai-org/GLM",
    "x/glm-5-2-awq",  # 5, or 5.2 with its point lost
    "x/glm52",
    "THUDM/GLM-130B",
    "zai-org/GLM-5V",
    "x/chatglm3",
    "x/GLM-5.2x",
    "x/GLM-5.2.3x",
    "GLM-5.3-experiments/foo",  # what the folder above is called
    "hub/models--GLM-5.3--foo/snapshots/0123abcd",  # what the organisation is called
    "snapshots/0123abcd",
    "/",
    "",
]


@pytest.mark.parametrize(("name", "version"), STATES.items())
def test_name_states_one_version(name, version):
    assert versions_in(name, FAMILIES["glm_moe_dsa"]) == (version,)


@pytest.mark.parametrize("name", SILENT)
def test_name_states_none(name):
    assert versions_in(name, FAMILIES["glm_moe_dsa"]) == ()


def test_name_of_a_merge_states_both():
    assert versions_in("x/GLM-5.2-GLM-5.3-SLERP", FAMILIES["glm_moe_dsa"]) == ("5.2", "5.3")


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("zai-org/GLM-4.5", "4.5"),
        ("zai-org/GLM-4.5-FP8", "4.5"),
        ("zai-org/GLM-4.5-Air-FP8", "4.5-Air"),
        ("x/glm4.5_air", "4.5-Air"),
        ("x/GLM-4.5-Airy", "4.5"),
        ("QuantTrio/GLM-4.6-AWQ", "4.6"),
    ],
)
def test_word_behind_the_number_makes_another_version(name, version):
    assert versions_in(name, FAMILIES["glm4_moe"]) == (version,)


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("deepseek-ai/DeepSeek-V3", "V3"),
        ("x/DeepSeek-V3-4bit", "V3"),
        ("x/deepseek_v3_0324-awq", "V3-0324"),
        ("x/DeepSeek-V3-0325", "V3"),  # of which the table knows nothing
        ("nvidia/DeepSeek-R1-0528-FP4", "R1-0528"),
        ("nvidia/DeepSeek-R1-FP4", "R1"),
        ("x/deepseek-v3p1-nvfp4", "V3.1"),
        ("QuantTrio/DeepSeek-V3.1-Terminus-AWQ", "V3.1-Terminus"),
        ("x/DeepSeek-V4", "V4"),
        ("x/DeepSeek-V3.9", "V3.9"),
        ("tngtech/DeepSeek-R1T-Chimera", None),
        ("x/DeepSeek-3", None),
        ("x/DeepSeek-V2.5", "V2.5"),
    ],
)
def test_version_may_begin_with_a_letter(name, version):
    assert versions_in(name, DEEPSEEK) == ((version,) if version else ())


def test_of_two_longer_versions_the_longest_counts():
    assert versions_in("deepseek-ai/DeepSeek-V3.2-Exp-Base", DEEPSEEK) == ("V3.2-Exp-Base",)
    assert versions_in("x/DeepSeek-V3.2-Exp-AWQ", DEEPSEEK) == ("V3.2-Exp",)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_every_base_model_states_its_own_version(family):
    stated = {name: versions_in(name, family) for names in family.base_models.values() for name in names}
    assert stated == {name: (version,) for version, names in family.base_models.items() for name in names}
    assert stated


def test_name_without_end_is_read_at_its_end():
    assert versions_in("x" * 10_000_000 + "/GLM-5.2", FAMILIES["glm_moe_dsa"]) == ("5.2",)
    assert versions_in("GLM-5-" * 2_000_000, FAMILIES["glm_moe_dsa"]) == ("5",)
