"""What vLLM finds where a GPU and other processes would be.

Loading weights asks the platform for its capability and process groups for sizes and ranks; no kernel runs and nothing
is sent. Everything here is patched into vLLM 0.33.0 before its models are imported.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType

    import torch

# Compiled extension modules that need libcuda; importing them registers operators that loading never calls.
_COMPILED = {
    "vllm._C",
    "vllm._C_stable_libtorch",
    "vllm._moe_C",
    "vllm._moe_C_stable_libtorch",
    "vllm.cumem_allocator",
    "vllm.vllm_flash_attn._vllm_fa2_C",
    "vllm.vllm_flash_attn._vllm_fa3_C",
}
_PICTURES = "torchvision"
# Capability questions that a compiled operator answers on a GPU, and from which capability on the answer is yes.
_SUPPORTED_FROM = {
    "cutlass_scaled_mm_supports_fp8": 89,
    "cutlass_scaled_mm_supports_block_fp8": 90,
    "cutlass_scaled_mm_supports_fp4": 100,
    "cutlass_group_gemm_supported": 90,
    "mxfp4_experts_quant_supported": 100,
}
_GROUPS_OF_ALL = ("_WORLD", "_TP", "_EP", "_ETP", "_EPLB", "_INNER_DP_WORLD")
_GROUPS_OF_ONE = ("_PP", "_DP", "_DCP", "_PCP")


def prepare(capability: int, device: str) -> None:
    """Make vLLM import as on a CUDA device of this capability (90: H100). ImportError where vLLM is not installed."""
    _quiet()
    sys.meta_path.insert(0, _EmptyExtensions())
    import torch

    major_minor = capability // 10, capability % 10
    torch.version.cuda = torch.version.cuda or "13.0"
    torch.cuda.get_device_capability = lambda device=None: major_minor  # noqa: ARG005
    import vllm.platforms

    vllm.platforms._current_platform = _platform(major_minor, device)  # noqa: SLF001
    import vllm._custom_ops as operators
    from vllm.model_executor.models import registry
    from vllm.utils import import_utils

    for name, floor in _SUPPORTED_FROM.items():
        if hasattr(operators, name):
            setattr(operators, name, lambda asked, floor=floor: asked >= floor)
    # The wheel brings deep_gemm, whose library does not open without CUDA; the indexer's constructor asks for it.
    import_utils.has_deep_gemm = lambda *_, **__: True
    registry._run_in_subprocess = lambda ask: ask()  # noqa: SLF001  a child would not know this platform
    _stand_in_for_operators()
    sys.meta_path.append(_Absent())  # transformers has asked by now what is installed


def set_groups(tensor_parallel: int, rank: int) -> None:
    """Put groups of these sizes where vLLM keeps its process groups."""
    import vllm.distributed.parallel_state as state

    for name in (*_GROUPS_OF_ALL, *_GROUPS_OF_ONE):
        if name in _GROUPS_OF_ONE or hasattr(state, name):
            size_and_rank = (tensor_parallel, rank) if name in _GROUPS_OF_ALL else (1, 0)
            setattr(state, name, _Group(*size_and_rank))


def _quiet() -> None:
    """No log lines, no network."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ["VLLM_DISABLE_SHARED_EXPERTS_STREAM"] = "1"
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)


class _EmptyExtensions(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """An empty module for every compiled extension."""

    def find_spec(self, fullname: str, *_: object, **__: object) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(fullname, self) if fullname in _COMPILED else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:  # noqa: ARG002
        return None

    def exec_module(self, module: ModuleType) -> None:
        pass


class _Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Asked last, so only where it is not installed: the package with which models that see prepare pictures.

    Their modules import names of it, which loading never looks into.
    """

    def find_spec(self, fullname: str, *_: object, **__: object) -> importlib.machinery.ModuleSpec | None:
        is_meant = fullname.partition(".")[0] == _PICTURES
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True) if is_meant else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:  # noqa: ARG002
        return None

    def exec_module(self, module: ModuleType) -> None:
        def look_up(name: str) -> object:
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {})

        module.__getattr__ = look_up  # type: ignore[method-assign]


def _platform(major_minor: tuple[int, int], device: str) -> Any:  # noqa: ANN401  vLLM's class, untyped here
    """A vLLM CUDA platform of this capability that asks no driver."""
    from vllm.platforms.cuda import NonNvmlCudaPlatform
    from vllm.platforms.interface import DeviceCapability

    def always(answer: object) -> object:
        return classmethod(lambda cls, *_, **__: answer)  # noqa: ARG005

    def attention(cls: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        # Which attention kernel would serve is not asked here and holds no weights; newer devices' choices need
        # libraries that are absent. The class that Hopper gets for a plain cache stands in.
        args = tuple(_plain_cache(value) for value in args)
        kwargs = {name: _plain_cache(value) for name, value in kwargs.items()}
        keep, cls.get_device_capability = cls.get_device_capability, always(DeviceCapability(9, 0))
        try:
            return NonNvmlCudaPlatform.get_attn_backend_cls.__func__(cls, *args, **kwargs)
        finally:
            cls.get_device_capability = keep

    answers = {
        "get_device_capability": DeviceCapability(*major_minor),
        "get_device_name": f"no device (as sm_{major_minor[0]}{major_minor[1]})",
        "get_device_total_memory": 141 << 30,
        "device_count": 1,
        "num_compute_units": 132,
        "import_kernels": None,
        "is_pin_memory_available": False,
        "use_custom_allreduce": False,
    }
    members: dict[str, object] = {name: always(answer) for name, answer in answers.items()}
    members |= {"device_type": device, "dist_backend": "fake", "get_attn_backend_cls": classmethod(attention)}
    return type("StandInPlatform", (NonNvmlCudaPlatform,), members)()


def _plain_cache(value: Any) -> Any:  # noqa: ANN401  vLLM's selector record, or anything else
    return value._replace(kv_cache_dtype="auto") if hasattr(value, "kv_cache_dtype") else value


def _stand_in_for_operators() -> None:
    """Layers look their compiled operators up when constructed; loading calls none of them."""
    import torch._ops as operators

    known: Callable[[Any, str], Any] = operators._OpNamespace.__getattr__  # noqa: SLF001

    def look_up(self: Any, name: str) -> Any:  # noqa: ANN401
        try:
            return known(self, name)
        except AttributeError:
            if name.startswith("__") or self.name not in ("_C", "_moe_C", "_C_cache_ops"):
                raise

            def missing(*_: object, **__: object) -> None:
                raise RuntimeError(f"compiled operator {self.name}::{name} was called; there is no GPU here")

            missing.default = missing.out = missing  # type: ignore[attr-defined]
            return missing

    operators._OpNamespace.__getattr__ = look_up  # type: ignore[method-assign]  # noqa: SLF001


class _Side:
    """The device or CPU side of a group."""

    def __init__(self, size: int, rank: int) -> None:
        self._size, self._rank = size, rank

    def size(self) -> int:
        return self._size

    def rank(self) -> int:
        return self._rank


class _Group:
    """What weight loading asks of a process group: sizes and ranks."""

    def __init__(self, size: int, rank: int) -> None:
        import torch

        self.world_size = size
        self.rank = self.rank_in_group = self.local_rank = rank
        self.ranks = list(range(size))
        self.device_group = self.cpu_group = _Side(size, rank)
        self.is_first_rank, self.is_last_rank = rank == 0, rank == size - 1
        self.first_rank, self.last_rank = 0, size - 1
        self.device: torch.device = torch.device("cpu")
        self.device_communicator, self.use_device_communicator = None, False
        self.unique_name = "check"
