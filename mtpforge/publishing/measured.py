"""found(): what was measured of a draft, for its card: documents that commands print with `--json`.

Of fidelity, accept and bench the numbers; of validate what the engine's own loader, and its pass, said of the draft.

A document speaks of a draft by its identity, which ends in a hash of its config and its layer, wherever it was read.
That of bench speaks of a server, whose model is told and whose draft is not: it is taken where that model, by its name
or by the checkpoint behind it, is the draft's target. That of validate has the hashes of the tensors that it read.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mtpforge.checkpoint import json_fields
from mtpforge.checkpoint.checkpoint import Checkpoint, own_name, place_of
from mtpforge.checkpoint.json_fields import Fields
from mtpforge.errors import MtpforgeError, shown
from mtpforge.publishing import local_paths
from mtpforge.verifying.tensor_hashes import layer_identity

_HOW: Final = {
    "fidelity": "mtpforge fidelity {draft} --reference SOURCE --json > fidelity.json",
    "validate": "mtpforge validate {draft} --target CKPT --reference SOURCE --inputs FILE --json > validate.json",
    "accept": "mtpforge accept {draft} --target CKPT --text FILE --json > accept.json",
    "bench": "mtpforge bench URL --json > bench.json",
}
_NOT_MADE: Final = "this check was not made where the draft was validated"


@dataclass(frozen=True, slots=True)
class Measured:
    """One row. what: the command. how: on what. found: the numbers, with their units, and what is doubted of them."""

    what: str
    how: str
    found: str


@dataclass(frozen=True, slots=True)
class Own:
    """The draft of the card: what the user typed, the identity of its layer, the hashes of its tensors."""

    label: str
    identity: str
    hashes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Found:
    """What all documents say. rows: once where two say the same: what validate ran is fidelity's too.

    loader: name, verdict and detail of each check of an engine's loader and of its pass, without paths of the machine
    that asked; () where none was asked.
    """

    rows: tuple[Measured, ...] = ()
    loader: tuple[tuple[str, str, str], ...] = ()


def found(draft: Checkpoint, target: str, files: Sequence[str | Path], hashes: Mapping[str, str]) -> Found:
    """What these documents say of the draft.

    target: identity of what the draft was made for, "" for none. hashes: of its tensors. MtpforgeError for what is no
    such document, and for one of another draft.
    """
    own = Own(draft.label, layer_identity(draft, hashes), hashes)
    each = [_of_document(own, target, Path(file)) for file in files]
    return Found(
        tuple(dict.fromkeys(row for one in each for row in one.rows)),
        tuple(dict.fromkeys(check for one in each for check in one.loader)),
    )


def _of_document(draft: Own, target: str, file: Path) -> Found:
    how = f"`{_how('fidelity', draft)}` writes one"
    try:
        with file.open("rb") as opened:
            raw = opened.read(json_fields.MAX_JSON_BYTES + 1)
    except OSError as error:
        raise MtpforgeError(
            f"`{shown(file)}` cannot be read",
            where="option `--measured`",
            why=str(error.strerror or error),
            fix=how,
        ) from None
    try:
        body = json_fields.load(raw, str(file))
    except MtpforgeError as error:
        raise MtpforgeError(error.what, where="option `--measured`", why=error.why, fix=how) from None
    command = body.values.get("command")
    read = _KINDS.get(command) if isinstance(command, str) else None
    is_measured = read is not None and body.values.get(read[0]) is not None
    is_loaded = command == "validate" and body.values.get("engine") is not None
    if read is None or not (is_measured or is_loaded):
        raise MtpforgeError(
            f"`{shown(file)}` holds nothing that was measured of a draft",
            where="option `--measured`",
            why="it is no document of fidelity, accept or bench, nor of validate with an engine or `--inputs`",
            fix=how,
        )
    again = _how(str(command), draft)
    try:
        row = (read[1](_object(body, read[0]), draft, target),) if is_measured else ()
        return Found(row, _loader(body, draft) if is_loaded else ())
    except _OfAnotherError as error:
        raise MtpforgeError(
            f"`{shown(file)}` was measured of another draft",
            where="option `--measured`",
            why=str(error),
            fix=f"measure this one, `{again}`, and name what that wrote",
        ) from None
    except MtpforgeError as error:
        raise MtpforgeError(error.what, where=error.place, why=error.why, fix=f"`{again}` writes it anew") from None


def _how(command: str, draft: Own) -> str:
    """What writes such a document of this draft."""
    return _HOW[command].format(draft=shlex.quote(shown(draft.label)))


class _OfAnotherError(Exception):
    """What was measured instead of the draft."""


def _own(held: Fields, draft: Own) -> Fields:
    """What a document says of this draft."""
    identity = draft.identity.rpartition("#")[2]
    listed = held.values.get("drafts")
    drafts = [d for d in listed if isinstance(d, Mapping)] if isinstance(listed, list) else []
    found = [d for d in drafts if str(d.get("identity", "")).rpartition("#")[2] == identity]
    if not found:
        names = ", ".join(shown(d.get("draft")) for d in drafts) or "none"
        raise _OfAnotherError(f"it measured {names}; the files of {draft.label} are not those")
    return Fields(found[0], f"{held.path}.drafts", held.file)


def _of_fidelity(held: Fields, draft: Own, _: str) -> Measured:
    own = _own(held, draft)
    steps = _objects(own, "steps")
    tokens = (
        "synthetic inputs" if held.flag("is_synthetic", default=False) else f"{_number(held, 'n_tokens'):,.0f} tokens"
    )
    found = [
        f"step {step.whole('step')}: {_number(step, 'agreement'):.1%} the same token, total variation"
        f" {_number(step, 'total_variation'):.3f}"
        for step in steps
    ]
    return Measured(
        "fidelity",
        f"against {_place(held, 'reference')}, {tokens}",
        "<br>".join([*(found or ["not computed"]), *_doubts(own)]),
    )


def _of_accept(held: Fields, draft: Own, _: str) -> Measured:
    own = _own(held, draft)
    drawn = own.within("sampled")
    if drawn is None:
        held.refuse("drafts", "an object with `sampled` for each draft")
    first, tokens = _objects(drawn, "positions"), drawn.within("tokens")
    if not first or tokens is None:
        drawn.refuse("positions", "what was accepted, with `tokens` beside it")
    warmth, n = _number(held, "temperature"), held.whole("n_windows")
    how = f"beside {_place(held, 'target')}, {n} windows, k = {held.whole('k')}, temperature {warmth:g}"
    found = f"{_mean(first[0])} of first tokens accepted; {_mean(tokens)} tokens a round"
    return Measured("accept", how, "<br>".join((found, *_doubts(own))))


def _of_bench(held: Fields, _: Own, target: str) -> Measured:
    own, names = place_of(target), [name for key in ("model", "checkpoint") if (name := held.text(key))]
    if not own or own_name(own) not in map(own_name, names):
        ran = ", ".join(map(shown, dict.fromkeys(names))) or "no model"
        raise _OfAnotherError(f"the server ran {ran}, the draft was made for {shown(own) or 'no target'}")
    found = []
    for cell in _objects(held, "totals"):
        length, gain = cell.within("length"), cell.within("gain")
        if length is not None:
            faster = f", {_span(gain)} times as fast as without drafts" if gain is not None else ""
            found.append(f"{cell.whole('concurrency')} at a time: {_span(length)} tokens a round{faster}")
    warmth = _number(held, "temperature")
    how = f"{shown(held.text('engine'))} serving {_place(held, 'model')}, k = {held.whole('k')}, temperature {warmth:g}"
    return Measured("bench", how, "<br>".join([*(found or ["nothing counted"]), *_doubts(held)]))


def _loader(body: Fields, draft: Own) -> tuple[tuple[str, str, str], ...]:
    """What the engine said of the tensors that validate read, engine and version in its first words."""
    verified = _object(_object(_object(body, "report"), "facts"), "sha256").values
    if dict(verified) != dict(draft.hashes):
        raise _OfAnotherError(f"it read {shown(body.text('draft'))}; the tensors of {draft.label} are not those")
    checks = _objects(_object(body, "engine"), "checks")
    return tuple((shown(c.text("name")), shown(c.text("verdict")), _detail(c)) for c in checks)


def _detail(check: Fields) -> str:
    """What a check found, for everybody to read. Why one was not made is the matter of the machine it was asked on."""
    said = check.text("detail")
    if check.text("verdict") == "not checked":
        return _NOT_MADE
    home = os.path.expanduser("~")  # noqa: PTH111 -- Path's raises where there is none
    return shown(local_paths.without(said, (home,)))


def _object(held: Fields, key: str) -> Fields:
    return held.within(key) or held.refuse(key, "an object")


def _doubts(held: Fields) -> list[str]:
    """What the command itself found wrong with it, or doubted: numbers alone would hide that."""
    checks = _objects(held, "checks") if "checks" in held else []
    doubted = [check for check in checks if check.text("verdict") in ("failed", "warning")]
    return [f"{c.text('verdict')}: {shown(c.text('name'))}, {_detail(c)}" for c in doubted]


def _objects(held: Fields, key: str) -> list[Fields]:
    listed = held.values.get(key)
    if not isinstance(listed, list) or not all(isinstance(each, Mapping) for each in listed):
        held.refuse(key, "a list of objects")
    return [Fields(each, f"{held.path}.{key}", held.file) for each in listed]


def _number(held: Fields, key: str) -> float:
    value = held.values.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        held.refuse(key, "a number")
    return float(value)


def _mean(held: Fields) -> str:
    half = held.values.get("half_width")
    return f"{_number(held, 'mean'):.3f}" + ("" if half is None else f" ± {_number(held, 'half_width'):.3f}")


def _span(held: Fields) -> str:
    is_known = held.values.get("low") is not None and held.values.get("high") is not None
    ends = f" ({_number(held, 'low'):.2f} to {_number(held, 'high'):.2f})" if is_known else ""
    return f"{_number(held, 'mean'):.2f}{ends}"


def _place(held: Fields, key: str) -> str:
    """A checkpoint as it was named, a folder of this machine by its own name alone."""
    name = held.text(key).replace("`", "'")
    return f"`{shown(Path(name).name if name.startswith(('/', '.', '~')) else name)}`"


_KINDS: Final[Mapping[str, tuple[str, Callable[[Fields, Own, str], Measured]]]] = {
    "fidelity": ("fidelity", _of_fidelity),
    "validate": ("fidelity", _of_fidelity),
    "accept": ("acceptance", _of_accept),
    "bench": ("bench", _of_bench),
}
