"""festr2's merge at full size: layers of every kind of two releases, in sparse files that hold no weights.

MTPFORGE_LONG=1 takes all 78 layers: 460,000 tensors, minutes.
"""

from __future__ import annotations

import json
import os
import re

import full_size
import pytest
from compressed_tensors.quantization import QuantizationConfig
from compressed_tensors.utils.match import match_name
from respelled import BLOCK
from safetensors import safe_open

import mtpforge

pytestmark = pytest.mark.slow
# Dense, with and without quantization; experts with an indexer and without; the first and the last of each.
LAYERS = (0, 1, 3, 6, 77, 78)
# Of QuantTrio's and festr2's releases, by their cards: layer 0 is dense, indexers and routers are anywhere.
EXPERTS = re.compile(r"model[.]layers[.](?!78[.])\d+[.]mlp[.]experts[.]\d+[.]\w+")
LINEARS = re.compile(
    r"model[.]layers[.](?!0[.])\d+[.]"
    r"(self_attn[.](q_a_proj|q_b_proj|kv_a_proj_with_mqa|kv_b_proj|o_proj)|mlp[.](shared_experts[.])?(gate|up|down)_proj)"
)


def parts_of_int8mix(module, shape):
    if EXPERTS.fullmatch(module):
        return full_size.packed(shape, 4, 128)
    return full_size.packed(shape, 8, 128) if LINEARS.fullmatch(module) else None


def parts_of_nvfp4(module, shape):
    return full_size.nvfp4(shape) if EXPERTS.fullmatch(module) else None


def layer_of(name):
    found = re.match(r"model[.]layers[.](\d+)[.]", name)
    return int(found[1]) if found else None


def file_of(name):
    """Experts and layer 78 in files of their own: files of both would be written anew, tens of GB here."""
    layer = layer_of(name)
    return f"layer-{layer}.safetensors" if layer == 78 or EXPERTS.match(name) else "rest.safetensors"


@pytest.fixture(scope="module")
def whole(release_config, census):
    """The layers of the release, which has 59,585 tensors in all."""
    found = full_size.model(release_config("target-bf16"), census("bf16-zai-org"))
    assert (len(found), full_size.n_bytes(found)) == (59_585, 1_506_659_919_872)
    if os.environ.get("MTPFORGE_LONG"):
        return found
    return {name: spec for name, spec in found.items() if layer_of(name) in (None, *LAYERS)}


@pytest.fixture(scope="module")
def sides(whole, census):
    """The tensors of QuantTrio's release, and those of one with NVFP4 experts and no layer 78."""
    main = {name: spec for name, spec in whole.items() if layer_of(name) != 78}
    mixed = full_size.restored(main, parts_of_int8mix) | census("int8-channel-quanttrio")
    return mixed, full_size.restored(main, parts_of_nvfp4)


@pytest.fixture(scope="module")
def merged(sides, release_config, tmp_path_factory):
    home = tmp_path_factory.mktemp("full")
    mix, dense = release_config("target-int4-int8mix-quanttrio"), release_config("target-bf16")
    base = full_size.write(home / "int8mix", mix, sides[0], file_of)
    other = full_size.write(home / "nvfp4", dense | {"quantization_config": BLOCK}, sides[1], file_of)
    takes = {"model.layers.78.*": base, "model.layers.*.mlp.experts.*": other}
    return mtpforge.merge(base, takes, out=home / "merged", link="sym")


def held(folder):
    """Name -> dtype and shape, by safetensors alone."""
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 -- it is no mapping
                assert name not in found
                part = file.get_slice(name)
                found[name] = part.get_dtype(), tuple(part.get_shape())
    return found


def test_names_dtypes_and_shapes_are_those_of_the_two_releases(merged, sides, census):
    assert merged.report.ok
    mixed, nvfp4 = sides
    wanted = {name: spec for name, spec in mixed.items() if not EXPERTS.match(name)}
    wanted |= {name: spec for name, spec in nvfp4.items() if EXPERTS.match(name)}
    found = held(merged.path)
    assert found == wanted
    layer = {name: spec for name, spec in found.items() if layer_of(name) == 78}
    assert (len(layer), layer) == (2343, census("int8-channel-quanttrio"))
    index = json.loads((merged.path / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == wanted.keys()
    assert index["metadata"]["total_size"] == full_size.n_bytes(wanted)


def said_of(block, module):
    """How compressed-tensors builds a module of this name, None for dense."""
    if any(match_name(module, entry) for entry in block.ignore):
        return None
    for group in block.config_groups.values():
        if any(match_name(module, target) for target in group.targets):
            w, a = group.weights, group.input_activations
            size = None if w.group_size == -1 else w.group_size  # two spellings of no groups
            return (
                w.num_bits,
                w.type,
                w.strategy,
                size,
                w.symmetric,
                a and (a.num_bits, a.dynamic, a.strategy, a.group_size),
            )
    return None


def test_config_says_of_every_module_what_festr2_s_own_says(merged, release_config):
    ours = json.loads((merged.path / "config.json").read_text())["quantization_config"]
    theirs = release_config("target-int8mix-nvfp4-festr2")["quantization_config"]
    ours, theirs = QuantizationConfig.model_validate(ours), QuantizationConfig.model_validate(theirs)
    modules = sorted({name.rpartition(".")[0] for name in held(merged.path)})
    ends = [m for m in modules if ".experts." not in m or re.search(r"[.]experts[.](0|9|255)[.]", m)]
    assert len({said_of(theirs, m) for m in ends}) == 4  # dense, INT8 in groups and by channel, NVFP4
    assert [m for m in ends if said_of(ours, m) != said_of(theirs, m)] == []
