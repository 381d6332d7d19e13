"""How many tokens of an MTP draft a small GLM-5.x target accepts: plain PyTorch. Imports nothing of mtpforge.

A draft folder holds model.layers.N.* (N = num_hidden_layers of its config.json), dense or as pack-quantized integers;
embedding and head are the target's. Arithmetic is float32 on weights rounded to BF16 once decoded.

As vLLM's DeepSeekMTP: position i takes the embedding of token i+1 (zeros at position 0) through enorm and the target's
final-normed hidden state i through hnorm, concatenated in this order, then eh_proj, the decoder layer,
shared_head.norm, the target's head. Later steps take the drafted token and the previous step's output at the next
position; with index_share_for_mtp_iteration they attend to what the first step's indexer chose.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from safetensors import safe_open
from torch import Tensor

_PACKED = ("weight", "weight_packed", "weight_scale", "weight_shape", "weight_zero_point")


def unpacked(words: Tensor, bits: int) -> Tensor:
    """[rows, n] int32 -> [rows, n * 32 / bits] unsigned codes of 4 or 8 bits, lowest bits first."""
    return ((words.long()[..., None] >> torch.arange(0, 32, bits)) & (2**bits - 1)).flatten(-2)


def decoded(parts: dict[str, Tensor]) -> Tensor:
    """One weight's tensors by suffix -> float32 [out, in]."""
    if "weight_packed" not in parts:
        return parts["weight"].float()
    out, columns = parts["weight_shape"].tolist()
    bits = parts["weight_packed"].shape[1] * 32 // columns
    scale = parts["weight_scale"].float()
    codes = unpacked(parts["weight_packed"], bits)[:, :columns].float().view(out, scale.shape[1], -1)
    zero = torch.full_like(scale, 2 ** (bits - 1))
    if "weight_zero_point" in parts:  # packed along the rows
        zero = unpacked(parts["weight_zero_point"].T.contiguous(), bits)[:, :out].T.float()
    return ((codes - zero[..., None]) * scale[..., None]).view(out, columns)


def weights(folder: Path, keep: Callable[[str], bool] = lambda _: True) -> dict[str, Tensor]:
    """Every tensor by name, float32; weights as BF16 would hold them."""
    modules: dict[str, dict[str, Tensor]] = {}
    plain: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in filter(keep, opened.keys()):
                stem, last = name.rsplit(".", 1)
                if last in _PACKED:
                    modules.setdefault(stem, {})[last] = opened.get_tensor(name)
                else:
                    plain[name] = opened.get_tensor(name).float()
    return {**plain, **{f"{stem}.weight": decoded(parts).bfloat16().float() for stem, parts in modules.items()}}


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def _rotate(x: Tensor, pos: Tensor, theta: float) -> Tensor:
    """Interleaved rotary embedding on the whole last axis: x [B, T, D] or [B, T, heads, D], pos [T]."""
    d = x.shape[-1]
    angle = pos[:, None].float() / theta ** (torch.arange(0, d, 2).float() / d)
    angle = angle[:, None] if x.ndim == 4 else angle
    c, s = angle.cos(), angle.sin()
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack((even * c - odd * s, even * s + odd * c), -1).flatten(-2)


class Layer:
    """One decoder layer. Sequences are [B, T, H]; caches are dicts of tensors with the key axis second."""

    def __init__(self, tensors: dict[str, Tensor], prefix: str, config: dict[str, Any]) -> None:
        self.w = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        self.c, self.eps = config, float(config["rms_norm_eps"])
        self.theta, self.heads = float(config["rope_parameters"]["rope_theta"]), int(config["num_attention_heads"])
        self.indexed = "self_attn.indexer.wk.weight" in self.w
        self.routed = "mlp.gate.weight" in self.w

    def lin(self, name: str, x: Tensor) -> Tensor:
        """A linear module."""
        return x @ self.w[f"{name}.weight"].T

    def project(self, x: Tensor, pos: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, dict[str, Tensor]]:
        """Queries, index queries, index head weights, and what the cache keeps."""
        c, a = self.c, "self_attn."
        nope, r, v, rank = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"], c["kv_lora_rank"]
        latent = _norm(self.lin(a + "q_a_proj", x), self.w[a + "q_a_layernorm.weight"], self.eps)
        q = self.lin(a + "q_b_proj", latent).unflatten(-1, (self.heads, nope + r))
        kv = self.lin(a + "kv_a_proj_with_mqa", x)
        k_rot = _rotate(kv[..., rank:], pos, self.theta)
        kv = self.lin(a + "kv_b_proj", _norm(kv[..., :rank], self.w[a + "kv_a_layernorm.weight"], self.eps))
        kv = kv.unflatten(-1, (self.heads, nope + v))
        q = torch.cat((q[..., :nope], _rotate(q[..., nope:], pos, self.theta)), -1)
        k_rot = k_rot.unsqueeze(-2).expand(*k_rot.shape[:-1], self.heads, r)
        new = {"k": torch.cat((kv[..., :nope], k_rot), -1), "v": kv[..., nope:]}
        if not self.indexed:
            return q, None, None, new
        d, n, i = c["index_head_dim"], c["index_n_heads"], a + "indexer."
        iq = self.lin(i + "wq_b", latent).unflatten(-1, (n, d))
        iq = torch.cat((_rotate(iq[..., :r], pos, self.theta), iq[..., r:]), -1)
        ik = F.layer_norm(self.lin(i + "wk", x), (d,), self.w[i + "k_norm.weight"], self.w[i + "k_norm.bias"], 1e-6)
        new["ik"] = torch.cat((_rotate(ik[..., :r], pos, self.theta), ik[..., r:]), -1)
        return q, iq, self.lin(i + "weights_proj", x) * (n * d) ** -0.5, new

    def select(self, iq: Tensor, iw: Tensor, ik: Tensor, allowed: Tensor) -> Tensor:
        """Mask [B, T, S] of the index_topk best of the allowed keys of every row."""
        scores = torch.einsum("bths,bth->bts", torch.einsum("bthd,bsd->bths", iq, ik).relu(), iw)
        scores = scores.masked_fill(~allowed, -math.inf)
        best = scores.topk(min(self.c["index_topk"], scores.shape[-1]), -1)
        return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best.indices, best.values > -math.inf)

    def feed(self, x: Tensor) -> Tensor:
        """The second half: dense, or the routed and the shared experts."""
        y = _norm(x, self.w["post_attention_layernorm.weight"], self.eps)
        if not self.routed:
            return x + self._mlp("mlp", y)
        c, flat = self.c, y.flatten(0, -2)
        score = torch.sigmoid(self.lin("mlp.gate", flat))
        chosen = (score + self.w["mlp.gate.e_score_correction_bias"]).topk(c["num_experts_per_tok"], -1).indices
        g = score.gather(-1, chosen)
        g = g / (g.sum(-1, keepdim=True) + 1e-20) if c["norm_topk_prob"] else g
        out = torch.zeros_like(flat)
        for e in range(score.shape[-1]):
            row, slot = (chosen == e).nonzero(as_tuple=True)
            weight = g[row, slot, None] * c["routed_scaling_factor"]
            out.index_add_(0, row, self._mlp(f"mlp.experts.{e}", flat[row]) * weight)
        return x + out.view(x.shape) + self._mlp("mlp.shared_experts", y)

    def _mlp(self, name: str, x: Tensor) -> Tensor:
        return self.lin(name + ".down_proj", F.silu(self.lin(name + ".gate_proj", x)) * self.lin(name + ".up_proj", x))

    def forward(
        self, x: Tensor, pos: Tensor, cache: dict[str, Tensor] | None = None, shared: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Causal attention over cache and x: output, cache, mask of the keys that were chosen."""
        q, iq, iw, new = self.project(_norm(x, self.w["input_layernorm.weight"], self.eps), pos)
        cache = new if cache is None else {n: torch.cat((cache[n], new[n]), 1) for n in new}
        allowed = (torch.arange(cache["k"].shape[1]) <= pos[:, None]).expand(len(x), -1, -1)
        if iq is not None and iw is not None:
            allowed = self.select(iq, iw, cache["ik"], allowed)
        elif shared is not None:
            allowed = shared
        return self._attend(x, q, cache, allowed), cache, allowed

    def again(self, x: Tensor, pos: Tensor, cache: dict[str, Tensor], chosen: Tensor) -> Tensor:
        """A later step: row i attends to what the first step chose for it, not to drafted positions."""
        q, _, _, _ = self.project(_norm(x, self.w["input_layernorm.weight"], self.eps), pos)
        return self._attend(x, q, cache, chosen)

    def _attend(self, x: Tensor, q: Tensor, cache: dict[str, Tensor], allowed: Tensor) -> Tensor:
        score = torch.einsum("bthd,bshd->bhts", q, cache["k"]) * q.shape[-1] ** -0.5
        p = score.masked_fill(~allowed[:, None], -math.inf).softmax(-1)
        y = torch.einsum("bhts,bshd->bthd", p, cache["v"]).flatten(-2)
        return self.feed(x + self.lin("self_attn.o_proj", y))


class Target:
    """The model that is served."""

    def __init__(self, folder: Path) -> None:
        tensors, self.c = weights(folder), _config(folder)
        self.layers = [Layer(tensors, f"model.layers.{i}.", self.c) for i in range(self.c["num_hidden_layers"])]
        self.embed, self.head = tensors["model.embed_tokens.weight"], tensors["lm_head.weight"]
        self.norm = tensors["model.norm.weight"]

    def forward(
        self, ids: Tensor, caches: list[dict[str, Tensor]] | None = None
    ) -> tuple[Tensor, list[dict[str, Tensor]]]:
        """Final-normed hidden states and caches."""
        start = 0 if caches is None else caches[0]["k"].shape[1]
        pos = torch.arange(start, start + ids.shape[1])
        x, shared, out = self.embed[ids], None, []
        for n, layer in enumerate(self.layers):
            x, cache, shared = layer.forward(x, pos, caches[n] if caches else None, shared)
            out.append(cache)
        return _norm(x, self.norm, self.c["rms_norm_eps"]), out

    def sampled(self, ids: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """The prompts with `count` tokens more, drawn at temperature 1."""
        hidden, caches = self.forward(ids)
        for _ in range(count):
            new = torch.multinomial((hidden[:, -1] @ self.head.T).softmax(-1), 1, generator=generator)
            ids = torch.cat((ids, new), 1)
            hidden, caches = self.forward(new, caches)
        return ids


class Draft:
    """An MTP layer beside its target. Only the way of index_share_for_mtp_iteration is known, GLM-5.2's."""

    def __init__(self, folder: Path, target: Target) -> None:
        config = _config(folder)
        prefix = f"model.layers.{config['num_hidden_layers']}."
        self.layer = Layer(weights(folder, lambda name: name.startswith(prefix)), prefix, config)
        self.target, self.eps = target, float(config["rms_norm_eps"])
        if not config.get("index_share_for_mtp_iteration"):
            raise SystemExit(f"{folder}: no index_share_for_mtp_iteration")

    def logits(self, ids: Tensor, hidden: Tensor, k: int) -> list[Tensor]:
        """Logits of k steps for every row i, predicting tokens i+2 to i+1+k; each step is fed the text's tokens."""
        t = ids.shape[1] - 1
        pos = torch.arange(t)
        x, cache, chosen = self.layer.forward(self._inputs(ids[:, 1:], hidden[:, :t], pos), pos)
        states = [self._finished(x)]
        for j in range(1, k):
            tokens = F.pad(ids[:, 1 + j :], (0, j))
            x = self.layer.again(self._inputs(tokens, states[-1], pos + j), pos + j, cache, chosen)
            states.append(self._finished(x))
        return [state @ self.target.head.T for state in states]

    def _inputs(self, tokens: Tensor, hidden: Tensor, pos: Tensor) -> Tensor:
        embedded = torch.where((pos == 0)[:, None], 0.0, self.target.embed[tokens])
        enorm, hnorm = self.layer.w["enorm.weight"], self.layer.w["hnorm.weight"]
        both = torch.cat((_norm(embedded, enorm, self.eps), _norm(hidden, hnorm, self.eps)), -1)
        return self.layer.lin("eh_proj", both)

    def _finished(self, x: Tensor) -> Tensor:
        return _norm(x, self.layer.w["shared_head.norm.weight"], self.eps)


def first_step(target: Target, draft: Draft, ids: Tensor, hidden: Tensor) -> Tensor:
    """Acceptance of the first drafted token under rejection sampling at temperature 1, on the text itself: [windows].

    The sum of min(p, q), that is 1 less the total variation of both distributions, averaged over positions.
    """
    p = (hidden @ target.head.T).softmax(-1)[:, 1:]
    q = draft.logits(ids, hidden, 1)[0].softmax(-1)
    return torch.minimum(p, q).sum(-1).mean(1)


def mean_length(target: Target, draft: Draft, ids: Tensor, hidden: Tensor, prompt: int, k: int) -> Tensor:
    """Tokens a cycle, the target's own counted, at temperature 1 on what it generated after `prompt`: [windows].

    Acceptance of the later of k steps is weighed by how likely the target's tokens were to be drafted and accepted:
    exact in expectation, without sampling the draft; averaged over all starting positions.
    """
    p = (hidden @ target.head.T).softmax(-1)
    q = [logits.softmax(-1) for logits in draft.logits(ids, hidden, k)]
    rows = torch.arange(prompt - 1, ids.shape[1] - 1 - k)
    weight, total = torch.ones(len(ids), len(rows)), torch.ones(len(ids))
    for j in range(k):
        theirs, own, seen = p[:, rows + 1 + j], q[j][:, rows], ids[:, rows + 2 + j, None]
        total = total + (weight * torch.minimum(theirs, own).sum(-1)).mean(1)
        weight = weight * (own.gather(-1, seen) / theirs.gather(-1, seen)).squeeze(-1).clamp(max=1)
    return total
