"""Which tensors the files of a draft hold, before an engine sees them."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from .headers import read_header
from .refusing import RefusedError
from .verdict import Findings


def tensors_of(draft: Path, findings: Findings) -> list[str]:
    """Every tensor in the draft's files, indexed or not."""
    files = sorted(draft.glob("*.safetensors"))
    if not files:
        raise RefusedError(f"no *.safetensors in {draft}")
    where: dict[str, list[str]] = defaultdict(list)
    for file in files:
        try:
            for name in read_header(file):
                where[name].append(file.name)
        except (ValueError, KeyError) as error:
            raise RefusedError(f"draft file {file.name}: {error}") from error
    for name, found in where.items():
        if len(found) > 1:
            findings.errors.append(f"{name} is in {len(found)} files ({', '.join(found)}): the last one read wins")
    findings.facts["tensors"] = len(where)
    return list(where)
