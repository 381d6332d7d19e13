"""What SGLang says of commands: `PYTHON sglang_parser.py ANSWERS < [[TARGET_CONFIG, DRAFT_CONFIG, [FLAG, ...]], ...]`.

Writes a list: "" where a command is taken, else SGLang's words. `{target}` and `{draft}` among the flags become folders
with these configs. Beyond the parser, arguments are resolved and checked against both configs, as a server does.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import sys
import tempfile
from pathlib import Path

import torch
from sglang_answers import forked

from mtpforge.engines.sglang.loader import stand_in

HOPPER = 90
MODULES = ("sglang.srt.server_args", "sglang.srt.configs.model_config", "sglang.srt.models.registry")


def main(answers: str) -> None:
    torch.set_num_threads(1)  # a process of several threads must not fork
    stand_in.prepare(HOPPER)
    for name in MODULES:
        importlib.import_module(name)
    asked = json.load(sys.stdin)
    # Resolving fills tables of SGLang's modules, and holds for one command alone.
    Path(answers).write_text(json.dumps([forked(lambda question=question: refusal(*question)) for question in asked]))


def refusal(target, draft, flags):
    from sglang.srt.server_args import prepare_server_args

    said = io.StringIO()
    with tempfile.TemporaryDirectory() as home:
        folders = {"{target}": Path(home, "target"), "{draft}": Path(home, "draft")}
        for folder, config in zip(folders.values(), (target, draft), strict=True):
            folder.mkdir()
            (folder / "config.json").write_text(json.dumps(config))
        try:
            with contextlib.redirect_stderr(said):
                server = prepare_server_args([str(folders.get(flag, flag)) for flag in flags])
            server.resolve_once()
            server.check_server_args()
        except SystemExit:  # the parser's way
            return said.getvalue() or "refused"
        except Exception as error:  # noqa: BLE001  told by the test
            return f"{type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    main(sys.argv[1])
