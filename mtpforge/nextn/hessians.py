"""Calibration: what each expert's projections see of calibration inputs, and the GPTQ factors made of it.

    gate_proj, up_proj     the rows that are routed to the expert, after post_attention_layernorm
    down_proj              act(gate) * up of these rows
    shared experts         the same of all rows

    H = 2 / n X^T X + in / n mean(diagonal) I        float32 [in, in], for n rows X

The layer is the source's own: attention, router and the weights before a projection are those that are stored, rounded
to BF16, not yet quantized. Where experts are dropped, rows are routed among those that stay, for that is how the draft
will serve: the tokens of a dropped expert go to the others. Dropped experts are not read.

The last term stands for what n rows do not show of `in` directions. Without it fewer than two or three rows an input
make codes that are worse than round-to-nearest's on other text: the rows seen are fitted at the cost of all others.
llm-compressor sends every token through every expert instead. docs/scales.md has the measurements.

Everything runs on one thread, so that the bytes of a draft do not depend on how many there are.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.families import family_of
from mtpforge.nextn import layer as layers
from mtpforge.nextn import scoring
from mtpforge.nextn.inputs import Inputs
from mtpforge.report import OnProgress
from mtpforge.sourcing import stored_layer
from mtpforge.weights import Reader

if TYPE_CHECKING:
    from torch import Tensor

    from mtpforge.nextn.layer import Routed

_DOWN: Final = "down_proj"
_HELD: Final = 2  # factors kept: 151 MB for 6,144 inputs; gate and up of an expert share one
_TOKENS: Final = 1024  # that go through a norm at a time


class Calibration:
    """Inputs of the experts of one layer. Modules are the source's local names: `mlp.experts.17.gate_proj`.

    After `run` any thread may ask; what it is given does not depend on who asks first.
    """

    def __init__(
        self, source: Checkpoint, target: Checkpoint, inputs: Inputs, kept: tuple[int, ...] | None = None
    ) -> None:
        """MtpforgeError for inputs of another model. kept: experts of the source that stay, None for all."""
        self.source, self.inputs = source, inputs
        self.block = layers.block(source)
        self.stored = stored_layer(source, family_of(source.config)).modules
        self.kept = kept or tuple(range(self.block.n_experts))
        self._embedding = scoring.embedding_of(self.block, source, target, inputs)
        self._rows: Tensor | None = None
        self._routed: Routed | None = None
        self._lock = threading.Lock()
        self._factors: OrderedDict[str, _Once] = OrderedDict()

    @property
    def n_bytes(self) -> int:
        """Memory that the inputs of all experts take."""
        return 4 * self.inputs.hidden_size * (self.inputs.n_tokens - self.inputs.n_sequences)

    def run(self, on_progress: OnProgress | None = None) -> None:
        """The layer up to its router, on all inputs; fetches and reads everything but the experts."""
        import torch

        with one_thread():
            x = scoring.attended(self.block, self._embedding, self.inputs, on_progress).x
            self._routed = layers.route(self.block, x, self.kept)
            norm = self.block.norm("post_attention_layernorm")
            with torch.inference_mode():
                for some in torch.split(x, _TOKENS):
                    some.copy_(norm(some))
            self._rows = x

    def seen(self, module: str) -> Tensor:
        """What a projection of an expert is given, float32 [n, in]; n is 0 where no row is routed to the expert."""
        assert self._rows is not None  # noqa: S101 -- run comes first
        x = self._rows
        number = self.stored[module].module.expert
        if number is not None:
            assert self._routed is not None  # noqa: S101 -- run comes first
            x = x[(self._routed.experts == self.kept.index(number)).any(1)]
        expert = module.removesuffix(_DOWN)
        return self.between(x, lambda part: self.weight(expert + part)) if module.endswith(_DOWN) else x

    def factor(self, module: str) -> Tensor | None:
        """arithmetic.gptq.factor of the inputs of a projection; None where there are none, or float32 has none."""
        key = module if module.endswith(_DOWN) else module.rpartition(".")[0]
        with self._lock:
            once = self._factors.setdefault(key, _Once(lambda: _factor(self.seen(module))))
            self._factors.move_to_end(key)
            while len(self._factors) > _HELD:
                self._factors.popitem(last=False)
        return once()

    def weight(self, module: str) -> Iterator[Tensor]:
        """Bands of a stored projection, float32 [rows, in] of BF16 values; its bytes are made local."""
        import torch

        stored = self.stored[module]
        self.source.fetch(stored.weight_parts.values())
        return (band.to(torch.bfloat16).float() for band in stored.weight(Reader(self.source.read)).decoded())

    def between(self, x: Tensor, weight: Callable[[str], Iterator[Tensor]]) -> Tensor:
        """act(gate) * up of rows x, float32 [n, width]. weight: bands of `gate_proj` and `up_proj`, of equal rows."""
        import torch
        from transformers.activations import ACT2FN

        act = ACT2FN[self.block.config.hidden_act]
        with torch.inference_mode():
            both = zip(weight("gate_proj"), weight("up_proj"), strict=True)
            return torch.cat([act(x @ gate.t()) * (x @ up.t()) for gate, up in both], 1)

    def output(self, x: Tensor, weight: Callable[[str], Iterator[Tensor]]) -> Tensor:
        """What an expert of these weights makes of rows x, float32 [n, hidden]; `down_proj` is asked for too."""
        import torch

        inner = self.between(x, weight)
        with torch.inference_mode():
            return torch.cat([inner @ down.t() for down in weight(_DOWN)], 1)


def hessian(x: Tensor) -> Tensor:
    """H of n rows, float32 [in, in]; n is not 0."""
    n_rows, width = x.shape
    found = (x.t() @ x).mul_(2 / n_rows)
    diagonal = found.diagonal()
    diagonal.add_(diagonal.mean() * (width / n_rows))
    return found


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread: how sums are split among several changes their last bits."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _factor(x: Tensor) -> Tensor | None:
    import torch

    from mtpforge.arithmetic import gptq

    with torch.inference_mode():
        return gptq.factor(hessian(x)) if len(x) else None


class _Once:
    """A factor that the first who asks makes; others wait for it."""

    def __init__(self, make: Callable[[], Tensor | None]) -> None:
        self._make, self._lock = make, threading.Lock()
        self._made: Tensor | None = None
        self._is_made = False

    def __call__(self) -> Tensor | None:
        with self._lock:
            if not self._is_made:
                self._made, self._is_made = self._make(), True
            return self._made
