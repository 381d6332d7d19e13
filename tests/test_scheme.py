from __future__ import annotations

import pytest

from mtpforge import errors, scheme
from mtpforge.errors import MtpforgeError
from mtpforge.families import families
from mtpforge.formats import FORMATS
from mtpforge.scheme import Rule, Scheme
from mtpforge.tensors import BF16, Quantization, Spec

GOOD = """\
description = "mine"

[[rules]]
pattern = "eh_proj"
format = "dense"
dtype = "BF16"

[[rules]]
pattern = "*"
format = "pack_quantized"
bits = 4
strategy = "group"
group_size = 32
symmetric = false
scale_dtype = "BF16"
"""


def refusal(text):
    with pytest.raises(MtpforgeError) as caught:
        scheme.loads(text, name="mine", where="mine.toml")
    return caught.value


def test_presets_are_those_that_the_documentation_names():
    assert scheme.names() == (
        "awq-int4-g128",
        "bf16",
        "fp8-block128",
        "gptq-int4-g128",
        "int4-g128-sym",
        "int4-g32-asym",
        "int8-channel",
        "mxfp4",
        "mxfp8",
        "nvfp4",
        "nvfp4-w4a16",
        "w4afp8",
    )


@pytest.mark.parametrize("name", scheme.names())
def test_preset_decides_every_module_of_every_family(name, release_config):
    preset = scheme.load(name)
    assert preset.description
    for family in families():
        for module in family.modules(release_config("target-bf16"), 1):
            quantization = preset.of(module.template).quantization
            assert FORMATS[quantization.format].layout(module.shape, quantization)


@pytest.mark.parametrize("name", scheme.names())
def test_preset_leaves_dense_what_engines_always_build_dense(name):
    preset = scheme.load(name)
    for template in ("eh_proj", "mlp.gate", "self_attn.indexer.wk", "self_attn.indexer.weights_proj"):
        assert preset.of(template).quantization == BF16


@pytest.mark.parametrize("name", scheme.names())
def test_written_scheme_is_read_back(name):
    preset = scheme.load(name)
    assert scheme.loads(scheme.dumps(preset), name=name, where="x") == preset


def test_reason_with_quotes_and_expressions_is_read_back():
    reason = 'ignore entry `re:a\\.b["x"]`\x07'
    mine = Scheme("mine", (Rule("*", BF16, reason),), "two words")
    assert scheme.loads(scheme.dumps(mine), name="mine", where="x") == mine


def test_first_rule_that_matches_decides():
    mine = scheme.loads(GOOD, name="mine", where="mine.toml")
    assert mine.of("eh_proj").quantization == BF16
    asked = Quantization("pack_quantized", 4, "", "group", 32, symmetric=False, scale_dtype="BF16")
    assert mine.of("mlp.experts.*.up_proj").quantization == asked


def test_module_without_a_rule_is_named():
    with pytest.raises(MtpforgeError, match=r"scheme mine has no rule for `mlp\.gate`"):
        Scheme("mine", (Rule("eh_proj", BF16, ""),)).of("mlp.gate")


def test_file_is_taken_by_path(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(GOOD)
    assert scheme.load(str(file)).name == "mine"
    with pytest.raises(MtpforgeError, match="the scheme file cannot be read"):
        scheme.load(str(tmp_path / "other.toml"))


def test_misspelt_preset_suggests_the_nearest():
    with pytest.raises(MtpforgeError) as caught:
        scheme.load("int4-g32-asymm")
    assert caught.value.what == "no scheme is called `int4-g32-asymm`"
    assert (caught.value.fix, caught.value.code) == ("did you mean `int4-g32-asym`?", errors.USAGE)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("int4", "`int4-g128-sym` or `int4-g32-asym`"),
        ("fp8", "`fp8-block128`"),  # `mxfp8` is nearer by its letters
        ("NVFP4", "`nvfp4`"),
        ("w4a16", "`nvfp4-w4a16`"),
    ],
)
def test_part_of_a_preset_s_name_suggests_those_that_have_it(typed, meant):
    with pytest.raises(MtpforgeError) as caught:
        scheme.load(typed)
    assert caught.value.fix == f"did you mean {meant}?"


NVFP4 = """\
[[rules]]
pattern = "*"
format = "nvfp4"
bits = 4
strategy = "group"
group_size = 16
scale_dtype = "F8_E4M3"
"""
WORDS = (
    "known: awq, dense, fp8_block, fp8_scaled, gptq, gptq_v2, int_quantized, modelopt_fp8, modelopt_nvfp4, "
    "mxfp4, mxfp8, nvfp4, pack_quantized, quark_int4, quark_int4_in_order, quark_int8, quark_mxfp4"
)
KEYS = ", ".join(scheme.KEYS)


@pytest.mark.parametrize(
    ("text", "old", "new", "line", "what", "why", "fix"),
    [
        (GOOD, '"dense"', '"densee"', 5, "`densee` is no format of a draft", WORDS, '`format = "dense"`'),
        (GOOD, 'format = "dense"\n', "", 3, "a rule has no format", WORDS, '`format = "dense"`'),
        (GOOD, "= 4", "= 0", 11, "`bits` is 0", "it must be a positive whole number", "e.g. `bits = 4`"),
        (GOOD, "= 4", "= true", 11, "`bits` is true", "it must be a positive whole number", "e.g. `bits = 4`"),
        (GOOD, "= 4", "= 99", 11, "`bits` is 99", "pack_quantized: it must be ", "`bits = 4`"),
        (GOOD, "bits = 4\n", "", 10, "a rule has no `bits`", "pack_quantized: it must be ", "`bits = 4`"),
        (GOOD, "bits = 4", "bitz = 4", 11, "`bitz` is no key of a rule", f"known: {KEYS}", "write `bits`"),
        (GOOD, "bits = 4", "zzz.a = 4", 11, "`zzz` is no key of a rule", f"known: {KEYS}", "leave `zzz` out"),
        (GOOD, '"group"', '"row"', 12, '`strategy` is "row"', "pack_quantized: it must be ", '`strategy = "group"`'),
        (GOOD, '"group"', '"tensor"', 12, '`strategy` is "tensor"', "pack_quantized: it must ", '`strategy = "group"`'),
        (GOOD, '"group"', '"channel"', 13, "`group_size` is 32", "pack_quantized: it goes ", "leave `group_size` out"),
        (GOOD, "group_size = 32\n", "", 10, "a rule has no `group_size`", "pack_", "`group_size = 128`"),
        (GOOD, "= false", "= 0", 14, "`symmetric` is 0", "it must be true or false", "e.g. `symmetric = true`"),
        (GOOD, "= false", "= 1979-05-27", 14, '`symmetric` is "1979-05-27"', "it must be true", "e.g. `symm"),
        (GOOD, 'scale_dtype = "BF16"\n', "", 10, "a rule has no `scale_dtype`", "pack_", '`scale_dtype = "BF16"`'),
        (GOOD, 'scale_dtype = "BF16"', 'scale_dtype = "U8"', 15, '`scale_dtype` is "U8"', "pack_", "`scale_dtype = "),
        (
            GOOD,
            "bits = 4",
            "block = [0, 128]\nbits = 4",
            11,
            "`block` is [0, 128]",
            "it must be two positive",
            "e.g. `bl",
        ),
        (
            GOOD,
            "bits = 4",
            "bits = 9",
            11,
            "`bits` is 9",
            "pack_quantized: it must be 2, 3, 4, 5, 6, 7 or 8",
            "`bits = 4`",
        ),
        (GOOD, '"BF16"\n\n', '"F32"\nbits = 16\n\n', 7, "`bits` is 16", "F32 has 32", "leave `bits` out"),
        (GOOD, "bits = 4", "block = [128,\n 128]\nbits = 4", 11, "`block` is [128, 128]", "pack_", "leave `block` out"),
        (GOOD, 'pattern = "*"\n', "", 8, "a rule has no pattern", "it says which ", '`pattern = "*"`'),
        (GOOD, 'pattern = "*"', "pattern = 3", 9, "`pattern` is 3", "it must be a text", "e.g. `pattern = "),
        (GOOD, 'dtype = "BF16"\n\n', "reason = {}\n", 6, "`reason` is a table", "it must be a text", "e.g. `reason"),
        (GOOD, 'dtype = "BF16"\n\n', "\n", 5, "a rule has no `dtype`", "dense: it must be ", '`dtype = "BF16"`'),
        (GOOD, "description =", "describtion =", 1, "`describtion` is no key of a scheme", "known: ", "write `desc"),
        (GOOD, '"mine"', "1", 1, "`description` is no text", "", "e.g. `description = "),
        (NVFP4, "= 4", "= 8", 4, "`bits` is 8", "nvfp4: it must be 4", "`bits = 4`"),
        (NVFP4, "= 16", "= 32", 6, "`group_size` is 32", "nvfp4: it must be 16", "`group_size = 16`"),
        (NVFP4, "bits", "symmetric = false\nbits", 4, "`symmetric` is false", "nvfp4: ", "leave `symmetric` out"),
    ],
)
def test_mistake_in_a_file_is_shown_with_its_line_and_what_to_type(text, old, new, line, what, why, fix):
    assert old in text
    error = refusal(text.replace(old, new, 1))
    assert (error.what, error.where) == (what, f"mine.toml, line {line}")
    assert error.why.startswith(why)
    assert error.fix.startswith(fix)


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ('[[rules]]\npattern = "*"', '[[rules\npattern = "*"', 8),
        ("bits = 4", f"bits = {'9' * 5000}", 11),  # Python reads 4,300 digits
        ("bits = 4", f"bits = {'[' * 5000}", 11),  # deeper than Python's stack
        ('"mine"', '"""mine', 15),  # open to the end
    ],
)
def test_text_that_is_no_toml_is_shown_with_its_line(old, new, line):
    assert old in GOOD
    error = refusal(GOOD.replace(old, new))
    assert (error.what, error.where) == ("the scheme file is no TOML", f"mine.toml, line {line}")


def test_line_of_a_byte_that_is_no_text_is_named(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_bytes(GOOD.encode() + b"# \xff\n")
    with pytest.raises(MtpforgeError) as caught:
        scheme.load(str(file))
    assert (caught.value.where, caught.value.why) == (f"{file}, line 16", "it is not UTF-8 text")


def test_path_that_no_system_takes_is_an_error():
    with pytest.raises(MtpforgeError, match="cannot be read"):
        scheme.load("a\0.toml")


def test_file_without_rules_is_refused():
    assert refusal('description = "x"').what == "the scheme has no rules"


def test_rules_that_say_what_a_preset_says_take_its_name():
    preset = scheme.load("int8-channel")
    rules = [Rule("self_attn.o_proj", preset.of("self_attn.o_proj").quantization, ""), Rule("eh_proj", BF16, "")]
    assert scheme.name_of([*rules, Rule("self_attn.indexer.wq_b", BF16, "")]) == "int8-channel"
    odd = Quantization("pack_quantized", 3, strategy="group", group_size=64, symmetric=False)
    assert scheme.name_of([*rules, Rule("mlp.gate", odd, "")]) == "int3-g64-asym-and-int8-channel"


@pytest.mark.parametrize(("dtype", "bits"), [("BF16", 16), ("F16", 16), ("F32", 32)])
def test_dense_weights_have_the_bits_of_their_dtype(dtype, bits):
    """As weights that are recognised do: a rule that says the same compares equal."""
    text = f'[[rules]]\npattern = "*"\nformat = "dense"\ndtype = "{dtype}"\n'
    stated = [scheme.loads(text + more, name="mine", where="mine.toml").rules[0] for more in ("", f"bits = {bits}\n")]
    stored = FORMATS["dense"].recognise({"weight": Spec(dtype, (4, 8))}, (4, 8), {})
    assert [rule.quantization for rule in stated] == [stored, stored]
    assert stored.bits == bits
