"""Checks of what stands beside the tensors: config, manifest, path, the target, how the draft is served."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from mtpforge import manifest, versions
from mtpforge.checkpoint import metadata
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.engines.engine import Serving
from mtpforge.errors import MtpforgeError, shown
from mtpforge.families import Family
from mtpforge.report import Check, Trap, Verdict
from mtpforge.traps import of_cut_short, of_other_version, only_layer
from mtpforge.verifying.expectations import Subject
from mtpforge.verifying.names import some


def config(subject: Subject) -> tuple[Check, tuple[Trap, ...]]:
    """The draft's config.json beside the target's: every field that the engine reads from the draft, the counts."""
    target, draft = subject.target_config, subject.draft.config
    found = subject.engine.draft_traps(target, draft, subject.family, subject.scheme)
    traps = tuple(replace(trap, fix=trap.fix.format(anew=subject.anew)) for trap in found)
    text = subject.family.text(draft)
    counts = {key: text[key] for key in subject.family.expert_keys if key in text}
    wrong = [
        f"{k} is {shown(v)}, the files hold {subject.n_experts} experts"
        for k, v in counts.items()
        if v != subject.n_experts
    ]
    if not counts:
        wrong.append(f"no `{subject.family.expert_keys[0]}`")
    check = _of_traps(
        "config", traps, "every field that the engine reads from the draft is there and right", subject.anew
    )
    if wrong:
        said = f"{check.detail}; " if check.verdict == "failed" else ""
        return Check("config", "failed", said + "; ".join(wrong), subject.anew), traps
    return check, traps


def block(subject: Subject) -> tuple[Check, ...]:
    """The draft's own quantization block beside its tensors, by the engine's own rules.

    Of a layer inside its target there is none: the block is the whole model's, by which the tensors are judged already.
    """
    if subject.is_inside:
        return ()
    quantized = any(form is not None and not form.is_dense for form in subject.stored.values())
    found = subject.engine.block_traps(subject.draft.quantization, quantized)
    good = "agrees with the tensors" if quantized else "none, the draft is dense"
    return (_of_traps("quantization block", found, good, subject.anew),)


def fingerprints(subject: Subject, sha256: Mapping[str, str]) -> Check:
    """The sha256 that the manifest gives for each tensor, against the bytes on disk."""
    told = subject.told
    if told is None:
        file, of = (metadata.GRAFT, "layer") if subject.is_inside else (manifest.FILE, "draft")
        detail = f"no {file}: the {of} was made by something else, or the file is lost"
        return Check("manifest", "not checked", detail)
    if isinstance(told, MtpforgeError):
        return Check("manifest", "failed", f"{told.what}: {told.why}", told.fix)
    differing = sorted(
        name for name, digest in sha256.items() if name in told.tensors and told.tensors[name].sha256 != digest
    )
    held = {name for name in subject.refs if name.startswith(subject.prefix)}  # of others the check of files tells
    unknown = sorted(held ^ told.tensors.keys())
    if differing or unknown:
        what = [f"{len(differing)} tensors changed since: {some(differing)}"] if differing else []
        what += [f"{len(unknown)} tensors are only in one of draft and {told.file}: {some(unknown)}"] if unknown else []
        return Check("manifest", "failed", "; ".join(what), subject.anew)
    return Check("manifest", "passed", f"sha256 of {len(sha256)} tensors as written by mtpforge {told.version}")


def surroundings(subject: Subject, serving: Serving, path: str) -> tuple[list[Check], list[Trap]]:
    """Path, target and way of serving, each by the engine's own rules."""
    engine = subject.engine
    asked = (
        ("path", engine.path_traps(path), f"nothing in `{shown(path)}` misleads {engine.name}"),
        ("target", _of_target(subject), "nothing stands in the way of a draft"),
        (
            "serving",
            engine.serving_traps(subject.family, subject.draft.config, subject.scheme, serving),
            f"tensor parallel {serving.tensor_parallel}: every dimension divides",
        ),
    )
    return [_of_traps(name, traps, good) for name, traps, good in asked], [t for _, traps, _ in asked for t in traps]


def version(target: Checkpoint, family: Family, sides: Mapping[str, Checkpoint]) -> tuple[Check, tuple[Trap, ...]]:
    """Whether the draft, its source, or both by their roles, say that they are of the target's version."""
    found = tuple(trap for role, held in sides.items() for trap in of_other_version(target, held, family, role))
    if found:
        return _of_traps("version", found, ""), found
    stated = {"target": versions.stated(target, family)}
    stated |= {role: versions.stated(held, family) for role, held in sides.items()}
    if silent := [role for role, statements in stated.items() if not statements]:
        unsaid = (
            f"nothing says which {family.stem} the {' or the '.join(silent)} is; a head of another one drafts badly"
        )
        return Check("version", "not checked", unsaid), ()
    return Check("version", "passed", ", ".join(f"{role} {versions.told(family, s)}" for role, s in stated.items())), ()


def _of_target(subject: Subject) -> tuple[Trap, ...]:
    """A target that is a draft itself is told alone: what its config lacks as a target is beside the point.

    What a draft beside the target cures is a note where there is one; a target's own layer is judged with it.
    """
    target, family = subject.target, subject.family
    is_beside = not subject.is_inside
    traps = only_layer(target, family) or (*of_cut_short(target), *subject.engine.target_traps(target, family))
    return tuple(replace(t, severity="note", fix="") if is_beside and t.draft_cures else t for t in traps)


def _of_traps(name: str, traps: Iterable[Trap], good: str, fix: str = "") -> Check:
    """The worst of the traps decides; a note is no news."""
    for severity, verdict in _VERDICTS:
        hit = [trap for trap in traps if trap.severity == severity]
        if hit:
            return Check(name, verdict, "; ".join(trap.message for trap in hit), hit[0].fix or fix)
    return Check(name, "passed", good)


_VERDICTS: Final[tuple[tuple[str, Verdict], ...]] = (("error", "failed"), ("warning", "warning"))
