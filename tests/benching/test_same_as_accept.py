"""A server over the tiny model that drafts as engines do: bench reads of its counters what accept says without it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from openai_server import serving

import mtpforge
from mtpforge.checkpoint import open_checkpoint
from mtpforge.judging import acceptance
from mtpforge.nextn import layer as layers
from mtpforge.nextn.embedding import embedding
from mtpforge.nextn.heads import head_of
from mtpforge.nextn.hessians import one_thread
from mtpforge.nextn.target import open_target
from mtpforge.nextn.whole import likeliest, whole

STORED = json.loads((Path(__file__).parents[1] / "data" / "acceptance" / "tinyglm.json").read_text())
K, PROMPT = STORED["k"], STORED["prompt"]


@pytest.fixture
def drafted(tinyglm, monkeypatch):
    """Of each window: tokens of the draft [k, rows], the target's own text, and what accept makes of all of them."""
    handed, cycles = [], acceptance._cycles
    monkeypatch.setattr(
        acceptance, "_cycles", lambda own, ids, prompt: handed.append((own, ids)) or cycles(own, ids, prompt)
    )
    checkpoint = open_checkpoint(str(tinyglm("awq-int4")))
    head = head_of(checkpoint, hidden_size=128)
    with one_thread():
        held, prompts = whole(open_target(checkpoint), head), torch.tensor(STORED["prompts"])
        ids = held.continued(prompts, STORED["generated"], likeliest)
        text = acceptance.Text(ids, held.states(ids), PROMPT)
        block = layers.block(open_checkpoint(str(tinyglm("bf16"))))
        found = acceptance.greedy(block, acceptance.Beside(embedding(checkpoint, checkpoint, 128), head, K), text)
    return [(own.tolist(), ids.tolist()) for own, ids in handed], found


@pytest.mark.slow
def test_counters_and_accept_agree_on_the_same_text(drafted, tmp_path):
    windows, wanted = drafted
    text, rounds = tmp_path / "windows.txt", [0] * len(windows)
    text.write_text("\f".join(f"window {number}" for number in range(len(windows))))

    def answered(body):
        """One reply: draft, compare with what the target says, go on behind the first that differs."""
        number = int(body["prompt"].rpartition(" ")[2])
        (own, theirs), at, counted = windows[number], PROMPT - 1, server.counted
        yield 1
        while at + 1 + K < len(theirs):
            proposed, true = [step[at] for step in own], theirs[at + 2 : at + 2 + K]
            taken = next((n for n, (ours, real) in enumerate(zip(proposed, true, strict=True)) if ours != real), K)
            with counted.lock:
                counted.rounds += 1
                counted.accepted += taken
                for position in range(taken):
                    counted.positions[position] += 1
            rounds[number] += body["seed"] == 0
            at += taken + 1
            yield taken + 1

    with serving(K, lambda body: iter(())) as server:
        server.rounds = answered
        found = mtpforge.bench(
            server.url, text=text, concurrency=[1], prompts=len(windows), endpoint="completions", temperature=0
        )
    (total,) = found.totals
    weights = torch.tensor(rounds, dtype=torch.float64)
    positions = (wanted.positions * weights).sum(1) / weights.sum()
    assert total.n_rounds == sum(rounds) > 30
    assert total.positions == pytest.approx(positions.tolist())
    assert total.length.mean == pytest.approx(float((wanted.length * weights).sum() / weights.sum()))
