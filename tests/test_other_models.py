"""A source of another model than the target's: refused before anything is planned, fetched or written."""

from __future__ import annotations

import json
import math

import pytest
from drafts import reconfigured

from mtpforge.checkpoint import open_checkpoint
from mtpforge.cli import main
from mtpforge.errors import MtpforgeError
from mtpforge.families import family_of
from mtpforge.planning import plan
from mtpforge.verifying import verify

WIDTHS = {"BF16": 2, "F32": 4}


def narrow(tinyglm, folder):
    """A whole layer of the same family, of zeros, half as wide and with another vocabulary: no tensor of it is odd."""
    config = json.loads((tinyglm("bf16") / "config.json").read_text())
    config |= {"hidden_size": config["hidden_size"] // 2, "vocab_size": config["vocab_size"] * 2}
    whole = open_checkpoint(str(tinyglm("bf16")))
    family = family_of(config)
    names = {f"model.layers.3.{m.name}.weight": ("BF16", m.shape) for m in family.modules(config, 16)}
    names |= {f"model.layers.3.{p.name}": (p.dtype, p.shape) for p in family.plain(config, 16)}
    assert names.keys() < whole.names
    header, at = {}, 0
    for name, (dtype, shape) in names.items():
        n_bytes = math.prod(shape) * WIDTHS[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + n_bytes]}
        at += n_bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(at))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("quiet", [(), ("-q",)])
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_a_source_of_other_sizes_is_refused_by_key_and_both_values(tinyglm, tmp_path, capfd, monkeypatch, quiet, dry):
    source = narrow(tinyglm, tmp_path / "narrow")
    monkeypatch.chdir(tmp_path)
    code = main(["build", "--target", str(tinyglm("awq-int4")), "--source", str(source), *quiet, *dry])
    err = capfd.readouterr().err
    assert code == 3
    assert "are not the same model: `hidden_size` 64 against 128, `vocab_size` 1024 against 512\n" in err
    assert "hint: name a source of the target's model: `--source ORG/NAME`" in err
    assert [p.name for p in tmp_path.iterdir()] == ["narrow"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocab_size", 7),
        ("num_attention_heads", 2),
        ("kv_lora_rank", 16),
        ("n_shared_experts", 2),
        ("index_n_heads", 1),
    ],
)
def test_every_size_of_the_layer_and_of_what_it_shares_with_the_target_counts(tinyglm, tmp_path, key, value):
    source = reconfigured(tinyglm("bf16"), tmp_path / "source", lambda config: config.update({key: value}))
    target = open_checkpoint(str(tinyglm("awq-int4")))
    with pytest.raises(MtpforgeError, match=rf"(?m)not the same model: `{key}` {value} against {target.config[key]}$"):
        plan(open_checkpoint(str(source)), target)


def test_a_source_with_other_counts_of_layers_and_experts_is_of_the_same_model(tinyglm):
    """Pruned targets are what drafts are pruned for."""
    plan(
        open_checkpoint(str(tinyglm("nvfp4"))),
        open_checkpoint(str(tinyglm("awq-int4-12experts"))),
        kept=tuple(range(12)),
    )


def test_verify_refuses_it_as_build_does(tinyglm, tmp_path):
    whole = open_checkpoint(str(tinyglm("bf16")))
    with pytest.raises(MtpforgeError, match="are not the same model: `hidden_size` 64 against 128"):
        verify(tinyglm("bf16"), whole, open_checkpoint(str(narrow(tinyglm, tmp_path / "narrow"))))
