"""Reads every tensor of the draft once: sane numbers, equal scales where engines keep one, the source's values."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Final

import torch
from torch import Tensor

from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.families.family import Module
from mtpforge.formats import FORMATS
from mtpforge.methods import RTN, Method
from mtpforge.report import Check, OnProgress, Progress
from mtpforge.sourcing import StoredLayer, StoredModule
from mtpforge.verifying import diagnosing, kept_experts, weight_checks
from mtpforge.verifying.expectations import Subject, Weight
from mtpforge.verifying.names import some
from mtpforge.verifying.tensor_hashes import HashedRead
from mtpforge.verifying.weight_checks import Examined
from mtpforge.weights import Buffers, Reader, StoredWeight
from mtpforge.weights.compiling import kernels_for

_WORKERS: Final = 8  # each holds about ten copies of a band: 130 MB
_MANY: Final = 1 / 4  # of the matrices: experts that saw no inputs are not fitted
_DIAGNOSED: Final = 8  # modules whose failure is explained; each may decode a band of every expert


@dataclass(frozen=True, slots=True)
class Source:
    """The source's layer, and which of its experts the draft's are."""

    checkpoint: Checkpoint
    layer: StoredLayer
    kept: tuple[int, ...]

    def of(self, module: Module) -> StoredModule | None:
        """The stored module that a module of the draft was made from."""
        if module.expert is None:
            return self.layer.modules.get(module.name)
        if module.expert >= len(self.kept):
            return None
        return self.layer.modules.get(module.template.replace("*", str(self.kept[module.expert])))

    def fetch(self, modules: Iterable[Module], on_progress: OnProgress | None) -> None:
        """Make local what these modules were made from, and what is no matrix. Experts that were dropped stay away."""
        stored = [found for module in modules if (found := self.of(module))]
        refs = [ref for module in stored for ref in module.parts.values()]
        self.checkpoint.fetch([*refs, *self.layer.plain.values()], on_progress)

    def weight(self, module: StoredModule, buffers: Buffers | None = None) -> StoredWeight:
        """Its parts, ready to read."""
        return module.weight(Reader(self.checkpoint.read, buffers))


@dataclass(frozen=True, slots=True)
class Values:
    """Checks, relative error per module, and sha256 per tensor (full name), of everything that could be read.

    rtn_relative_error: what round-to-nearest would leave, of modules whose scales were searched.
    """

    checks: tuple[Check, ...]
    relative_error: dict[str, float] = field(default_factory=dict)
    rtn_relative_error: dict[str, float] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)


def checked(subject: Subject, source: tuple[Checkpoint, StoredLayer] | None, on_progress: OnProgress | None) -> Values:
    """Everything that takes reading the weights."""
    router: tuple[Check, ...] = ()
    origin = None
    if source is not None:
        numbers, check = kept_experts.kept_experts(subject, *source)
        origin, router = Source(*source, numbers), (check,)
        origin.fetch((weight.module for weight in subject.weights), on_progress)
    fitting = [w for w in subject.weights if subject.fits(w)]
    hashes: dict[str, str] = {}
    method = subject.claimed
    weights = _weights(subject, fitting, origin, hashes, method, on_progress)
    fitted = method.needs_inputs or _are_fitted(weights)
    found = [*(_settled(weight, fitted=fitted) for weight in weights), *_plain(subject, origin, hashes)]
    values = (*_values(subject, origin, found, fitted=fitted), *_standing_out(found), *_searched(found, method))
    checks = (_numbers(found, subject), _ties(subject, fitting, found), *router, *values)
    errors = {e.module: e.relative_error for e in found if e.relative_error is not None}
    by_rtn = {e.module: e.rtn_error for e in found if e.rtn_error is not None}
    return Values(checks, errors, by_rtn, hashes)


def _weights(
    subject: Subject,
    fitting: list[Weight],
    origin: Source | None,
    hashes: dict[str, str],
    claimed: Method,
    on_progress: OnProgress | None,
) -> list[Examined]:
    """Threads over modules: reading and torch release the interpreter's lock. Results in the draft's order."""
    anew = frozenset() if origin is None else _untied(subject, origin)
    kernels = kernels_for(sum(math.prod(weight.module.shape) for weight in fitting))
    memory = _Memory()

    def examine(weight: Weight) -> tuple[Examined, dict[str, str]]:
        read = HashedRead(subject.draft.read)
        draft = _stored(subject, weight, Reader(read, memory.draft))
        theirs = _counterpart(weight, origin, memory.source)
        name = weight.module.name
        method = claimed if claimed.serves(FORMATS[weight.quantization.format], weight.module.kind) else RTN
        result = weight_checks.weight(
            name,
            draft,
            theirs,
            anew=name in anew,
            method=method,
            kernels=kernels(),
            is_claimed=subject.is_claimed,
        )
        return result, read.sha256

    total = sum(ref.stop - ref.start for w in fitting for ref in subject.parts(w).values())
    done = 0
    results: dict[int, Examined] = {}
    before = torch.get_num_threads()
    workers = min(os.cpu_count() or 1, _WORKERS)
    with _crew(workers) as pool:
        futures = {pool.submit(examine, weight): number for number, weight in enumerate(fitting)}
        for future in as_completed(futures):
            number = futures[future]
            results[number], digests = future.result()
            hashes |= digests
            done += sum(ref.stop - ref.start for ref in subject.parts(fitting[number]).values())
            if on_progress is not None:
                on_progress(Progress("verify", done, total))
    torch.set_num_threads(before)
    return [results[number] for number in range(len(fitting))]


def _are_fitted(found: list[Examined]) -> bool:
    """Whether codes that no manifest vouches for were fitted: strays in many matrices are no damage."""
    asked = [e.has_strays for e in found if e.has_strays is not None]
    return sum(asked) > len(asked) * _MANY


def _settled(examined: Examined, *, fitted: bool) -> Examined:
    """With what is wrong, now that all weights were seen."""
    if examined.has_strays is None:
        return examined
    wrong = examined.values_if_fitted if fitted else examined.values
    return replace(examined, values=wrong, standing_out="" if wrong else examined.standing_out)


@contextmanager
def _crew(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that after an interrupt finish what they hold, and begin nothing more."""
    pool = ThreadPoolExecutor(workers, "mtpforge-verify", torch.set_num_threads, (1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


class _Memory(threading.local):
    """What the bands of both sides are read into, for one thread."""

    def __init__(self) -> None:
        self.draft, self.source = Buffers(), Buffers()


def _stored(subject: Subject, weight: Weight, reader: Reader) -> StoredWeight:
    return StoredWeight(reader, subject.parts(weight), weight.module.shape, weight.quantization)


def _counterpart(weight: Weight, origin: Source | None, buffers: Buffers | None = None) -> StoredWeight | None:
    """The source's matrix of the same shape; the router of a pruned draft is compared by rows elsewhere."""
    if origin is None:
        return None
    module = origin.of(weight.module)
    if module is None or module.module.shape != weight.module.shape:
        return None
    in_order = origin.kept == tuple(range(origin.layer.n_experts))
    return None if weight.module.kind == "router" and not in_order else origin.weight(module, buffers)


def _untied(subject: Subject, origin: Source) -> frozenset[str]:
    """Modules whose codes had to be made anew: the source gave the members of a fused set different global scales."""
    sets: dict[str, list[tuple[str, float]]] = {}
    for weight in subject.weights:
        stored = origin.of(weight.module)
        if weight.module.fused and stored is not None and stored.quantization.format in subject.engine.tied_formats:
            for suffix, part in origin.weight(stored).matrix_parts().items():
                if "scale" in suffix:
                    sets.setdefault(weight.module.fused, []).append((weight.module.name, float(part)))
    return frozenset(name for members in sets.values() if len({s for _, s in members}) > 1 for name, _ in members)


def _plain(subject: Subject, origin: Source | None, hashes: dict[str, str]) -> Iterator[Examined]:
    for plain in subject.plain:
        if not subject.fits_plain(plain):
            continue
        name = subject.prefix + plain.name
        read = HashedRead(subject.draft.read)
        held = Reader(read).tensor(subject.refs[name])
        hashes |= read.sha256
        reference = None
        if origin is not None:
            reference = Reader(origin.checkpoint.read).tensor(origin.layer.plain[plain.name])
            if plain.per_expert:
                reference = reference[list(origin.kept)] if len(origin.kept) == held.shape[0] else None
        yield weight_checks.plain(plain.name, held, reference)


def _numbers(found: list[Examined], subject: Subject) -> Check:
    wrong = [f"{e.module}: {sentence}" for e in found for sentence in e.numbers]
    if wrong:
        return Check("numbers", "failed", f"{len(wrong)} findings: {some(wrong)}", subject.anew)
    if not found:
        return Check("numbers", "not checked", "no tensor is as the engine expects it, so none was read")
    if zero := [e.module for e in found if e.is_zero]:
        fix = "if they are not meant to be, build from another source: `--source ORG/NAME`"
        return Check("numbers", "warning", f"{len(zero)} weights are all zero, as in the source: {some(zero)}", fix)
    return Check("numbers", "passed", "no NaN, no Inf, no zero scale, no weight that is all zero")


def _ties(subject: Subject, fitting: list[Weight], found: Iterable[Examined]) -> Check:
    """Members of a fused set run with one global scale and one activation scale: the engine takes one for all."""
    scales = {e.module: e.scales for e in found}
    sets: dict[str, dict[str, set[float]]] = {}
    for weight in fitting:
        tied = weight.quantization.format in subject.engine.tied_formats
        for suffix, value in scales[weight.module.name].items():
            if weight.module.fused and (tied or suffix.startswith("input")):
                sets.setdefault(weight.module.fused, {}).setdefault(suffix, set()).add(value)
    wrong = [f"{name}: {suffix}" for name, held in sets.items() for suffix, values in held.items() if len(values) > 1]
    if wrong:
        detail = f"{len(wrong)} fused modules have members with different scales, the engine uses one: {some(wrong)}"
        return Check("tied scales", "failed", detail, subject.anew)
    if not fitting:
        return Check("tied scales", "not checked", "no weight is as the engine expects it, so none was read")
    what = f"equal in {len(sets)} fused modules" if sets else "no fused module keeps one"
    return Check("tied scales", "passed", what)


def _values(subject: Subject, origin: Source | None, found: list[Examined], *, fitted: bool) -> tuple[Check, ...]:
    if origin is None:
        return (
            Check(
                "values",
                "not checked",
                "without a source these cannot be seen: gate and up swapped, a global scale inverted, zero points"
                " shifted, experts in another order than the router's rows, weights of another model",
                "name the source of the draft: `--source ORG/NAME`",
            ),
        )
    wrong = [e for e in found if e.values]
    if all(e.relative_error is None for e in found):
        return (Check("values", "not checked", "no tensor is as the engine expects it, so none was compared"),)
    if not wrong:
        n_compared = sum(e.n_compared for e in found)
        worst = max((e for e in found if e.relative_error is not None), key=lambda e: e.relative_error or 0.0)
        if not worst.relative_error:
            return (Check("values", "passed", f"{n_compared:,} weights equal to the source's"),)
        within = "what fitting may leave" if fitted else "the rounding of their formats"
        detail = f"{n_compared:,} weights within {within}; largest relative error"
        return (Check("values", "passed", f"{detail} {worst.relative_error:.3g} ({worst.module})"),)
    weights = {w.module.name: w for w in subject.weights}
    told = [_told(subject, origin, weights.get(e.module), e) for e in wrong[:_DIAGNOSED]]
    detail = f"{len(wrong)} modules are not the source's: {some([*told, *(e.module for e in wrong[_DIAGNOSED:])])}"
    return (Check("values", "failed", detail, subject.anew),)


def _searched(found: list[Examined], method: Method) -> tuple[Check, ...]:
    """What the search of scales gained, or what fitted codes cost in weights."""
    both = [(e.relative_error, e.rtn_error) for e in found if e.relative_error is not None and e.rtn_error is not None]
    if not both:
        return ()
    ours, rtn = (sum(column) / len(both) for column in zip(*both, strict=True))
    how_much = f"{abs(1 - ours / rtn):.1%}" if rtn else "no"
    more = "more" if ours > rtn else "less"
    detail = (
        f"{method.how} in {len(both)} weights: mean relative error {ours:.4g}, {how_much} {more} than {rtn:.4g} by rtn"
    )
    return (Check("scales", "passed", detail),)


def _standing_out(found: list[Examined]) -> tuple[Check, ...]:
    """Single groups that are unlike all others of their matrix: within the bound, and hardly what its maker wrote."""
    said = [f"{e.module}: {e.standing_out}" for e in found if e.standing_out]
    fix = "compare these scales with the draft's origin, or download it again"
    return (Check("groups", "warning", f"{len(said)} weights: {some(said)}", fix),) if said else ()


def _told(subject: Subject, origin: Source, weight: Weight | None, examined: Examined) -> str:
    own = None if weight is None else _counterpart(weight, origin)
    why = ""
    if weight is not None and own is not None:
        draft = _stored(subject, weight, Reader(subject.draft.read))
        why = diagnosing.explain(draft, own, _candidates(origin, weight.module, subject))
    return f"{examined.module}: {why or examined.values[0]}"


def _candidates(origin: Source, module: Module, subject: Subject) -> Iterator[diagnosing.Candidate]:
    """What else this weight may be: its partner in a fused set, then the same projection of other experts."""
    for weight in subject.weights:
        partner = weight.module
        if module.fused and partner.fused == module.fused and partner.name != module.name and (s := origin.of(partner)):
            short, other = (m.template.rpartition(".")[2] for m in (module, partner))
            yield f"holds the source's {other}: {short} and {other} are swapped", _band(origin, s)
    if module.expert is not None:
        own = origin.kept[module.expert]
        for number in range(origin.layer.n_experts):
            stored = origin.layer.modules[module.template.replace("*", str(number))]
            if number != own:
                yield (
                    f"holds the source's expert {number}, its row of the router is expert {own}'s",
                    _band(origin, stored),
                )


def _band(origin: Source, module: StoredModule) -> Callable[[], Tensor]:
    def first() -> Tensor:
        origin.checkpoint.fetch(module.parts.values())
        return diagnosing.first_band(origin.weight(module))

    return first
