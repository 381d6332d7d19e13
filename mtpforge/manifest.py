"""mtpforge.json: what a draft was made of and what it holds. Written last, read by verify, graft, diff and card.

No time, no host, no path of this machine: the same inputs give the same bytes.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Final

import mtpforge
from mtpforge.checkpoint import metadata
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.checkpoint.error_places import place_in
from mtpforge.checkpoint.tensor_names import plain
from mtpforge.errors import MtpforgeError, Where, shown
from mtpforge.methods import METHODS, RTN
from mtpforge.planning.steps import Plan, Side
from mtpforge.report import Check, Report
from mtpforge.tensors import DTYPES, Spec

FILE: Final = metadata.MANIFEST
SCHEMA: Final = 1
_LIBRARIES: Final = ("compressed-tensors", "numpy", "nvidia-modelopt", "safetensors", "torch", "transformers")
_MAX_BYTES: Final = 64 << 20  # 3,122 tensors take 0.7 MB


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of the draft."""

    spec: Spec
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """mtpforge.json, read.

    source and target: `org/name@commit` or `folder#hash`; target "" for an extract. relative_error: module -> Frobenius
    error of its decoded weight against the source's, where it was measured. scales: how the scales of codes were found
    where their format leaves a choice, "" where that is not known. file: where it stands; of a graft it speaks of the
    layer in it.
    """

    version: str
    source: str
    target: str
    plan: str
    layer: int
    n_experts: int
    tensors: dict[str, Entry]
    relative_error: dict[str, float]
    scales: str
    body: dict[str, object]
    file: str = FILE


def write(
    plan: Plan,
    specs: Mapping[str, Spec],
    digests: Mapping[str, str],
    checks: Iterable[Check] = (),
    report: Report | None = None,
) -> bytes:
    """The file. `digests`: sha256 of every tensor; `checks`: of the build; `report`: of what judged the draft."""
    body = {
        "schema": SCHEMA,
        "mtpforge": mtpforge.__version__,
        "plan": plan.digest,
        "source": _side(plan.source) | {"stated": _stated(plan, "source")},
        "target": _side(plan.target) | {"stated": _stated(plan, "target")} if plan.target else None,
        "engine": plan.engine,
        "family": plan.family,
        "layer": plan.layer,
        "source_layer": plan.source_layer,
        "n_experts": plan.n_experts,
        "kept_experts": plan.kept_experts,
        "restated": plan.facts.get("restated", False),
        "kept_by": plan.facts.get("kept_by"),
        "fitted_to": plan.facts.get("fitted_to"),
        "scheme": asdict(plan.scheme),
        "changes": plan.changes,
        "unused": [asdict(unused) for unused in plan.unused],
        "checks": [asdict(check) for check in (*checks, *(report.checks if report else ()))],
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _LIBRARIES},
        "scales": plan.scales,
        "relative_error": _measured(report, "relative_error"),
        "rtn_relative_error": _measured(report, "rtn_relative_error"),
        "output_error": _measured(report, "output_error"),
        "rtn_output_error": _measured(report, "rtn_output_error"),
        "tensors": {name: _entry(specs[name], digests[name]) for name in sorted(specs)},
    }
    return (json.dumps(body, indent=1, allow_nan=False) + "\n").encode()


def read(draft: Checkpoint) -> Manifest:
    """The manifest of a draft; one that is missing, damaged or of a later schema is an error that says which."""
    found = find(draft)
    if found is None:
        fix = "build the draft with `mtpforge build`"
        raise MtpforgeError(f"no {FILE} in the draft", where=shown(draft.location), fix=fix)
    return found


def find(draft: Checkpoint) -> Manifest | None:
    """The same, None where the draft has none."""
    path = place_in(draft, FILE)
    body = _body(draft.small_file(FILE), path, FILE)
    return None if body is None else _manifest(path, body)


def of_graft(checkpoint: Checkpoint) -> Manifest | None:
    """mtpforge-graft.json as the manifest of the layer in a graft; None where that is none."""
    path = place_in(checkpoint, metadata.GRAFT)
    body = _body(checkpoint.small_file(metadata.GRAFT), path, metadata.GRAFT)
    return None if body is None else _grafted(path, body)


def _body(raw: bytes | None, path: Where, file: str) -> dict[str, object] | None:
    if raw is None:
        return None
    try:
        body = json.loads(raw) if len(raw) <= _MAX_BYTES else None
    except (ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(body, dict):
        raise _damaged(path, "it is no JSON object of a usual size")
    if body.get("schema") != SCHEMA:
        found = shown(body.get("schema"))
        raise MtpforgeError(
            f"{file} has schema {found}, this mtpforge reads {SCHEMA}",
            where=path,
            fix="update: `pip install -U mtpforge`",
        )
    return body


def _grafted(path: Where, body: dict[str, object]) -> Manifest:
    layer, tensors = body.get("layer"), body.get("tensors")
    if not isinstance(layer, dict) or not isinstance(tensors, dict):
        raise _damaged(path, "it lacks `layer` or `tensors`")
    return Manifest(
        version=_text(path, body, "mtpforge"),
        source=_text(path, layer, "id"),
        target=_id(path, body, "target"),
        plan="",
        layer=_whole(path, layer, "number"),
        n_experts=_whole(path, layer, "n_experts"),
        tensors={plain(name): _read_entry(path, name, entry) for name, entry in tensors.items()},
        relative_error={},
        scales=_scales(path, layer) if layer.get("scales") else "",
        body=body,
        file=metadata.GRAFT,
    )


def _manifest(path: Where, body: dict[str, object]) -> Manifest:
    tensors = body.get("tensors")
    if not isinstance(tensors, dict):
        raise _damaged(path, "`tensors` is no table")
    return Manifest(
        version=_text(path, body, "mtpforge"),
        source=_id(path, body, "source"),
        target=_id(path, body, "target") if body.get("target") is not None else "",
        plan=_text(path, body, "plan"),
        layer=_whole(path, body, "layer"),
        n_experts=_whole(path, body, "n_experts"),
        tensors={name: _read_entry(path, name, entry) for name, entry in tensors.items()},
        relative_error=_errors(path, body),
        scales=_scales(path, body),
        body=body,
    )


def _measured(report: Report | None, fact: str) -> dict[str, float]:
    """Six digits: more depend on the order in which a machine adds."""
    errors = report.facts.get(fact) if report else None
    return {m: float(f"{e:.6g}") for m, e in sorted(errors.items())} if isinstance(errors, Mapping) else {}


def _side(side: Side) -> dict[str, str]:
    return {"id": side.identity, "revision": side.revision}


def _stated(plan: Plan, side: str) -> object:
    """Which version that side says it is of, and by what: `versions.stated` reads it again."""
    stated = plan.facts.get("stated")
    return stated.get(side, []) if isinstance(stated, Mapping) else []


def _entry(spec: Spec, sha256: str) -> dict[str, object]:
    return {"dtype": spec.dtype, "shape": spec.shape, "sha256": sha256}


def _read_entry(path: Where, name: str, entry: object) -> Entry:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "sha256": str(sha256)} if dtype in DTYPES and all(
            type(n) is int and n >= 0 for n in shape
        ):
            return Entry(Spec(dtype, tuple(shape)), sha256)
    raise _damaged(path, f"the entry of {shown(name)} is no dtype, shape and sha256")


def _errors(path: Where, body: Mapping[str, object]) -> dict[str, float]:
    table = body.get("relative_error")
    if not isinstance(table, dict) or not all(isinstance(error, int | float) for error in table.values()):
        raise _damaged(path, "`relative_error` is no table of numbers")
    return {str(module): float(error) for module, error in table.items()}


def _scales(path: Where, body: Mapping[str, object]) -> str:
    """Drafts from before there was a choice do not say."""
    method = body.get("scales", RTN.name)
    if not isinstance(method, str) or method not in METHODS:
        raise _damaged(path, "`scales` is no method of this mtpforge")
    return method


def _id(path: Where, body: Mapping[str, object], key: str) -> str:
    side = body.get(key)
    if not isinstance(side, dict):
        raise _damaged(path, f"`{key}` is no table")
    return _text(path, side, "id")


def _text(path: Where, table: Mapping[str, object], key: str) -> str:
    value = table.get(key)
    if not isinstance(value, str):
        raise _damaged(path, f"`{key}` is no text")
    return value


def _whole(path: Where, table: Mapping[str, object], key: str) -> int:
    value = table.get(key)
    if type(value) is not int:
        raise _damaged(path, f"`{key}` is no whole number")
    return value


def _damaged(path: Where, why: str) -> MtpforgeError:
    file = metadata.GRAFT if str(path).endswith(metadata.GRAFT) else FILE
    fix = "build the draft again" if file == FILE else "graft the layer again"
    return MtpforgeError(f"{file} is damaged", where=path, why=why, fix=fix)


def _version(library: str) -> str:
    """The installed version, "" where the library is not installed; nothing is imported."""
    try:
        return version(library)
    except PackageNotFoundError:
        return ""
