"""Under an interpreter with vLLM: runs the loader in children that find vLLM imported.

    PYTHON vllm_server.py LOADER FD    the loader's folder, a listening socket; ends when its stdin does

Importing vLLM takes ten times as long as one draft. A question comes from `engine_python.py`: arguments, folder,
environment and the two streams of the process that `installed.py` started. It is answered by `python -m` of the package
that it names, in a fork of a process that imported vLLM for this capability and device and was asked nothing before.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import select
import socket
import sys
import tempfile
import traceback
from collections.abc import Iterable
from pathlib import Path

LIMIT = 1 << 20  # bytes of a question
# What the loader and the classes that it builds would import: the draft classes bring their targets' modules along.
MODULES = (
    "vllm.config.speculative",
    "vllm.model_executor.model_loader.default_loader",
    "vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors",
    "vllm.model_executor.layers.quantization.modelopt",
    "vllm.model_executor.layers.quantization.fp8",
    "vllm.model_executor.layers.quantization.quark.quark",
    "vllm.models.deepseek_v32.nvidia.mtp",
    "vllm.models.glm5next.common.mtp",
    "vllm.model_executor.models.deepseek_v2",
    "vllm.model_executor.models.deepseek_mtp",
    "vllm.model_executor.models.glm4_moe",
    "vllm.model_executor.models.glm4_moe_mtp",
    "vllm.model_executor.models.glm4_moe_lite",
    "vllm.model_executor.models.glm4_moe_lite_mtp",
)


def serve(loader: str, listening: str) -> None:
    """Take questions, and hand each to the process that has the platform it asks for."""
    import torch
    import transformers  # noqa: F401  neither knows of the platform

    torch.set_num_threads(1)  # a process of several threads must not fork
    prepared: dict[tuple[int, bool], socket.socket] = {}
    with socket.socket(fileno=int(listening)) as listener:
        while listener in select.select([listener, sys.stdin], [], [])[0]:
            asking, _ = listener.accept()
            text, streams, *_ = socket.recv_fds(asking, LIMIT, 2)
            wanted = json.loads(Path(json.loads(text)["arguments"][0]).read_text())
            platform = wanted["capability"], wanted["meta"]
            if platform not in prepared:
                prepared[platform] = _forked(loader, *platform, prepared.values())
            socket.send_fds(prepared[platform], [text], [asking.fileno(), *streams])
            for file in (asking.detach(), *streams):
                os.close(file)
    for process in prepared.values():
        process.close()
        os.wait()


def _forked(loader: str, capability: int, meta: bool, others: Iterable[socket.socket]) -> socket.socket:
    """The way to a new process that answers for one platform; it lets go of the ways to others, which then can end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork():
        theirs.close()
        return ours
    for end in (ours, *others):
        end.close()
    try:
        _import_vllm(loader, capability, meta)
        while (received := socket.recv_fds(theirs, LIMIT, 3))[0]:
            text, (asking, *streams), *_ = received
            child = os.fork() or _answer(json.loads(text), streams)
            os.write(asking, str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())
            for file in (asking, *streams):
                os.close(file)
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os._exit(0)


def _import_vllm(loader: str, capability: int, meta: bool) -> None:
    """As the loader does it. Its package has a name of its own here: the child imports the one that was asked for."""
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "imported_before").symlink_to(loader, target_is_directory=True)
        sys.path.insert(0, home)
        importlib.import_module("imported_before.stand_in").prepare(capability, "meta" if meta else "cpu")
        sys.path.remove(home)
    for name in MODULES:
        importlib.import_module(name)


def _answer(asked: dict, streams: list[int]) -> None:
    """`python -m module arguments`, in this process, which ends with it."""
    try:
        for number, stream in enumerate(streams, 1):
            os.dup2(stream, number)
        os.chdir(asked["folder"])
        os.environ.clear()
        os.environ.update(asked["environment"])
        sys.path[0:1] = [asked["folder"], *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        sys.argv = [asked["module"], *asked["arguments"]]
        runpy.run_module(asked["module"], run_name="__main__", alter_sys=True)
    except BaseException:  # noqa: BLE001  as an interpreter does with all of them
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(1)


if __name__ == "__main__":
    serve(*sys.argv[1:])
