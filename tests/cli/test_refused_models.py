"""Models that no draft is made for, as their user meets the refusal."""

from __future__ import annotations

import json


def test_commands_say_it(run, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3_next"}))
    for words in (("inspect", tmp_path), ("build", "--target", tmp_path), ("serve", tmp_path, "--target", tmp_path)):
        ran = run(*words)
        assert ran.code == 3, words
        assert "error: no draft is made for Qwen3-Next\n" in ran.err
        assert """hint: keep `mtp.*` when quantizing, and draft with it: `vllm serve CKPT""" in ran.err
