"""card(): the model card of a draft: README.md, with the metadata that the hub knows.

Everything in it is read from the draft, its manifest and the cards of what it was made from; nothing is claimed that no
file says. Metadata: huggingface_hub's `ModelCardData`; `base_model_relation` knows adapter, merge, quantized, finetune.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final, cast

from huggingface_hub import ModelCard, ModelCardData

from mtpforge import manifest
from mtpforge.checkpoint.checkpoint import Checkpoint, place_of
from mtpforge.checkpoint.metadata import CARD, card_field, front_matter
from mtpforge.drafting.serving import serving_command
from mtpforge.engines import engine_of
from mtpforge.engines.engine import Serving
from mtpforge.errors import shown
from mtpforge.inspecting import inspect
from mtpforge.manifest import Manifest
from mtpforge.publishing import measured
from mtpforge.publishing.measured import Measured
from mtpforge.report import Trap
from mtpforge.units import count, file_size
from mtpforge.verifying.damage import refuse_changed
from mtpforge.verifying.tensor_hashes import hashed

_MARK: Final = "mtpforge"
_TAGS: Final = ("mtp", "nextn", "speculative-decoding", "draft-model", _MARK)
_LICENCE: Final = ("license", "license_name", "license_link")
NAMELESS: Final = "ORG/NAME"  # for the hub id in a card that was written before there is one; push puts it in
_LOADER: Final = "loader"  # of verify's checks
_HASHED: Final = "#"  # in the identity of a folder; of a hub repository it is `org/name@commit`


def card(
    draft: Checkpoint,
    *,
    source: Checkpoint | None,
    target: Checkpoint | None,
    name: str = "",
    reports: Sequence[str | Path] = (),
) -> str:
    """The text of README.md.

    source, target: what the draft was made from and for, where they can be opened: licence and serving command come
    from them. name: hub id under which the draft will be found; `NAMELESS` stands in its place where there is none yet.
    reports: files of JSON documents of fidelity, accept, bench and validate; MtpforgeError for one of another draft,
    and for a draft whose tensors are not those of its manifest.
    """
    told = manifest.read(draft)
    hashes = hashed(draft, draft.names)
    refuse_changed(draft, told, hashes)
    found = measured.found(draft, told.target, reports, hashes)
    parts = [
        f"---\n{_metadata(draft, told, source).to_yaml()}\n---\n",
        f"# {Path(name or draft.location).name}\n",
        *_about(told),
        *_usage(draft, told, target, name or NAMELESS),
        *_lineage(told, source),
        *_stored(draft, told),
        *_checks(told, found.loader),
        *_measured(found.rows),
    ]
    return "\n".join(parts).rstrip() + "\n"


def is_ours(card: bytes | None) -> bool:
    """Whether `card` wrote it, by its tags."""
    return f"- {_MARK}" in (line.strip() for line in front_matter(card))


def named(held: bytes, repo: str) -> bytes:
    """A card that `card` wrote before there was a hub id, with it."""
    return held.replace(NAMELESS.encode(), repo.encode()) if is_ours(held) else held


def doubts(text: str, source: str = "") -> tuple[Trap, ...]:
    """What a reader of the card will miss: a licence, a base model. source: the checkpoint that was named as such."""
    said = ModelCard(text).data.to_dict()
    missing = {
        "license": "its source's card could not be read, or names none: `--source CKPT`",
        "base_model": "its source is a folder whose card names no base: `--source CKPT`",
    }
    if source:
        into = f"in the front matter of README.md of `{shown(source)}`, or of the card itself"
        missing = {"license": f"`license: NAME` {into}", "base_model": f"`base_model: ORG/NAME` {into}"}
    return tuple(
        Trap(f"card-without-{key}", "warning", f"the card states no `{key}`", fix)
        for key, fix in missing.items()
        if key not in said
    )


def licence_of(source: Checkpoint | None) -> dict[str, str]:
    """`license`, its name and its link as the source's card states them; {} where it has none."""
    raw = source.small_file(CARD) if source is not None else None
    return {key: stated for key in _LICENCE if (stated := card_field(raw, key))}


def _metadata(draft: Checkpoint, told: Manifest, source: Checkpoint | None) -> ModelCardData:
    """What the hub shows and searches by."""
    engine = engine_of(str(told.body["engine"]))
    method = str(draft.quantization.get("quant_method", "")) if draft.quantization else ""
    bases = _bases(told, source)
    known: dict[str, Any] = {"base_model": bases[0] if len(bases) == 1 else bases} if bases else {}
    if bases and method:
        known["base_model_relation"] = "quantized"
    return ModelCardData(
        **known,
        **licence_of(source),
        library_name=engine.package.partition(",")[0] or "mtpforge",
        tags=[*_TAGS, str(told.body["family"]), *([method] if method else [])],
    )


def _bases(told: Manifest, source: Checkpoint | None) -> list[str]:
    """Hub ids that the draft descends from: what the source's card names as its base, else the source itself."""
    named = source.base_models() if source is not None else ()
    own = "" if _HASHED in told.source else place_of(told.source)
    return [*named] or ([own] if own else [])


def _about(told: Manifest) -> Iterator[str]:
    target, pruned = told.target, told.body["kept_experts"]
    beside = f" beside `{_shown(target)}`" if target else ""
    yield f"The multi-token-prediction layer (number {told.layer}) of `{_shown(told.source)}`, as a draft for"
    yield f"speculative decoding{beside}. It is no model of its own: embedding and head are the target's.\n"
    if pruned:
        yield f"It holds {told.n_experts} of the source's experts.\n"


def _usage(draft: Checkpoint, told: Manifest, target: Checkpoint | None, place: str) -> Iterator[str]:
    """The server command, exact where the target can be opened."""
    yield "## Use\n"
    if target is None:
        asked = shlex.join(["mtpforge", "serve", "DRAFT", "--target", _shown(told.target) or "TARGET", "--print"])
        yield f"Download this folder as `DRAFT`; `{asked}` prints the exact command.\n"
        return
    key = str(told.body["engine"])
    command = serving_command(draft.location, target, key, Serving())
    # No path of the machine that made it: the draft under its name, a local target under the name of its folder.
    names = {str(Path(draft.location).absolute()): place}
    names |= {} if target.revision else {target.location: _shown(told.target) or Path(target.location).name}
    yield "```bash"
    for each in command.each:
        yield shlex.join(_renamed(word, names) for word in each.argv)
    yield "```\n"
    if told.body.get("restated"):
        yield "The command tells the engine how the layer is quantized: without that it expects another scheme.\n"


def _renamed(word: str, names: Mapping[str, str]) -> str:
    for path, name in names.items():
        word = word.replace(path, name)
    return word


def _lineage(told: Manifest, source: Checkpoint | None) -> Iterator[str]:
    yield "## Made from\n"
    rows = [
        ("layer", f"`{told.source}`"),
        ("target", f"`{told.target}`" if told.target else "none: by a scheme"),
        ("scheme", f"`{cast('Mapping[str, object]', told.body['scheme'])['name']}`, scales by {told.scales}"),
        ("experts", _experts(told)),
        ("mtpforge", f"{told.version}, plan `{told.plan[:16]}`"),
    ]
    licence = licence_of(source)
    if licence:
        rows.append(("licence", " ".join(licence.values())))
    yield _table(("", ""), rows)


def _experts(told: Manifest) -> str:
    kept, by = told.body["kept_experts"], told.body["kept_by"]
    return f"{told.n_experts}" + (f", kept by {by}" if kept and by else "")


def _stored(draft: Checkpoint, told: Manifest) -> Iterator[str]:
    """What it holds, kind by kind, and how far decoded weights are from the source's."""
    facts = inspect(draft, engine=str(told.body["engine"]), with_heads=False).facts
    layer = cast("Mapping[str, object]", facts["mtp"])
    rows = cast("Iterable[Mapping[str, object]]", layer["stored"])
    yield "## What it holds\n"
    yield f"{count(cast('int', layer['n_tensors']))} tensors, {file_size(cast('int', layer['n_bytes']))}.\n"
    yield _table(
        ("modules", "n", "stored as", "bytes"),
        [(str(r["kind"]), str(r["n"]), str(r["stored"]), file_size(cast("int", r["n_bytes"]))) for r in rows],
    )
    errors_found = [error for error in told.relative_error.values() if error > 0]
    if errors_found:
        yield (
            f"Decoded weights are off by {median(errors_found):.3g} of their norm in the median of the"
            f" {len(errors_found)} matrices that were coded anew, by {max(errors_found):.3g} at most.\n"
        )


def _checks(told: Manifest, loader: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    """What `build` checked. loader: what an engine said since, in the place of what build left to it."""
    yield "## Checked\n"
    checks = cast("Iterable[Mapping[str, str]]", told.body["checks"])
    rows = [(c["name"], c["verdict"], c["detail"]) for c in checks if not (loader and c["name"] == _LOADER)]
    yield _table(("check", "", ""), [*rows, *loader])


def _measured(found: tuple[Measured, ...]) -> Iterator[str]:
    if found:
        yield "## Measured\n"
        yield _table(("by", "on", "found"), [(f"`mtpforge {row.what}`", row.how, row.found) for row in found])
    if not {"accept", "bench"} & {row.what for row in found}:
        yield "Acceptance beside the target was not measured here.\n"
    if "bench" in {row.what for row in found}:
        yield "A server tells its model and not its draft: that it ran this one is its owner's word.\n"


def _shown(identity: str) -> str:
    """`org/name@0123abcd` with a short commit; a folder by its name."""
    place = place_of(identity)
    commit = "" if _HASHED in identity else identity.partition("@")[2]
    return f"{place}@{commit[:8]}" if commit else place


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines) + "\n"
