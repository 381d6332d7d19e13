"""k draft steps of one row, and the distance of two distributions, in plain loops and float64. Nothing of mtpforge.

Every row is a cycle of its own with a list of the rows it may see; nothing is cached or batched.
"""

import math

import torch
from slow_twins import decoder


def cycle(tensors, config, token_ids, hidden, first, k, *, post_norm=True, shares=True):
    """States that the head is given in steps 1 to k of the cycle that begins at row `first`; tokens of the text."""
    w = decoder.layer_of(tensors, config["num_hidden_layers"])
    positions = list(range(first + 1))
    rows = decoder.mtp_rows(tensors, config, token_ids[: first + 2], hidden, positions)
    added, chosen = decoder.attention(w, config, rows, positions)
    blind = {name: tensor for name, tensor in w.items() if ".indexer." not in name}
    seen, out = [*rows], []
    after = rows[-1] + added[-1]
    for step in range(1, k + 1):
        pre = decoder.fed(w, config, after)
        post = decoder.norm(pre, w["shared_head.norm.weight"], config)
        out.append(post)
        if step == k:
            return out
        embedded = tensors["model.embed_tokens.weight"][token_ids[first + step + 1]]
        both = (
            decoder.norm(embedded, w["enorm.weight"], config),
            decoder.norm(post if post_norm else pre, w["hnorm.weight"], config),
        )
        new = w["eh_proj.weight"] @ torch.cat(both)
        where = [*positions, *range(first + 1, first + 1 + step)]
        if shares:  # attends to what the first step chose, so not to itself
            given = [*rows, new]
            where = [*positions, first + step]
            added = decoder.attention(blind, config, given, where, [[0]] * len(rows) + [chosen[-1]])[0]
        else:
            given = [*seen, new]
            added = decoder.attention(w, config, given, where)[0]
        seen.append(new)
        after = new + added[-1]
    return out


def probabilities(tensors, state):
    """Of every token, by the head, one dot product after the other."""
    logits = [float(row @ state) for row in tensors["lm_head.weight"]]
    largest = max(logits)
    parts = [math.exp(x - largest) for x in logits]
    total = sum(parts)
    return [part / total for part in parts]


def total_variation(p, q):
    return sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2


def divergence(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a)


def accepted(target, draft):
    return sum(min(a, b) for a, b in zip(target, draft, strict=True))
