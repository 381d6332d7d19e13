"""A GLM-5.x decoder layer and its MTP layer, row by row and expert by expert, in float64. Imports nothing of mtpforge.

Only for dense checkpoints. A row is a vector [hidden]; a layer's tensors are a dict by local name. As vLLM computes it:
every norm but the indexer's has rms_norm_eps.
"""

import json
import math

import torch
from safetensors.torch import load_file


def checkpoint(folder):
    """Every tensor by name, float64, and config.json."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= {name: tensor.double() for name, tensor in load_file(file).items()}
    return found, json.loads((folder / "config.json").read_text())


def layer_of(tensors, number):
    prefix = f"model.layers.{number}."
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def norm(row, weight, config):
    return row / math.sqrt(float((row * row).mean()) + config["rms_norm_eps"]) * weight


def turned(row, position, config):
    """Rotary embedding of pairs (0, 1), (2, 3), ... of a whole vector."""
    n = len(row)
    angles = [position / config["rope_parameters"]["rope_theta"] ** (2 * pair / n) for pair in range(n // 2)]
    out = []
    for (a, b), angle in zip(row.view(-1, 2).tolist(), angles, strict=True):
        out += [a * math.cos(angle) - b * math.sin(angle), b * math.cos(angle) + a * math.sin(angle)]
    return row.new_tensor(out)


def turned_end(row, start, position, config):
    return torch.cat((row[:start], turned(row[start:], position, config)))


def turned_start(row, end, position, config):
    return torch.cat((turned(row[:end], position, config), row[end:]))


def attention(w, config, rows, positions, chosen=None):
    """What is added to each row, and the keys that each attends to; `chosen`: those of a layer without an indexer."""
    c, heads = config, config["num_attention_heads"]
    nope, rope, width = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
    queries, keys, values, latents, normed = [], [], [], [], []
    for row, position in zip(rows, positions, strict=True):
        x = norm(row, w["input_layernorm.weight"], c)
        latent = norm(w["self_attn.q_a_proj.weight"] @ x, w["self_attn.q_a_layernorm.weight"], c)
        q = (w["self_attn.q_b_proj.weight"] @ latent).view(heads, nope + rope)
        both = w["self_attn.kv_a_proj_with_mqa.weight"] @ x
        rank = c["kv_lora_rank"]
        k_rope = turned(both[rank:], position, c)
        compressed = norm(both[:rank], w["self_attn.kv_a_layernorm.weight"], c)
        kv = (w["self_attn.kv_b_proj.weight"] @ compressed).view(heads, nope + width)
        queries.append([turned_end(q[head], nope, position, c) for head in range(heads)])
        keys.append([torch.cat((kv[head, :nope], k_rope)) for head in range(heads)])
        values.append([kv[head, nope:] for head in range(heads)])
        latents.append(latent)
        normed.append(x)
    if "self_attn.indexer.wk.weight" in w:
        chosen = indexed(w, c, normed, latents, positions)
    added = []
    for here, attended in enumerate(chosen):
        heard = []
        for head in range(heads):
            scores = torch.stack([keys[there][head] for there in attended]) @ queries[here][head]
            weights = torch.softmax(scores / math.sqrt(nope + rope), 0)
            heard.append(weights @ torch.stack([values[there][head] for there in attended]))
        added.append(w["self_attn.o_proj.weight"] @ torch.cat(heard))
    return added, chosen


def indexed(w, config, normed, latents, positions):
    """Of each row the index_topk earlier rows, itself included, with the highest index scores."""
    c, n, width, rope = config, config["index_n_heads"], config["index_head_dim"], config["qk_rope_head_dim"]
    name = "self_attn.indexer."
    queries, keys, shares = [], [], []
    for x, latent, position in zip(normed, latents, positions, strict=True):
        q = (w[name + "wq_b.weight"] @ latent).view(n, width)
        queries.append(torch.stack([turned_start(q[head], rope, position, c) for head in range(n)]))
        k = w[name + "wk.weight"] @ x
        k = (k - k.mean()) / math.sqrt(float(k.var(correction=0)) + 1e-6)
        k = k * w[name + "k_norm.weight"] + w[name + "k_norm.bias"]
        keys.append(turned_start(k, rope, position, c))
        shares.append(w[name + "weights_proj.weight"] @ x)
    chosen = []
    for here, (query, share) in enumerate(zip(queries, shares, strict=True)):
        scores = [float(share @ (query @ keys[there]).clamp(min=0)) for there in range(here + 1)]
        best = sorted(range(here + 1), key=lambda there: -scores[there])
        chosen.append(sorted(best[: c["index_topk"]]))
    return chosen


def mlp(w, name, x):
    gate = w[f"{name}.gate_proj.weight"] @ x
    return w[f"{name}.down_proj.weight"] @ (gate * torch.sigmoid(gate) * (w[f"{name}.up_proj.weight"] @ x))


def gates(w, config, x):
    """Expert -> what its output is multiplied by, for the experts that a row is sent to. Groups are not known here."""
    assert config["n_group"] == 1
    scores = torch.sigmoid(w["mlp.gate.weight"] @ x).tolist()
    bias = w["mlp.gate.e_score_correction_bias"].tolist()
    best = sorted(range(len(scores)), key=lambda e: -(scores[e] + bias[e]))[: config["num_experts_per_tok"]]
    total = sum(scores[e] for e in best) if config["norm_topk_prob"] else 1.0
    return {e: scores[e] / total * config["routed_scaling_factor"] for e in best}


def fed(w, config, row):
    """What the second half of a layer makes of a row that attention was added to."""
    x = norm(row, w["post_attention_layernorm.weight"], config)
    if "mlp.gate.weight" not in w:
        return row + mlp(w, "mlp", x)
    routed = sum(gate * mlp(w, f"mlp.experts.{e}", x) for e, gate in gates(w, config, x).items())
    return row + routed + mlp(w, "mlp.shared_experts", x)


def attended(w, config, rows, positions, chosen=None):
    added, chosen = attention(w, config, rows, positions, chosen)
    return [row + more for row, more in zip(rows, added, strict=True)], chosen


def hidden_states(tensors, config, token_ids, n_layers=None):
    """The rows of a sequence after so many layers; after all of them the final norm is applied."""
    rows, chosen = [tensors["model.embed_tokens.weight"][token] for token in token_ids], None
    positions = range(len(rows))
    for number in range(config["num_hidden_layers"] if n_layers is None else n_layers):
        w = layer_of(tensors, number)
        rows, chosen = attended(w, config, rows, positions, chosen)
        rows = [fed(w, config, row) for row in rows]
    if n_layers is None:
        rows = [norm(row, tensors["model.norm.weight"], config) for row in rows]
    return rows


def mtp_rows(tensors, config, token_ids, hidden, positions):
    """What the MTP layer's decoder layer is given: one row fewer than there are tokens."""
    w = layer_of(tensors, config["num_hidden_layers"])
    rows = []
    for i in range(len(token_ids) - 1):
        embedded = tensors["model.embed_tokens.weight"][token_ids[i + 1]]
        embedded = torch.zeros_like(embedded) if positions[i] == 0 else embedded
        both = norm(embedded, w["enorm.weight"], config), norm(hidden[i], w["hnorm.weight"], config)
        rows.append(w["eh_proj.weight"] @ torch.cat(both))
    return rows


def saliency(w, config, rows):
    """Of every expert the mean of gate times norm of the output over its tokens, and the number of these."""
    n = len(w["mlp.gate.weight"])
    seen = [[] for _ in range(n)]
    for row in rows:
        x = norm(row, w["post_attention_layernorm.weight"], config)
        for expert, gate in gates(w, config, x).items():
            out = mlp(w, f"mlp.experts.{expert}", x)
            seen[expert].append(gate * math.sqrt(float(out @ out)))
    return [sum(each) / len(each) if each else 0.0 for each in seen], [len(each) for each in seen]
