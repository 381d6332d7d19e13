"""scores(): how much each expert of a nextn layer does on calibration inputs, by every method that asks for some.

    reap[j]        mean over the tokens routed to expert j of gate weight times Euclidean norm of its output; 0 where
                   no token is. Lasby et al. 2025 (arXiv 2510.13999)
    frequency[j]   how many tokens are routed to expert j

The gate weight is the one that multiplies the output: normalised over the chosen experts and scaled, as the model's own
router gives it. llm-compressor (0.14.0, modifiers/pruning/reap) takes the same one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.errors import MtpforgeError, shown
from mtpforge.nextn import layer as layers
from mtpforge.nextn.embedding import Embedding, embedding
from mtpforge.nextn.inputs import Inputs
from mtpforge.nextn.layer import Block, Rows
from mtpforge.report import OnProgress

if TYPE_CHECKING:
    from torch import Tensor


def scores(
    source: Checkpoint,
    target: Checkpoint,
    inputs: Inputs,
    *,
    device: str = "cpu",
    on_progress: OnProgress | None = None,
) -> dict[str, tuple[float, ...]]:
    """`reap` and `frequency`, one number per expert of the source's nextn layer, in one pass over the experts.

    The embedding is the source's, else the target's. MtpforgeError for inputs of another model, too many of them, or
    weights that are missing.
    """
    nextn = layers.block(source, device=device)
    held = embedding_of(nextn, source, target, inputs)
    return of_rows(nextn, attended(nextn, held, inputs, on_progress).x, on_progress)


def embedding_of(nextn: Block, source: Checkpoint, target: Checkpoint, inputs: Inputs) -> Embedding:
    """The embedding for these inputs: the source's, else the target's. MtpforgeError for inputs of another model."""
    held = embedding(source, target, nextn.config.hidden_size)
    _refuse_foreign(nextn, held, inputs)
    return held


def attended(nextn: Block, held: Embedding, inputs: Inputs, on_progress: OnProgress | None = None) -> Rows:
    """The rows of all inputs before the layer's experts, attention added; makes the embedding's rows local."""
    held.fetch(_tokens(inputs))
    rows = layers.enter(nextn, held, inputs, inputs.n_tokens - inputs.n_sequences)
    layers.attend(nextn, rows, on_progress)
    return rows


def of_rows(layer: Block, x: Tensor, on_progress: OnProgress | None = None) -> dict[str, tuple[float, ...]]:
    """The same of any layer with routed experts, for rows float32 [n, hidden] that attention was added to."""
    import torch

    totals, counts = [0.0] * layer.n_experts, [0] * layer.n_experts

    def add(number: int, _: Tensor, gates: Tensor, outputs: Tensor) -> None:
        norms = torch.linalg.vector_norm(outputs, dim=1, dtype=torch.float64)
        totals[number] += float((gates.double() * norms).sum())
        counts[number] += len(gates)

    layers.each_expert(layer, x, layers.route(layer, x), add, on_progress)
    means = [total / max(count, 1) for total, count in zip(totals, counts, strict=True)]
    return {"reap": tuple(means), "frequency": tuple(float(count) for count in counts)}


def _tokens(inputs: Inputs) -> Tensor:
    """The different token ids of the inputs, ascending."""
    import torch

    seen: Tensor = torch.unique(torch.cat([torch.unique(sequence.token_ids) for sequence in inputs]))
    return seen


def _refuse_foreign(nextn: Block, held: Embedding, inputs: Inputs) -> None:
    """MtpforgeError for inputs that this layer cannot have been given."""
    if inputs.hidden_size != nextn.config.hidden_size:
        raise _foreign(inputs, f"its hidden states have {inputs.hidden_size:,} columns", nextn.config.hidden_size)
    if inputs.n_tokens == inputs.n_sequences:
        raise MtpforgeError(
            "the inputs hold sequences of one token alone",
            where=shown(inputs.path),
            why="the MTP layer takes a token and the next one",
            fix="capture longer sequences",
        )
    inputs.refuse_beyond(nextn.config.max_position_embeddings)
    highest = int(_tokens(inputs)[-1])
    if highest >= held.n_tokens:
        raise _foreign(inputs, f"it holds token {highest:,}", held.n_tokens)


def _foreign(inputs: Inputs, found: str, own: int) -> MtpforgeError:
    return MtpforgeError(
        "the inputs were captured from another model",
        where=shown(inputs.path),
        why=f"{found}, the layer's model has {own:,}",
        fix="capture them from a target of this model: `mtpforge capture --help`",
    )
