"""capture(): calibration inputs, what a target hands to its MTP layer for a text, into one file."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mtpforge import errors
from mtpforge.checkpoint import Named, open_served, refuse_below_a_folder
from mtpforge.checkpoint.error_places import errors_of
from mtpforge.drafting.remarks import Remark, of_checkpoint
from mtpforge.drafting.request import Watching
from mtpforge.errors import MtpforgeError, shown
from mtpforge.families import family_of
from mtpforge.nextn import inputs, recording, texts
from mtpforge.nextn.inputs import Inputs
from mtpforge.places import default_inputs
from mtpforge.units import count, memory_size
from mtpforge.writing import outside, preflight

if TYPE_CHECKING:
    from mtpforge.nextn.capturing import Entering
    from mtpforge.nextn.target import Target


_LONGEST: Final = "max_position_embeddings"


@dataclass(frozen=True, slots=True)
class Capture:
    """What is asked for: a text or the states that a running engine stored, how much of it, and where to."""

    target: Named
    text: Path | None = None
    states: Path | None = None
    out: Path | None = None
    length: int | None = None
    tokens: int = texts.USUAL_TOKENS
    force: bool = False
    offline: bool = False


@dataclass(frozen=True, slots=True)
class Captured:
    """The file, and the first layer that was computed: 0, or the one whose states an engine stored."""

    inputs: Inputs
    first_layer: int


def capture(asked: Capture, watching: Watching) -> Captured:
    """The inputs file, whole or not there. MtpforgeError before the first layer for what is known to end it."""
    _refuse_both(asked)
    if asked.text is not None:
        texts.refuse_unusable(asked.text)
    if isinstance(asked.target, str):
        _refuse_remote(asked.target)
    checkpoint = open_served(asked.target, offline=asked.offline)
    place = asked.out or default_inputs(checkpoint)
    # Loaders read every *.safetensors of a folder: a target, or a draft, would be spoiled by it.
    outside.refuse_checkpoint(place, "inputs file", "--out")
    recording.refuse_existing(place, force=asked.force)
    with errors_of(checkpoint):
        stated = family_of(checkpoint.config).text(checkpoint.config).get(_LONGEST)
    if type(stated) is int:
        _refuse_long(asked.length, stated)
    preflight.refuse_unwritable(place, "inputs file")
    from mtpforge.nextn import capturing
    from mtpforge.nextn.target import open_target

    model = open_target(checkpoint)
    watching.on_remark(of_checkpoint("target", checkpoint))
    entering = _entering(model, asked)
    lengths = [len(window.token_ids) for window in entering]
    first = model.entry if asked.states else 0
    for remark in _remarks(model, lengths, first):
        watching.on_remark(remark)
    recording.refuse_small_disk(place, sum(lengths) * (2 * model.config.hidden_size + 16))
    capturing.refuse_small_memory(capturing.memory_bytes(model, lengths))
    made = capturing.finish(model, entering, first, watching.on_progress)
    recording.write(place, made, target=checkpoint.identity, force=asked.force)
    config = model.config
    return Captured(inputs.read(place, hidden_size=config.hidden_size, vocab_size=config.vocab_size), first)


def _refuse_remote(target: str) -> None:
    """Only what lies here can be computed; nobody has to be asked for that."""
    is_here = os.path.exists(target)  # noqa: PTH110 -- Path's raises for a name that is too long
    if not is_here and not target.startswith((".", "~", "/")):
        refuse_below_a_folder(target)  # what would be made, and is not there, is nothing to download
    if not is_here and re.fullmatch(r"[\w.-]+/[\w.-]+(@.+)?", target):
        name = shown(target.split("@", maxsplit=1)[0])
        raise MtpforgeError(
            f"there is no folder `{shown(target)}`, capture needs every weight on this machine",
            where="option `--target`",
            why="all layers are computed, and what is fetched for that is the whole checkpoint",
            fix=f"`hf download {name} --local-dir DIR`, then `--target DIR`",
        )


def _refuse_both(asked: Capture) -> None:
    """Exactly one origin, and no option that would have no effect."""
    if (asked.text is None) == (asked.states is None):
        what = (
            "name a text, or states that an engine stored"
            if asked.text is None
            else "`--text` and `--states` exclude each other"
        )
        raise MtpforgeError(what, fix="`--text FILE`, or `--states DIR`", code=errors.USAGE)
    if asked.states and asked.length:
        why = "windows are the prompts that the engine was sent"
        raise MtpforgeError("`--length` has no effect with `--states`", why=why, fix="leave it out", code=errors.USAGE)


def _refuse_long(length: int | None, most: int) -> None:
    """A window that the target's positions do not reach."""
    if length and length > most:
        raise MtpforgeError(
            f"a window of {length:,} tokens is longer than the target takes",
            where="option `--length`",
            why=f"`{_LONGEST}` of its config.json is {most:,}",
            fix=f"`--length {min(texts.USUAL_LENGTH, most)}`",
            code=errors.USAGE,
        )


def _entering(model: Target, asked: Capture) -> list[Entering]:
    from mtpforge.nextn import capturing, extracted

    if asked.states:
        return extracted.windows_of(asked.states, model, asked.tokens)
    assert asked.text is not None  # noqa: S101 -- _refuse_both
    most, length = model.config.max_position_embeddings, asked.length
    _refuse_long(length, most)  # transformers has a default
    found = texts.windows(
        asked.text, model.folder, length or min(texts.USUAL_LENGTH, most), asked.tokens, model.config.vocab_size
    )
    return capturing.embed(model, found)


def _remarks(model: Target, lengths: Sequence[int], first: int) -> tuple[Remark, Remark]:
    """What will be computed, and what that takes."""
    from mtpforge.nextn.capturing import memory_bytes

    low, high = count(min(lengths)), count(max(lengths))
    span = high if low == high else f"{low} to {high}"
    windows = f"{count(len(lengths))} window{'s' if len(lengths) > 1 else ''} of {span} tokens"
    memory = memory_size(memory_bytes(model, list(lengths)))
    layers = f"{first} to {model.n_layers - 1}, one after another; memory about {memory}"
    return Remark("text", f"{windows}, {count(sum(lengths))} in all"), Remark("layers", layers)
