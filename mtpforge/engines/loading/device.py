"""What is asked of an engine's tables, and the packages beside it that decide which of its kernels run."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import distributions

_BESIDE = ("nvidia-nccl", "flashinfer", "flash-mla", "deep-gemm", "deep_gemm", "sglang-kernel", "sgl-kernel", "triton")


@dataclass(frozen=True, slots=True)
class Device:
    """capability: the compute capability that the engine believes in, as 90 or 121."""

    capability: int


def packages() -> dict[str, str]:
    """Name -> version of the libraries of kernels and of NCCL in this interpreter, by their metadata."""
    found = {str(each.metadata["Name"]): each.version for each in distributions() if each.metadata["Name"]}
    return {name: found[name] for name in sorted(found) if name.lower().startswith(_BESIDE)}
