"""Expressions out of a config: the answers of `re`, and an answer at all where `re` would take for ever."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mtpforge.engines.vllm import expressions
from mtpforge.engines.vllm.expressions import matches

NAMES = ["model.layers.78.mlp.experts.0.gate_proj", "model.layers.78.self_attn.o_proj", "RoutedExperts", "aab1.a_B"]
LEAVES = st.sampled_from(
    ["a", "b", "A", "[.]", r"\.", ".", r"\d", r"\w", r"\W", r"\S", "[a-m]", "[^a.]", "[^a-z_]", "$", "^", r"\b", r"\B",
     r"\Z", "layers", "mlp", "", "(?=a)", "(?!a)", "(?<=a)", "(?<!l)", "[A-Z]", "experts", r"[\d_]", "(?!)"]
)  # fmt: skip
EXPRESSIONS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=4).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: f"(?:{'|'.join(parts)})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "*?", "+?", "{2}", "{0,2}", "{1,}"])).map(
            lambda p: f"({p[0]}){p[1]}"
        ),
        inner.map(lambda part: f"(?={part})"),
        inner.map(lambda part: f"(?!{part})"),
    ),
    max_leaves=7,
)


@settings(max_examples=400, derandomize=True, database=None, deadline=None)
@given(EXPRESSIONS, st.sampled_from([n[:14] for n in NAMES]), st.booleans())
@example("(?:a|b)*?$", "aab", False)
@example("((a*)*)*b", "aab1", False)
@example("(a?){3}b", "ab", False)
@example("(?=.*l)(.*)+[.]", "model.layers", True)
def test_the_walk_finds_what_re_finds(expression, name, ignore_case):
    flagged = f"(?i){expression}" if ignore_case else expression
    walk = expressions._Walk(name, ignore_case)
    assert bool(walk.ends(expressions._PARSER.parse(flagged), 0)) == (re.match(flagged, name) is not None)


@pytest.mark.parametrize(
    ("expression", "answer"),
    [
        (r"(\w+[.]?)+!", False),
        (r"(\w+[.]?)+proj$", True),
        ("(a+)+$", False),
        ("(.*.*.*.*.*.*.*.*.*.*)*x$", False),
        (".*" * 40 + "!", False),
        ("(?:(?:(?:(?:(?:.*)*)*)*)*)*!", False),
        ("(?=" * 30 + ".*" + ")" * 30 + ".*" * 5 + "!", False),
        ("(?:.?){200}!", False),
        ("(.|.|.|.)*proj$", True),
        (".?" * 60 + "!", False),
        ("(?:.|[a-z.])" * 39 + "!", False),
    ],
)
def test_what_takes_re_for_ever_is_answered(expression, answer):
    assert matches(expression, NAMES[0]) is answer


@pytest.mark.parametrize(
    "expression",
    ["(", "(" * 1500 + ")" * 1500, "a{99999999999}", "x" * 5000, r"(.+)+\1!", "(?>.*)*x", "(?:(?i:a)+)+", "(?:a++)+b"],
)
def test_what_cannot_be_followed_is_refused(expression):
    with pytest.raises(re.error):
        matches(expression, NAMES[0])


def test_usual_expressions_are_left_to_re():
    for expression in (".*shared_experts.*", r"model\.layers\.[0-2]\..*", "re.*mlp[.](?:gate|up)_proj$", r"(.*)\1"):
        assert expressions._read(expression)[1] is None
