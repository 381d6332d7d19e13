"""In the place of an engine's interpreter: hands `-m PACKAGE REQUEST REPORT` to `vllm_server.py`, runs all else itself.

The environment says where that listens and which interpreter is meant. Its streams and its exit code are the answer's.
"""

import json
import os
import socket
import sys

_, *words = sys.argv
if words[:1] != ["-m"]:
    engine = os.environ["MTPFORGE_TEST_ENGINE_ITSELF"]
    os.execv(engine, [engine, *words])
question = {"module": words[1], "arguments": words[2:], "folder": os.getcwd(), "environment": dict(os.environ)}  # noqa: PTH109  pathlib takes as long to import as all of this
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
    server.connect(os.environ["MTPFORGE_TEST_ENGINE_SOCKET"])
    socket.send_fds(server, [json.dumps(question).encode()], [1, 2])
    sys.exit(int(server.recv(100) or b"1"))
