"""Under an engine's interpreter: runs loaders in children that find the engine imported.

    PYTHON engine_server.py FD    a listening socket; ends when its stdin does

Importing an engine takes ten times as long as one draft. A question comes from `engine_python.py`: module, arguments,
folder, environment and the two streams of the process that `installed.py` started. It is answered by `python -m` of
that module, in a fork of a process that imported the engine for this device and was asked nothing before.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import select
import socket
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

LIMIT = 1 << 20  # bytes of a question
# What a loader and the classes that it builds would import; draft classes bring their targets' modules along.
MODULES = {
    "vllm": (
        "vllm.config.speculative",
        "vllm.model_executor.model_loader.default_loader",
        "vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors",
        "vllm.model_executor.layers.quantization.modelopt",
        "vllm.model_executor.layers.quantization.fp8",
        "vllm.model_executor.layers.quantization.quark.quark",
        "vllm.models.deepseek_v32.nvidia.mtp",
        "vllm.models.glm5next.common.mtp",
        "vllm.model_executor.models.deepseek_mtp",
        "vllm.model_executor.models.glm4_moe_mtp",
        "vllm.model_executor.models.glm4_moe_lite_mtp",
    ),
}


def serve(listening: str) -> None:
    """Take questions, and hand each to the process that is on the device it asks for."""
    import torch
    import transformers  # noqa: F401  neither asks for a device

    torch.set_num_threads(1)  # a process of several threads must not fork
    prepared: dict[tuple[str, int, bool], socket.socket] = {}
    with socket.socket(fileno=int(listening)) as listener:
        while listener in select.select([listener, sys.stdin], [], [])[0]:
            asking, _ = listener.accept()
            text, streams, *_ = socket.recv_fds(asking, LIMIT, 2)
            question = json.loads(text)
            request = json.loads(Path(question["arguments"][0]).read_text())
            device = question["module"], request["capability"], request["meta"]
            if device not in prepared:
                prepared[device] = _forked(question, request, prepared.values())
            socket.send_fds(prepared[device], [text], [asking.fileno(), *streams])
            for file in (asking.detach(), *streams):
                os.close(file)
    for process in prepared.values():
        process.close()
        os.wait()


def _forked(question: dict, request: dict, others: Iterable[socket.socket]) -> socket.socket:
    """The way to a new process that answers for one device; it lets go of the ways to others, which then can end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork():
        theirs.close()
        return ours
    for end in (ours, *others):
        end.close()
    try:
        _import_engine(question, request)
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


def _import_engine(question: dict, request: dict) -> None:
    """As the question's own loader does it, of which nothing stays: the child imports it again."""
    sys.path[:0] = paths = question["environment"]["PYTHONPATH"].split(os.pathsep)
    loader = importlib.import_module(f"{question['module']}.__main__")
    loader._prepare(loader.Request(**request))
    for name in MODULES[question["module"].split(".")[-2]]:
        importlib.import_module(name)
    for name in [name for name in sys.modules if name.partition(".")[0] == "mtpforge"]:
        del sys.modules[name]
    del sys.path[: len(paths)]


def _answer(question: dict, streams: list[int]) -> None:
    """`python -m module arguments`, in this process, which ends with it."""
    try:
        for number, stream in enumerate(streams, 1):
            os.dup2(stream, number)
        os.chdir(question["folder"])
        os.environ.clear()
        os.environ.update(question["environment"])
        sys.path[0:1] = [question["folder"], *os.environ["PYTHONPATH"].split(os.pathsep)]
        sys.argv = [question["module"], *question["arguments"]]
        runpy.run_module(question["module"], run_name="__main__", alter_sys=True)
    except BaseException:  # noqa: BLE001  as an interpreter does with all of them
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(1)


if __name__ == "__main__":
    serve(*sys.argv[1:])
