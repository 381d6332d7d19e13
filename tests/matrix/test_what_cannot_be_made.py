"""What the matrix lacks, each entry with its reason; a test asks again, so that none stays longer than it must."""

from __future__ import annotations

import pytest
from matrix import sources, writers
from matrix.engine_rules import target_of
from matrix.tiny_layer import config

from mtpforge import scheme as schemes
from mtpforge.checkpoint import open_checkpoint
from mtpforge.engines import ENGINES
from mtpforge.errors import MtpforgeError
from mtpforge.formats import FORMATS
from mtpforge.planning import plan
from mtpforge.scheme import Rule, Scheme
from mtpforge.tensors import BF16, Quantization

# SGLang's classes join q_a and kv_a, and read kv_b after loading: presets quantize both.
JOINED = "row by row, which their scalars and `weight_shape` do not survive"
NO_METHOD = "no quantization method of SGLang states all formats of the scheme"
# preset, engine -> why the engine builds no draft in it, beside a target that asks for it
ENGINES_LACK = {
    ("awq-int4-g128", "sglang"): "No module named 'sglang.kernel_api_logging'",
    ("gptq-int4-g128", "sglang"): "along an axis that GPTQ packs",
    ("int4-g128-sym", "sglang"): JOINED,
    ("int4-g32-asym", "sglang"): JOINED,
    ("int8-channel", "sglang"): JOINED,
    ("mxfp4", "sglang"): "passes over `weight_packed` without a word",
    ("nvfp4", "sglang"): NO_METHOD,
    ("nvfp4-w4a16", "sglang"): NO_METHOD,
    ("w4afp8", "vllm"): "no quantization method stores all formats of the scheme",
}
# format -> how its experts would be stored; it is read, and no engine that is known here loads it
NOT_WRITTEN = {
    "gptq_p": Quantization("gptq_p", 5, strategy="group", group_size=32, scale_dtype="F16"),
    "auto_round": Quantization("auto_round", 4, strategy="group", group_size=32, scale_dtype="F16"),
    "modelopt_int4": Quantization("modelopt_int4", 4, strategy="group", group_size=128, scale_dtype="F32"),
    "modelopt_int8": Quantization("modelopt_int8", 8, strategy="channel", scale_dtype="F32"),
    "mlx": Quantization("mlx", 4, strategy="group", group_size=64, symmetric=False, scale_dtype="BF16"),
    "gguf": Quantization("gguf", 8, "Q8_0"),
    "gguf_split": Quantization("gguf_split", 8, "Q8_0"),
}
# source -> how it is written, and why it is not read
NOT_READ = {
    # Ten zero points of 3 bits share a word, and a band of 128 rows ends inside of one.
    "compressed-tensors 0.17.1, zero points of 3 bits in whole words, more than 128 rows": (
        lambda w: writers.packed(w, 3, 64, symmetric=False, whole=True),
        "is stored in no known way",
    ),
}


@pytest.fixture(scope="module")
def plain(tinyglm, tmp_path_factory):
    made = sources.stored(sources.SOURCES["BF16"], tmp_path_factory.mktemp("plain") / "bf16", tinyglm("bf16"))
    return open_checkpoint(str(made.path))


@pytest.fixture(scope="module")
def scaled(tinyglm, tmp_path_factory):
    """A source with activation scales, so that nothing else is in the way."""
    source = sources.SOURCES["NVFP4 of ModelOpt"]
    made = sources.stored(source, tmp_path_factory.mktemp("scaled") / "nvfp4", tinyglm("bf16"))
    return open_checkpoint(str(made.path))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("preset", schemes.names())
def test_an_engine_builds_a_preset_unless_it_is_listed(scaled, tinyglm, tmp_path, preset, engine):
    scheme = schemes.load(preset)
    target = target_of(scheme, config(tinyglm("bf16")), tmp_path / "target")

    def planned():
        return plan(scaled, target, engine=engine, scheme=scheme)

    if (preset, engine) not in ENGINES_LACK:
        assert planned().scheme.name == preset
        return
    with pytest.raises(MtpforgeError) as caught:
        planned()
    assert ENGINES_LACK[preset, engine] in str(caught.value)


@pytest.mark.parametrize("preset", schemes.names())
def test_one_draft_for_both_is_built_where_each_builds_it(scaled, tinyglm, tmp_path, preset):
    scheme = schemes.load(preset)
    target = target_of(scheme, config(tinyglm("bf16")), tmp_path / "target")
    if any(name == preset for name, _ in ENGINES_LACK):
        with pytest.raises(MtpforgeError):
            plan(scaled, target, engine="both", scheme=scheme)
    else:
        assert plan(scaled, target, engine="both", scheme=scheme).scheme.name == preset


def test_formats_that_are_not_written_are_listed():
    assert {name for name, form in FORMATS.items() if form.encode is None} == NOT_WRITTEN.keys()


@pytest.mark.parametrize("name", NOT_WRITTEN)
def test_a_format_that_is_only_read_is_refused_as_a_scheme(plain, name):
    scheme = Scheme("given", (Rule("mlp.experts.*", NOT_WRITTEN[name], ""), Rule("*", BF16, "")))
    with pytest.raises(MtpforgeError) as caught:
        plan(plain, None, scheme=scheme)
    assert "no quantization method stores all formats" in caught.value.what


@pytest.mark.parametrize("name", NOT_READ)
def test_a_source_that_is_not_read_is_refused(tinyglm, tmp_path, name):
    write, words = NOT_READ[name]
    made = sources.stored(
        sources.Source("", write, {"quant_method": "compressed-tensors"}), tmp_path / "source", tinyglm("bf16")
    )
    with pytest.raises(MtpforgeError, match=words):
        plan(open_checkpoint(str(made.path)), None, scheme=schemes.load("bf16"))


def test_static_scales_are_asked_for_where_there_are_none(plain):
    with pytest.raises(MtpforgeError, match="no input scale for"):
        plan(plain, None, scheme=schemes.load("nvfp4"))
