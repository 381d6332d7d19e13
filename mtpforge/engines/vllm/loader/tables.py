"""`python -m loader.tables REQUEST REPORT`: what vLLM's own tables take at a compute capability.

    methods    quant_method -> least capability: every name of QUANTIZATION_METHODS, get_min_capability of its config
    schemes    how compressed-tensors stores a module -> least capability: get_min_capability of each scheme
    kernels    kind of linear -> kernels in vLLM's order of preference that say they run at this capability; of
               integers, and of routed experts, the one that vLLM chooses for GLM-5.2's widths

The first two are numbers that vLLM holds. A kernel may ask compiled operators and libraries beside the capability; the
stand-in answers for the operators, and a kernel whose library is not there says no.
Source: vLLM 0.33.0, model_executor/layers/quantization and model_executor/kernels/linear.
"""

from __future__ import annotations

import sys
from typing import Any

from mtpforge.engines.loading.answering import answer, leave
from mtpforge.engines.loading.device import Device, packages
from mtpforge.engines.loading.verdict import Findings

from . import experts, stand_in

_LISTS = "_POSSIBLE"
_INTEGERS = "_POSSIBLE_KERNELS"
# Of vllm/scalar_type.py, group size, zero points: as `compressed_tensors_wNa16.py` asks for them.
_ASKED = {
    "int4, groups of 32, zero points": ("uint4", 32, True),
    "int4, groups of 128": ("uint4b8", 128, False),
    "int8, groups of 128": ("uint8b128", 128, False),
}


def _prepare(device: Device) -> None:
    stand_in.prepare(device.capability, "meta")


def _fill(device: Device, findings: Findings) -> None:
    from vllm.model_executor.kernels import linear
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS, get_quantization_config
    from vllm.model_executor.layers.quantization.compressed_tensors import schemes
    from vllm.platforms import PlatformEnum

    methods, missing = {}, {}
    for name in sorted(QUANTIZATION_METHODS):
        try:
            methods[name] = int(get_quantization_config(name).get_min_capability())
        except Exception as error:  # noqa: BLE001  a method may need a package that is not there
            missing[name] = f"{type(error).__name__}: {error}"
    found = ((name, getattr(schemes, name)) for name in schemes.__all__)
    kernels = {
        name.removeprefix(_LISTS).removesuffix("_KERNELS").strip("_").lower(): [
            kernel.__name__ for kernel in lists.get(PlatformEnum.CUDA, []) if _runs(kernel, device.capability)
        ]
        for name, lists in sorted(vars(linear).items())
        if name.startswith(_LISTS) and name != _INTEGERS
    }
    kernels |= {kind: _chosen(linear, *asked, device.capability) for kind, asked in _ASKED.items()}
    try:
        kernels |= experts.kernels()
    except Exception as error:  # noqa: BLE001  another version's functions may be called otherwise
        missing["experts"] = f"{type(error).__name__}: {error}"
    findings.facts |= {
        "packages": packages(),
        "methods": methods,
        "missing": missing,
        "schemes": {name: int(each.get_min_capability()) for name, each in found if _has_least(each)},
        "kernels": kernels,
    }


def _has_least(scheme: Any) -> bool:  # noqa: ANN401  a class of vLLM's
    try:
        scheme.get_min_capability()
    except (AttributeError, NotImplementedError, TypeError):
        return False
    return True


def _runs(kernel: Any, capability: int) -> bool:  # noqa: ANN401  a class of vLLM's
    try:
        return bool(kernel.is_supported(capability)[0])
    except (AttributeError, ImportError, OSError, RuntimeError):  # asks a driver or a library that is not there
        return False


def _chosen(linear: Any, kind: str, group_size: int, zero_points: bool, capability: int) -> list[str]:  # noqa: ANN401
    """The kernel that vLLM chooses for down_proj of an expert, [6144, 2048]; none where it has none."""
    import torch
    from vllm.scalar_type import scalar_types

    shape, of = (2048, 6144), getattr(scalar_types, kind)
    config = linear.MPLinearLayerConfig(shape, shape, of, torch.bfloat16, group_size, zero_points)
    try:
        return [linear.choose_mp_linear_kernel(config, capability).__name__]
    except ValueError:
        return []


if __name__ == "__main__":
    leave(answer("vllm", Device, _prepare, _fill, sys.argv[1:]))
