from __future__ import annotations

import pytest

from mtpforge import errors, scheme
from mtpforge.errors import MtpforgeError
from mtpforge.families import families
from mtpforge.formats import FORMATS
from mtpforge.scheme import Rule, Scheme
from mtpforge.tensors import BF16, Quantization

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
"""


def refusal(text):
    with pytest.raises(MtpforgeError) as caught:
        scheme.loads(text, name="mine", where="mine.toml")
    return caught.value


def test_presets_are_those_that_the_documentation_names():
    assert scheme.names() == ("bf16", "fp8-block128", "int4-g128-sym", "int4-g32-asym", "int8-channel", "nvfp4")


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
    asked = Quantization("pack_quantized", 4, strategy="group", group_size=32, symmetric=False)
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
    ("old", "new", "line", "what"),
    [
        ('format = "dense"', 'format = "densee"', 5, "`densee` is no format"),
        ("bits = 4", "bits = 0", 11, "`bits` is 0"),
        ("bits = 4", "bits = true", 11, "`bits` is True"),
        ("bits = 4", "bitz = 4", 11, "`bitz` is no key of a rule"),
        ('strategy = "group"', 'strategy = "row"', 12, "`strategy` is 'row'"),
        ("group_size = 32\n", "", 12, '`strategy = "group"` and `group_size` go together'),
        ("symmetric = false", "symmetric = 0", 14, "`symmetric` is 0"),
        ('pattern = "*"\n', "", 8, "a rule has no pattern"),
        ('dtype = "BF16"\n', "", 5, "a dense rule needs a `dtype`"),
        ('description = "mine"', "describtion = 1", 1, "`describtion` is no key of a scheme"),
    ],
)
def test_mistake_in_a_file_is_shown_with_its_line(old, new, line, what):
    assert old in GOOD
    error = refusal(GOOD.replace(old, new))
    assert error.what == what
    assert error.where == f"mine.toml, line {line}"


def test_syntax_error_is_shown_with_its_line():
    error = refusal(GOOD.replace('[[rules]]\npattern = "*"', '[[rules\npattern = "*"'))
    assert error.what == "the scheme file is no TOML"
    assert "line 8" in error.why


def test_file_without_rules_is_refused():
    assert refusal('description = "x"').what == "the scheme has no rules"


def test_rules_that_say_what_a_preset_says_take_its_name():
    preset = scheme.load("int8-channel")
    rules = [Rule("self_attn.o_proj", preset.of("self_attn.o_proj").quantization, ""), Rule("eh_proj", BF16, "")]
    assert scheme.name_of([*rules, Rule("self_attn.indexer.wq_b", BF16, "")]) == "int8-channel"
    odd = Quantization("pack_quantized", 3, strategy="group", group_size=64, symmetric=False)
    assert scheme.name_of([*rules, Rule("mlp.gate", odd, "")]) == "int3-g64-asym-and-int8-channel"
