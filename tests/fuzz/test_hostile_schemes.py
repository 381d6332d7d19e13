"""Scheme files that lie. A scheme comes out, or an error that names a line; what comes out is planned, or refused."""

from __future__ import annotations

import re

import pytest
from fuzz.bounds import cases, outcome
from hypothesis import example, given
from hypothesis import strategies as st

from mtpforge import scheme
from mtpforge.checkpoint import open_checkpoint
from mtpforge.errors import MtpforgeError
from mtpforge.formats import FORMATS
from mtpforge.planning import Plan, plan

PRESETS = [scheme.dumps(scheme.load(name)) for name in scheme.names()]
ATOMS = [
    "[[rules]]", "[rules]", "[rules.x]", "rules = []", "[", "]", "=", '"', '"""', "'", "#", "\n", "\r\n", "\x00",
    "true", "1e400", "nan", "-1", "0", "16", "99", "9" * 5000, "0x" + "f" * 5000, "1979-05-27", "{}", "{a=1}", "[1, 2]",
    "[" * 3000, "bits = 4", "pattern = 1", "reason = []", '"*"', '"tensor"', '"U8"', "\U0001f600", "rules.x = 1",
    "x.y = 1",
]  # fmt: skip
VALUES = {
    "bits": [1, 2, 3, 4, 7, 8, 16, 32, 99],
    "dtype": ["BF16", "F16", "F32", "F64", "U8", ""],
    "strategy": ["tensor", "channel", "group", "block", ""],
    "group_size": [1, 7, 16, 32, 128, 2**31 - 1],
    "block": [[128, 128], [1, 128], [64, 64], [7, 3], [128, 1]],
    "symmetric": [True, False],
    "scale_dtype": ["BF16", "F16", "F32", "F8_E4M3", "U8"],
    "input_scale": ["none", "dynamic", "static"],
}


@st.composite
def mangled(draw):
    """A preset from which pieces are cut, and into which others are put."""
    text = draw(st.sampled_from(PRESETS))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        stop = min(start + draw(st.sampled_from([0, 0, 1, 8, 60])), len(text))
        text = text[:start] + draw(st.sampled_from(ATOMS) | st.text(max_size=3)) + text[stop:]
    return text


@given(mangled())
@cases(200)
@example("")
@example("rules.x = 1\n[a.b]\nc = 1")
def test_mangled_file_is_a_scheme_or_an_error_that_names_a_line(text):
    found = outcome(lambda: scheme.loads(text, name="mine", where="mine.toml"))
    if isinstance(found, MtpforgeError):
        named = re.search(r"\nwhere: mine\.toml, line (\d+)\n", found.what)
        assert named, found.what
        assert 1 <= int(named[1]) <= text.count("\n") + 1
        assert "\n hint: " in found.what
    else:
        assert scheme.loads(scheme.dumps(found), name="mine", where="mine.toml") == found


def rules():
    """A rule for every module: any values under any format."""
    keys = st.fixed_dictionaries({}, optional={key: st.sampled_from(values) for key, values in VALUES.items()})
    return st.tuples(st.sampled_from(sorted(FORMATS)), keys)


@pytest.fixture(scope="module")
def source(tinyglm):
    return open_checkpoint(str(tinyglm("nvfp4")))


@given(rules(), st.booleans())
@cases(60)
def test_what_loads_is_planned_or_refused(source, rule, whole):
    """`whole`: what the format lacks is taken from what it may have, so that more files load."""
    name, said = rule
    if whole:
        takes = FORMATS[name].takes
        said = {k: v for k, v in said.items() if v in takes.get(k, (v,) if k in {"group_size", "block"} else ())}
        said = {k: v[0] for k, v in takes.items() if v[0] not in {"none", True}} | said
        for size, strategy in (("group_size", "group"), ("block", "block")):
            if said.get("strategy") == strategy:
                said.setdefault(size, VALUES[size][-2])
            else:
                said.pop(size, None)
    lines = ["[[rules]]", 'pattern = "*"', f'format = "{name}"', *(f"{k} = {scheme.toml(v)}" for k, v in said.items())]
    text = "\n".join(lines)
    found = outcome(lambda: plan(source, None, scheme=scheme.loads(text, name="mine", where="mine.toml")))
    assert isinstance(found, MtpforgeError | Plan)
