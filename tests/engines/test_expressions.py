"""Expressions out of a config: what vLLM's `regex` answers, and an answer at all where matching would take for ever."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtpforge.engines import expressions
from mtpforge.engines.expressions import matches

NAME = "model.layers.78.mlp.experts.0.gate_proj"
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
    ),
    max_leaves=7,
)


@settings(max_examples=200, derandomize=True, database=None, deadline=None)
@given(EXPRESSIONS, st.sampled_from(["model.layers.7", "RoutedExperts", "aab1.a_B"]))
def test_expression_of_the_usual_kind_means_what_it_means_to_re(expression, name):
    assert matches(expression, name) is (re.match(expression, name) is not None)


@pytest.mark.parametrize(
    ("expression", "answer"),
    [
        (r"model[.]layers[.][[:digit:]]+[.]mlp", True),  # `re` reads `[[:digit:]` as a set of letters, then `]`
        (r"model\.layers\.[[:alpha:]]", False),
        (r"\p{L}+\.layers", True),
        (r"layers", False),  # from the start
        (r"model\.layers\.78", True),  # not to the end
        (r"(\w+[.]?)+proj$", True),
        (r"(\w+[.]?)+!", False),
        ("(a+)+$", False),
        (".*" * 40 + "!", False),
        ("(?>.*)*x", False),
    ],
)
def test_expression_is_read_as_the_regex_package_reads_it(expression, answer):
    assert matches(expression, NAME) is answer


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("(", "missing )"),
        ("[[a", "unterminated character set"),
        (r"\p{foo}", "unknown property"),
        ("(" * 1500 + ")" * 1500, "it is nested too deeply"),
        ("a{99999999999}", "more than 100,000 repeats"),
        ("(?:(?:(?:a{1000}){1000}){1000}){1000}", "more than 100,000 repeats"),
        ("x" * 5000, "it has 5000 characters"),
    ],
)
def test_expression_that_cannot_be_read_is_refused(expression, why):
    with pytest.raises(ValueError, match=re.escape(why)):
        matches(expression, NAME)


@pytest.mark.parametrize("expression", ["(?:[a-z.]|.)+[?!]", "(?R)", "(?bes:abcdefghijklmnopqrstuv){e<=20}"])
def test_expression_that_takes_for_ever_is_refused(expression, monkeypatch):
    monkeypatch.setattr(expressions, "MAX_SECONDS", 0.01)
    with pytest.raises(ValueError, match="it would take for ever"):
        matches(expression, NAME)
