"""The tables of README and docs/schemes.md: what is read, written and loaded; REWRITE_GOLDEN=1 rewrites them.

Words for people stand here; yes and no come from FORMATS, the presets and the engines' rules.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from matrix.engine_rules import alone, quantizations, takes, target_of
from matrix.tiny_layer import config

from mtpforge import scheme as schemes
from mtpforge.engines import ENGINES
from mtpforge.errors import MtpforgeError
from mtpforge.families import family_of
from mtpforge.formats import FORMATS
from mtpforge.planning.deciding import agreed_scheme

ROOT = Path(__file__).parents[2]
PAGES = {"README.md": "formats", "docs/schemes.md": "presets"}
WORDS = {
    "dense": "BF16, F16, F32",
    "fp8_block": "FP8 of DeepSeek, in blocks",
    "fp8_scaled": "FP8 of compressed-tensors, per channel, tensor or block; of ModelOpt and Quark per tensor",
    "modelopt_fp8": "FP8 of ModelOpt and Quark, per channel or block",
    "nvfp4": "NVFP4 of compressed-tensors",
    "modelopt_nvfp4": "NVFP4 of ModelOpt; of Quark, read",
    "pack_quantized": "integers of compressed-tensors, packed",
    "int_quantized": "INT8 of compressed-tensors, in bytes",
    "quark_int8": "INT8 of Quark",
    "quark_int4": "INT4 of Quark (`int4`, `uint4`)",
    "quark_int4_in_order": "INT4 of Quark, not reordered",
    "awq": "AWQ (`gemm`), AutoRound as AWQ",
    "mxfp4": "MXFP4 of compressed-tensors",
    "quark_mxfp4": "MXFP4 of Quark and ModelOpt",
    "mxfp8": "MXFP8 of compressed-tensors, ModelOpt and Quark",
    "w4afp8": "W4AFP8",
    "gptq": "GPTQ (v1, `desc_act`), AutoRound as GPTQ",
    "gptq_v2": "GPTQ v2",
    "gptq_p": "GPTQ in bit planes",
    "auto_round": "AutoRound",
    "modelopt_int4": "INT4 of ModelOpt (`W4A16_AWQ`, `W4A8_AWQ`)",
    "modelopt_int8": "INT8 of ModelOpt (`W8A8_SQ`)",
    "mlx": "MLX (`affine`)",
    "gguf": "GGUF, in every type that the gguf package decodes: `pip install 'mtpforge[gguf]'`",
    "gguf_split": "GGUF's kv_b, in two parts",
}
# A preset -> what it belongs to, and its config in tests/data/configs where one is stored that asks for just this.
RELEASES = {
    "awq-int4-g128": ("AutoAWQ; AutoRound as AWQ", ""),
    "bf16": ("zai-org/GLM-5.2", "target-bf16"),
    "fp8-block128": ("zai-org/GLM-5.2-FP8", "target-fp8"),
    "gptq-int4-g128": ("GPTQModel; AutoRound as GPTQ", ""),
    "int4-g128-sym": ("llm-compressor, `W4A16`", ""),
    "int4-g32-asym": ("cyankiwi/GLM-5.2-AWQ-INT4", "target-awq-int4-ignore-to-77"),
    "int8-channel": ("QuantTrio/GLM-5.2-Int4-Int8Mix", "target-int4-int8mix-quanttrio"),
    "mxfp4": ("llm-compressor, `MXFP4A16`", ""),
    "mxfp8": ("llm-compressor, `MXFP8`", ""),
    "nvfp4": ("lukealonso/GLM-5.2-NVFP4", "target-nvfp4-lukealonso"),
    "nvfp4-w4a16": ("ModelOpt, `W4A16_NVFP4`", ""),
    "w4afp8": ("SGLang's `w4afp8`", "target-w4afp8"),
}


@pytest.fixture(scope="module")
def tiny(tinyglm):
    return config(tinyglm("bf16"))


def listed(numbers):
    """`4`, `4, 8`, `2 to 8`."""
    low, high = min(numbers), max(numbers)
    return f"{low} to {high}" if len(numbers) > 2 and len(numbers) == high - low + 1 else ", ".join(map(str, numbers))


def loads(engine, name, tiny):
    """In which bits of a format the engine builds the experts; "no" for none, "yes" for all that there are."""
    found = set()
    for q in quantizations(name):
        if (q.bits, q.symmetric) not in found and takes(engine, q, tiny):
            found.add((q.bits, q.symmetric))
    bits, every = sorted({bits for bits, _ in found}), sorted(FORMATS[name].takes["bits"])
    if not found:
        return "no"
    only = {True} == {symmetric for _, symmetric in found} and False in FORMATS[name].takes.get("symmetric", ())
    which = "yes" if bits == every or name == "dense" else f"{listed(bits)} bits"
    return f"{which}, symmetric" if only else which


def formats(tiny):
    lines = ["| stored as | bits | read | written | " + " | ".join(e.name for e in ENGINES.values()) + " |"]
    lines.append("|---" * (4 + len(ENGINES)) + "|")
    assert WORDS.keys() == FORMATS.keys()
    for name, form in FORMATS.items():
        is_written = form.encode is not None
        engines = [loads(engine, name, tiny) if is_written else "no" for engine in ENGINES.values()]
        cells = [WORDS[name], listed(sorted(form.takes["bits"])), "yes", "yes" if is_written else "no", *engines]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def presets(tiny, home):
    lines = ["| preset | as made by | " + " | ".join(engine.name for engine in ENGINES.values()) + " |"]
    lines.append("|---" * (2 + len(ENGINES)) + "|")
    for name in schemes.names():
        scheme = schemes.load(name)
        target = target_of(scheme, tiny, home / name)
        engines = ["yes" if builds(engine, scheme, target) else "no" for engine in ENGINES.values()]
        lines.append(f"| `{name}` | {RELEASES[name][0]} | {' | '.join(engines)} |")
    return "\n".join(lines)


def builds(engine, scheme, target):
    """Whether the engine builds a draft so beside a target that asks for it."""
    family = family_of(target.config)
    try:
        found = agreed_scheme(engine, family, target, target, scheme)
    except MtpforgeError:
        return False
    return all(
        found.of(m.template).quantization == scheme.of(m.template).quantization
        for m in family.modules(target.config, 1)
    )


@pytest.mark.parametrize("page", PAGES)
def test_table_is_what_the_records_say(page, tiny, tmp_path):
    path, kind = ROOT / page, PAGES[page]
    table = formats(tiny) if kind == "formats" else presets(tiny, tmp_path)
    start, end = (
        f"<!-- {kind}: made from the code, REWRITE_GOLDEN=1 pytest tests/matrix rewrites it -->\n",
        f"<!-- end of {kind} -->",
    )
    text = path.read_text()
    before, _, rest = text.partition(start)
    whole = f"{before}{start}{table}\n{end}{rest.partition(end)[2]}"
    if os.environ.get("REWRITE_GOLDEN"):
        path.write_text(whole)
    assert path.read_text() == whole


def test_every_preset_is_of_something():
    assert list(RELEASES) == list(schemes.names())


@pytest.mark.parametrize("name", [name for name, (_, stored) in RELEASES.items() if stored])
def test_preset_is_what_the_stored_release_asks_for(name, release_config):
    target = alone(release_config(RELEASES[name][1]))
    family, scheme = family_of(target.config), schemes.load(name)
    engine = next(engine for engine in ENGINES.values() if builds(engine, scheme, target))
    demanded = engine.demands(target, None, family)
    for module in family.modules(target.config, 1):
        assert demanded.of(module.template).quantization == scheme.of(module.template).quantization
