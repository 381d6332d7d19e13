"""What tests of the hub share: a repository of the tiny model, its layer, the message of a refusal."""

from __future__ import annotations

import pytest

from mtpforge.checkpoint.folder import open_folder
from mtpforge.checkpoint.hub.repository import open_hub
from mtpforge.errors import MtpforgeError

REPO = "org/tiny-GLM"
LAYER = "model.layers.3."


def layer_of(checkpoint):
    return checkpoint.locate(name for name in checkpoint.names if name.startswith(LAYER))


def contents(checkpoint, refs):
    found = {}
    for name, ref in refs.items():
        found[name] = bytearray(ref.stop - ref.start)
        checkpoint.read(ref, memoryview(found[name]))
    return found


def truth(tinyglm):
    """The layer as the folder has it, that `opened` serves."""
    local = open_folder(tinyglm("bf16"))
    return contents(local, layer_of(local))


def opened(hub, tinyglm):
    """The repository with headers read, the faults not yet begun."""
    faults, hub.faults = hub.faults, []
    hub.add(REPO, tinyglm("bf16"))
    remote = open_hub(REPO, None, offline=False)
    refs = layer_of(remote)
    hub.faults = faults
    hub.forget()
    return remote, refs


def refusal(call, *arguments, code=4, **options):
    """The whole message, after a look at the exit code."""
    with pytest.raises(MtpforgeError) as caught:
        call(*arguments, **options)
    assert caught.value.code == code
    return str(caught.value)
