"""Checkpoints of the tiny model to capture, and the slow twin's view of them.

from nextn.copies import changed, opened, twin
"""

import json
import shutil

from safetensors.torch import load_file, save_file
from slow_twins import layouts

from mtpforge.checkpoint import open_checkpoint
from mtpforge.nextn.target import open_target


def opened(folder):
    return open_target(open_checkpoint(str(folder)))


def twin(folder):
    """Tensors and config for the slow twin."""
    config = json.loads((folder / "config.json").read_text())
    return {name: tensor.double() for name, tensor in layouts.weights(folder).items()}, config


def changed(folder, to, change=None, config=None):
    """A copy of the folder with one weight file, after `change` had all tensors by name and `config` the config."""
    to.mkdir()
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    if change:
        before = dict(tensors)
        change(tensors)
        assert tensors.keys() != before.keys() or any(tensors[n] is not before[n] for n in before)
    save_file(tensors, to / "model.safetensors", {"format": "pt"})
    found = json.loads((folder / "config.json").read_text())
    if config:
        before = json.dumps(found)
        config(found)
        assert json.dumps(found) != before
    (to / "config.json").write_text(json.dumps(found))
    shutil.copy(folder / "tokenizer.json", to)
    return to
