"""What vLLM's own argument parser says of commands: `PYTHON vllm_parser.py < [[MODEL, FLAG, ...], ...]`.

Prints a list: "" where a command is taken, else the parser's words; at the end "" where a made-up flag is refused.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile

from mtpforge.engines.vllm.loader import stand_in

stand_in.prepare(90, "cpu")

from vllm.engine.arg_utils import EngineArgs  # noqa: E402
from vllm.entrypoints.common.cli_args import make_arg_parser  # noqa: E402
from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: E402


def refusal(parser, words):
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed = parser.parse_args(words)
        parsed.model = tempfile.gettempdir()  # any folder: nothing is asked of the hub
        EngineArgs.from_cli_args(parsed)
    except SystemExit:  # the parser's way
        return said.getvalue() or "refused"
    return ""


def main():
    parser = make_arg_parser(FlexibleArgumentParser())
    answers = [refusal(parser, words) for words in json.loads(sys.stdin.read())]
    made_up = "" if refusal(parser, ["org/model", "--no-such-flag", "1"]) else "a made-up flag was taken"
    sys.stdout.write("\n" + json.dumps([*answers, made_up]) + "\n")


if __name__ == "__main__":
    main()
