"""Keys of `--speculative-config` that make drafting cheaper without another file, as vLLM 0.33.0 takes them.

OPTIONS   key -> what it is worth beside a target, and why vLLM would refuse a value there
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from mtpforge import errors
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.checkpoint.quantization import parse
from mtpforge.engines.command import Flag
from mtpforge.engines.engine import Serving
from mtpforge.engines.expected import expected
from mtpforge.engines.vllm.draft_classes import draft_class
from mtpforge.engines.vllm.matrices import head
from mtpforge.engines.vllm.quantization_methods import decide
from mtpforge.engines.vllm.target_names import as_asked
from mtpforge.errors import MtpforgeError, shown
from mtpforge.families import Family, family_of
from mtpforge.families.sizes import whole_number
from mtpforge.scheme import Scheme
from mtpforge.units import file_size

_HALF: Final = ("bfloat16", "float16")
_HEAD_BYTES: Final = {
    "fp8": 1.0,
    "nvfp4": 0.5 + 1 / 16,
}  # of a value: model_executor/layers/quantization/online/lm_head.py
_TRIPLE: Final = 3


@dataclass(frozen=True, slots=True)
class Pair:
    """A target and the draft that it is served with, scheme by scheme."""

    target: Checkpoint
    scheme: Scheme
    serving: Serving

    @property
    def family(self) -> Family:
        """The target's."""
        return family_of(self.target.config)

    @property
    def text(self) -> Mapping[str, object]:
        """The language model's config."""
        return self.family.text(self.target.config)


@dataclass(frozen=True, slots=True)
class Option:
    """One key.

    source: files of vLLM. refused(pair): why vLLM does not take it there, "" where it does. odd(value): what is wrong
    with a value, "" for nothing. offer(pair): a value to begin with, and what it is worth; None for none.
    """

    source: str
    refused: Callable[[Pair], str]
    odd: Callable[[object], str]
    offer: Callable[[Pair], tuple[object, str] | None]


def offers(pair: Pair) -> tuple[Flag, ...]:
    """What would make drafting cheaper beside this target and was not asked for."""
    found = {name: option.offer(pair) for name, option in OPTIONS.items() if not option.refused(pair)}
    return tuple(
        Flag(name, offer[0], offer[1], OPTIONS[name].source)
        for name, offer in found.items()
        if offer is not None and name not in pair.serving.draft_options
    )


def asked(pair: Pair) -> Iterator[Flag]:
    """What was asked for, as keys; MtpforgeError for a key or a value that vLLM would not take here."""
    for name, value in pair.serving.draft_options.items():
        option = OPTIONS[name]
        if why := option.odd(value):
            raise _refusal(f"`{name}` cannot be {shown(repr(value))}", why, "")
        if why := option.refused(pair):
            raise _refusal(f"`{name}` does not apply beside {shown(pair.target.label)}", why, "leave it out")
        yield Flag(name, value, "asked for by `--draft-option`", option.source)


def _refusal(what: str, why: str, fix: str) -> MtpforgeError:
    tip = fix or "`mtpforge serve --explain` lists what applies here, with values"
    return MtpforgeError(what, where="option `--draft-option`", why=why, fix=tip, code=errors.USAGE)


def _no_head(pair: Pair) -> str:
    """Why the target's head has no quantized copy: it is quantized itself, or not in the model's dtype of 16 bits."""
    dtype = pair.text.get("dtype") or pair.text.get("torch_dtype") or "bfloat16"
    stated = pair.text.get("head_dtype")
    if dtype not in _HALF:
        return f"the target's dtype is {shown(dtype)}, and only heads of {' or '.join(_HALF)} are quantized"
    if stated not in (None, "model", dtype):
        return f"`head_dtype` of the target is {shown(stated)}, not the model's {dtype}"
    try:
        block = as_asked(pair.target.quantization, pair.family, pair.target.config)
        stored, reason = decide(parse(block), head(pair.family, pair.target.config))
    except MtpforgeError as error:
        return error.what
    return "" if stored.is_dense else f"the target's lm_head is quantized already: {reason}"


def _lighter_head(pair: Pair) -> tuple[object, str]:
    values = whole_number(pair.text, "vocab_size") * whole_number(pair.text, "hidden_size")
    head, copy = 2 * values, values * _HEAD_BYTES["fp8"]
    whole = head + _read_bytes(pair)
    return "fp8", (
        f"a drafted token reads {file_size(whole)}, {file_size(head)} of it the head: {file_size(copy)} as fp8,"
        f" {file_size(values * _HEAD_BYTES['nvfp4'])} as nvfp4, for as much memory more over all ranks; answers stay,"
        " acceptance may fall. Needs the V2 model runner: vLLM's choice unless VLLM_USE_V2_MODEL_RUNNER=0"
    )


def _read_bytes(pair: Pair) -> float:
    """Bytes of the layer that one token reads: everything but the experts that are not chosen."""
    family, text = pair.family, pair.text
    n, chosen = family.n_experts(pair.target.config), whole_number(text, "num_experts_per_tok")
    layer = family.layer(pair.target.config)
    specs = expected(pair.scheme, family, pair.target.config, layer, n)
    return sum(spec.n_bytes * (chosen / n if ".experts." in name else 1) for name, spec in specs.items())


def _odd_head(value: object) -> str:
    return "" if value in _HEAD_BYTES else f"one of {', '.join(_HEAD_BYTES)}"


def _by_batch(pair: Pair) -> tuple[object, str] | None:
    k = pair.serving.speculative_tokens
    if k == 1:
        return None
    text = f"{k} tokens a step up to 32 requests, 1 above: full batches have no time to spare for guesses that fail"
    return [[1, 32, k], [33, 256, 1]], f"{text}. Measure the limits; not with data parallelism (config/vllm.py)"


def _odd_schedule(value: object) -> str:
    """What v1/spec_decode/dynamic/utils.py, validate_and_normalize_dynamic_sd_schedule, would say."""
    if not isinstance(value, list) or not value or not all(_is_range(entry) for entry in value):
        return "a list of [first batch size, last, tokens], such as [[1, 32, 3], [33, 256, 1]]"
    end = 0
    for first, last, _ in sorted(value, key=lambda entry: entry[0]):
        if first > last or first <= end or (end == 0 and first != 1):
            return "ranges begin at 1 and do not overlap"
        end = last
    return ""


def _is_range(entry: object) -> bool:
    if not isinstance(entry, list | tuple) or len(entry) != _TRIPLE:
        return False
    return all(type(n) is int and n >= least for n, least in zip(entry, (1, 1, 0), strict=True))


_SHARE: Final = "index_share_for_mtp_iteration"


def _no_indexer(pair: Pair) -> str:
    known = draft_class(pair.family)
    return "" if _SHARE in known.defaults else "it would change nothing: the draft's attention has no indexer"


def _sharing(pair: Pair) -> tuple[object, str] | None:
    if draft_class(pair.family).seen(pair.text, _SHARE) is True or pair.serving.speculative_tokens == 1:
        return None
    return True, (
        "tokens after the first look where the first looked, instead of running the indexer again; the target's config"
        " does not say that the layer was trained so: acceptance may fall"
    )


OPTIONS: Final[dict[str, Option]] = {
    "draft_lm_head_quantization": Option(
        "config/speculative.py, config/vllm.py, model_executor/layers/quantization/online/lm_head.py (0.33.0)",
        _no_head,
        _odd_head,
        _lighter_head,
    ),
    "num_speculative_tokens_per_batch_size": Option(
        "config/speculative.py, v1/spec_decode/dynamic/utils.py (0.33.0)", lambda _: "", _odd_schedule, _by_batch
    ),
    _SHARE: Option(
        "config/speculative.py, v1/worker/gpu/spec_decode/mtp/speculator.py (0.33.0)",
        _no_indexer,
        lambda value: "" if isinstance(value, bool) else "true or false",
        _sharing,
    ),
}
