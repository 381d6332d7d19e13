"""Every format that is read, into every preset: a draft's tensors decode to the source's values, rounded once.

Formats and presets are those of mtpforge's tables; all arithmetic here is plain and shares nothing with it. A source's
own rounding is bounded by its format's (`test_sources_are_...`), so that a draft lies within both bounds of the weights
that both were made from. The default run has every source and every preset by rotation, the slow one has all pairs.
"""

from __future__ import annotations

import pytest
import torch
from matrix import sources
from matrix.readers import READERS
from matrix.tiny_layer import DENSE, LINEARS, P, config
from safetensors.torch import load_file, save_file

from mtpforge import scheme as schemes
from mtpforge.building import build
from mtpforge.checkpoint import open_checkpoint, open_scales
from mtpforge.families import family_of
from mtpforge.formats import FORMATS
from mtpforge.ggml import CODED
from mtpforge.planning import plan
from mtpforge.sourcing import stored_layer

NAMES = (*sources.SOURCES, *sources.FILES)
PRESETS = schemes.names()
# The engine whose way to state it is taken, where the default one has none.
ENGINE = {"w4afp8": "sglang"}
# Source by source, one preset further each time.
SAMPLED = {(source, PRESETS[i % len(PRESETS)]) for i, source in enumerate(NAMES)}
PAIRS = [
    pytest.param(source, preset, marks=() if (source, preset) in SAMPLED else pytest.mark.slow)
    for source in NAMES
    for preset in PRESETS
]
NEARLY_ALL = 0.3  # of its bound is reached somewhere, where anything is rounded at all


@pytest.fixture(scope="module")
def made(tinyglm, tmp_path_factory):
    """name -> the source, written once."""
    home, done = tmp_path_factory.mktemp("sources"), {}
    vectors = tinyglm("bf16").parents[1] / "vectors" / "gguf-all-types.safetensors"

    def write(name):
        if name not in done:
            to = home / str(len(done))
            if name in sources.FILES:
                done[name] = sources.in_file(name, to, tinyglm("bf16"), vectors)
            else:
                done[name] = sources.stored(sources.SOURCES[name], to, tinyglm("bf16"))
        return done[name]

    return write


@pytest.fixture(scope="module")
def scales(tinyglm, tmp_path_factory):
    """Activation scales of the experts in a file, for sources that have none."""
    home = tmp_path_factory.mktemp("scales")
    named = {f"{P}{module}.input_scale": torch.tensor(0.25) for module in LINEARS if ".experts." in module}
    save_file(named, home / "scales.safetensors")
    return open_scales(home / "scales.safetensors", config(tinyglm("bf16")))


def built(opened, scheme, to, scales):
    engine = ENGINE.get(scheme.name, "vllm")
    decided = plan(opened, None, engine=engine, scheme=scheme, input_scales=scales)
    origins = {"source": opened, "target": opened, "scales": scales}
    return build(decided, origins, to, check="off", workers=1)


def read(draft):
    """Module -> its parts by suffix; vectors and the router's bias by their names."""
    (file,) = draft.glob("*.safetensors")
    modules = {}
    for name, tensor in load_file(file).items():
        local, _, suffix = name.removeprefix(P).rpartition(".")
        is_module = local in LINEARS | DENSE and not suffix.endswith("bias")
        modules.setdefault(local if is_module else name.removeprefix(P), {})[suffix if is_module else "weight"] = tensor
    return modules


@pytest.mark.parametrize(("source", "preset"), PAIRS)
def test_draft_holds_the_sources_values_within_its_rounding(made, scales, tmp_path, source, preset):
    stored, scheme = made(source), schemes.load(preset)
    opened = open_checkpoint(str(stored.path))
    parts = read(built(opened, scheme, tmp_path / "draft", scales).path)
    assert {name_of(module) for module in parts} == stored.values.keys()
    reached = {}
    for module, held in parts.items():
        if module not in LINEARS:
            assert torch.equal(held["weight"].float(), stored.values[name_of(module)].to(held["weight"].dtype).float())
            continue
        form, encoded = scheme.of(module).quantization.format, stored.values[name_of(module)]
        values, bound = READERS[form](held, encoded)
        off = (values - encoded).abs()
        assert bool((off <= bound + encoded.abs() * 1e-6).all()), (
            module,
            form,
            float((off / bound).nan_to_num().max()),
        )
        reached[form] = max(reached.get(form, 0), float((off / bound).nan_to_num().max()))
    seen = reached[scheme.of("mlp.experts.0.up_proj").quantization.format]
    assert seen == 0 or seen > NEARLY_ALL, "the bound shows nothing"


def name_of(module):
    return f"{P}{module}.weight" if module in LINEARS | DENSE else P + module


def test_every_format_is_a_source(made):
    found = set()
    for name in sources.FILES:
        opened = open_checkpoint(str(made(name).path))
        found |= {m.quantization for m in stored_layer(opened, family_of(opened.config)).modules.values()}
    assert {q.format for q in found} | {source.format for source in sources.SOURCES.values()} == set(FORMATS)
    assert {q.dtype for q in found if q.format == "gguf"} == set(CODED)


@pytest.mark.parametrize("name", sources.SOURCES)
def test_sources_are_what_their_names_say_and_near_the_weights(made, name):
    source, stored = sources.SOURCES[name], made(name)
    opened = open_checkpoint(str(stored.path))
    modules = stored_layer(opened, family_of(opened.config)).modules
    assert {modules[module].quantization.format for module in LINEARS} == {source.format}
    dense = made("F32").values
    for key, values in stored.values.items():
        assert bool(((values - dense[key]).abs() <= stored.bound[key]).all()), key
