"""Drafts of the tiny model in many schemes, built once, and inputs that its INT4 target gave."""

from __future__ import annotations

import pytest
from cli.conftest import run  # noqa: F401 -- a fixture
from nextn import calibration

from mtpforge.building import build
from mtpforge.checkpoint import open_checkpoint
from mtpforge.planning import plan
from mtpforge.scheme import load

INTEGERS = """description = "of the fewest bits"
[[rules]]
pattern = "eh_proj"
format = "dense"
dtype = "BF16"
reason = "dense"
[[rules]]
pattern = "mlp.gate"
format = "dense"
dtype = "BF16"
reason = "dense"
[[rules]]
pattern = "*"
format = "pack_quantized"
bits = {bits}
strategy = "group"
group_size = 32
symmetric = false
scale_dtype = "BF16"
reason = "few"
"""


@pytest.fixture(scope="session")
def made(tinyglm, tmp_path_factory):
    """Folder of a draft: by preset, `int2` or `int3` in groups of 32, or `bf16` with these experts alone."""
    home, built = tmp_path_factory.mktemp("made"), {}

    def draft(name, kept=None):
        if (name, kept) not in built:
            named = name
            if name in ("int2", "int3"):
                (home / f"{name}.toml").write_text(INTEGERS.format(bits=name[3]))
                named = str(home / f"{name}.toml")
            source = open_checkpoint(str(tinyglm("bf16")))
            out = home / (name if kept is None else f"{name}-{len(kept)}")
            build(plan(source, None, scheme=load(named), kept=kept), {"source": source}, out, check="off")
            built[name, kept] = out
        return built[name, kept]

    return draft


@pytest.fixture(scope="session")
def inputs(tinyglm, tmp_path_factory):
    """Two sequences, 111 tokens, with the states that the dense target gives for them by the slow twin."""
    return calibration.write(
        tmp_path_factory.mktemp("inputs") / "in.safetensors", calibration.captured(tinyglm("bf16"))
    )
