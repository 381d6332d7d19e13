"""Calibration inputs of the tiny model, made by the slow twin, and written as the file's layout says.

from nextn.calibration import SEQUENCES, captured, write
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from slow_twins import decoder

STORED = json.loads((Path(__file__).parents[1] / "data" / "saliency" / "llm-compressor.json").read_text())
FIRST = (0, 5)  # position of the first row of each sequence
SEQUENCES = (tuple(STORED["token_ids"][0][:70]), tuple(STORED["token_ids"][1][:41]))


@functools.cache
def twin(folder: Path):
    """Tensors in float64, and the config."""
    return decoder.checkpoint(folder)


@functools.cache
def captured(folder: Path):
    """Of each sequence: token ids, positions, and the target's final-normed hidden states, float32 [n, hidden]."""
    tensors, config = twin(folder)
    return tuple(
        (ids, tuple(range(first, first + len(ids))), torch.stack(decoder.hidden_states(tensors, config, ids)).float())
        for ids, first in zip(SEQUENCES, FIRST, strict=True)
    )


def write(path: Path, sequences) -> Path:
    lengths = torch.tensor([0, *(len(ids) for ids, _, _ in sequences)])
    tensors = {
        "hidden_states": torch.cat([hidden for _, _, hidden in sequences]),
        "token_ids": torch.tensor([token for ids, _, _ in sequences for token in ids]),
        "positions": torch.tensor([position for _, at, _ in sequences for position in at]),
        "sequence_starts": lengths.cumsum(0),
    }
    save_file(tensors, path, {"format": "mtpforge-inputs-1", "target": "the slow twin"})
    return path
