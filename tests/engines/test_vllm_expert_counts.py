"""A target whose config counts other experts than its tensors: no command until the line that is shown mends it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import pytest

from mtpforge import scheme as schemes
from mtpforge.checkpoint import open_checkpoint
from mtpforge.engines import ENGINES
from mtpforge.engines.engine import Serving
from mtpforge.engines.vllm.expert_counts import stale_counts
from mtpforge.errors import MtpforgeError
from mtpforge.families import family_of

VLLM = ENGINES["vllm"]


@pytest.fixture
def target(tinyglm, tmp_path):
    def make(**changes):
        folder = tmp_path / "it's a target"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tinyglm("awq-int4-12experts"), folder)
        config = json.loads((folder / "config.json").read_text())
        config.pop("num_experts", None)
        (folder / "config.json").write_text(json.dumps(config | changes))
        return open_checkpoint(str(folder))

    return make


@pytest.mark.parametrize(
    "changes", [{"num_experts": 16}, {"num_local_experts": 16}, {"n_routed_experts": 16, "num_experts": 16}]
)
def test_line_that_is_shown_mends_the_target(target, tmp_path, changes):
    stale = target(**changes)
    with pytest.raises(MtpforgeError, match="no command serves this target before its") as caught:
        VLLM.serve(stale, "/drafts/d", Serving(), schemes.load("bf16"))
    assert "the model has 12 experts" in caught.value.why
    line = re.search(r"`(python -c .*)`", caught.value.fix)[1]
    subprocess.run(line.replace("python", sys.executable, 1), shell=True, check=True)
    mended = open_checkpoint(stale.location)
    assert stale_counts(mended, family_of(mended.config)) == {}
    assert VLLM.serve(mended, "/drafts/d", Serving(), schemes.load("bf16")).argv[:2] == ["vllm", "serve"]
    assert mended.config["n_routed_experts"] == 12
    assert not changes.keys() & {"num_experts", "num_local_experts"} & mended.config.keys()


@pytest.mark.parametrize("changes", [{}, {"num_experts": 12}, {"num_experts": None}])
def test_counts_that_agree_are_no_obstacle(target, changes):
    assert VLLM.serve(target(**changes), "/drafts/d", Serving(), schemes.load("bf16")).argv[:2] == ["vllm", "serve"]


def test_published_config_is_refused_and_the_hub_copy_is_what_is_mended(release_config, target_of):
    name = "target-nvfp4-reap-168-stale-num-experts"
    stale = target_of(release_config(name), revision="0123456789abcdef")
    with pytest.raises(MtpforgeError) as caught:
        VLLM.serve(stale, "/drafts/d", Serving(), schemes.load("bf16"))
    assert "`num_experts` 256, the model has 168 experts" in caught.value.why
    assert "hf download org/target --revision 0123456789abcdef --local-dir" in caught.value.fix
