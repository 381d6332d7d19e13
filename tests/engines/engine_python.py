"""In the place of an engine: `-m MODULE REQUEST REPORT` of a draft goes to `engine_server.py`, the rest to the engine.

    engine_python.py ENGINE SOCKET WORD...    the interpreter, where the server listens, the command line

Its streams and its exit code are the answer's.
"""

import json
import os
import socket
import sys

_, engine, listening, *words = sys.argv
if words[:1] != ["-m"] or words[1].endswith(".tables"):  # of tables no draft is asked: no request names its device
    os.execv(engine, [engine, *words])
# pathlib takes as long to import as all the rest
question = {"module": words[1], "arguments": words[2:], "folder": os.getcwd(), "environment": dict(os.environ)}  # noqa: PTH109
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
    server.connect(listening)
    socket.send_fds(server, [json.dumps(question).encode()], [1, 2])
    sys.exit(int(server.recv(100) or b"1"))
