"""What SGLang 0.5.23 finds where a GPU, its kernels and other processes would be.

SGLang decides from the device, partly at import, which parameters a layer has. No kernel runs and nothing is sent.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import logging
import os
import sys
import types
import warnings
from typing import Any, Self

# Packages that only kernels need. Each is used as it is where it is installed.
_KERNELS = {"sgl_kernel", "torchvision", "tvm_ffi", "deep_gemm", "flashinfer"}
_ANSWERS: dict[str, dict[str, object]] = {"deep_gemm": {"get_num_sms": lambda: 132}}
_MEMORY = 141 << 30


def prepare(capability: int) -> None:
    """Make SGLang import as on a CUDA device of this capability (90: H100). ImportError where there is no torch."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore")
    _answer_as_cuda(*divmod(capability, 10))
    sys.meta_path.append(_Absent())


def watch_log() -> list[str]:
    """The list into which SGLang's warnings come, one line each."""
    lines: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    for name in ("", "sglang"):
        logging.getLogger(name).addHandler(Listener(logging.WARNING))
    return lines


def _answer_as_cuda(major: int, minor: int) -> None:
    import torch

    cuda: Any = torch.cuda
    torch.version.cuda = torch.version.cuda or "13.0"
    properties = types.SimpleNamespace(
        total_memory=_MEMORY,
        major=major,
        minor=minor,
        name=f"no device (as sm_{major}{minor})",
        multi_processor_count=132,
        shared_memory_per_block_optin=227 << 10,
        gcnArchName="",
        is_integrated=False,
    )
    answers: dict[str, object] = {
        "is_available": True,
        "device_count": 8,
        "current_device": 0,
        "get_device_capability": (major, minor),
        "get_device_name": properties.name,
        "get_device_properties": properties,
        "mem_get_info": (_MEMORY, _MEMORY),
        "max_memory_allocated": 0,
        "memory_allocated": 0,
        "memory_reserved": 0,
        "max_memory_reserved": 0,
    }
    nothing = ("set_device", "empty_cache", "synchronize", "ipc_collect", "reset_peak_memory_stats")
    for name, answer in (answers | dict.fromkeys(nothing)).items():
        setattr(cuda, name, lambda *_, answer=answer, **__: answer)
    cuda.Stream = cuda.Event = _Inert
    cuda.current_stream = cuda.default_stream = lambda *_: _Inert()


class _Inert:
    """A CUDA stream or event that does nothing."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __getattr__(self, key: str) -> object:
        return lambda *_, **__: None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class _Shell:
    """A name of an absent package: may be imported, passed on, subclassed and used as a decorator."""

    def __init__(self, name: str) -> None:
        self.__dict__["_name"] = name

    def __call__(self, *args: object, **kwargs: object) -> object:
        if len(args) == 1 and not kwargs and isinstance(args[0], types.FunctionType | type):
            return args[0]
        return _Shell(f"{self._name}()")

    def __getattr__(self, key: str) -> _Shell:
        if key.startswith("__") and key.endswith("__"):
            raise AttributeError(key)
        found = self.__dict__[key] = _Shell(
            f"{self._name}.{key}"
        )  # one object each time: kinds of integers are compared
        return found

    def __mro_entries__(self, _bases: object) -> tuple[type, ...]:
        return (object,)

    def __iter__(self) -> Any:  # noqa: ANN401
        return iter(())

    def __getitem__(self, _key: object) -> _Shell:
        return self

    def __or__(self, _other: object) -> _Shell:
        return self

    __ror__ = __or__


class _Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Asked last, so only where they are not installed: the packages with kernels, as modules of shells."""

    def find_spec(self, fullname: str, *_: object, **__: object) -> importlib.machinery.ModuleSpec | None:
        is_meant = fullname.partition(".")[0] in _KERNELS
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True) if is_meant else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        def look_up(key: str) -> object:
            if key.startswith("__") and key.endswith("__"):
                raise AttributeError(key)
            found = module.__dict__[key] = _Shell(f"{spec.name}.{key}")
            return found

        module = types.ModuleType(spec.name)
        module.__dict__.update(
            {"__path__": [], "__version__": "99.0", "__getattr__": look_up, **_ANSWERS.get(spec.name, {})}
        )
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def put_rope_tables_on(device: str) -> None:
    """Where YaRN's tables are made: SGLang asks for the device by itself."""
    from sglang.srt.layers.rotary_embedding import rope_variant

    rope_variant.get_device = lambda *_, **__: device


def leave_groups() -> None:
    """End the process groups of an earlier rank, and forget which that was: before the next one is published."""
    import torch.distributed as dist
    from sglang.srt.distributed import parallel_state

    if dist.is_initialized():
        parallel_state.destroy_model_parallel()
        parallel_state.destroy_distributed_environment()
    else:
        _fake_groups(parallel_state)


def set_groups(world: int, rank: int) -> None:
    """Process groups of torch's fake backend, as one of so many ranks."""
    import torch.distributed as dist
    from sglang.srt import runtime_context as rc
    from sglang.srt.distributed import parallel_state
    from sglang.srt.layers.dp_attention import initialize_dp_attention
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group(backend="fake", store=FakeStore(), rank=rank, world_size=world)
    parallel_state.init_distributed_environment(
        backend="fake", world_size=world, rank=rank, local_rank=0, distributed_init_method="tcp://127.0.0.1:1"
    )
    parallel_state.initialize_model_parallel(backend="fake")
    with contextlib.suppress(TypeError):
        initialize_dp_attention(server_args=rc.get_server_args())


def _fake_groups(parallel_state: Any) -> None:  # noqa: ANN401  SGLang's module
    """Every group that SGLang makes is of the fake backend, on the CPU, without communicators of its own."""
    import torch
    import torch.distributed as dist

    new_group, construct = dist.new_group, parallel_state.GroupCoordinator.__init__

    def fake_group(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        kwargs.pop("pg_options", None)
        return new_group(*args, **(kwargs | {"backend": "fake"}))

    def plain(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        construct(self, *args, **(kwargs | {name: False for name in kwargs if name.startswith("use_")}))

    dist.new_group = fake_group
    parallel_state.GroupCoordinator.__init__ = plain
    parallel_state._group_coordinator_device = lambda _: torch.device("cpu")  # noqa: SLF001
