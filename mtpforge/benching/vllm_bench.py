"""The driver of SPEED-Bench and Spec-Bench: `vllm bench serve` as a child process, one run a slice.

vLLM reads the dataset, sends the load and writes each request's times (`--save-detailed`); what is judged, and the
counters around it, stay ours. Each slice has a seed of its own, by which vLLM shuffles the dataset, and both servers
get the same one, so that replies pair up by their place. vLLM 0.33.0, benchmarks/serve.py, benchmarks/datasets.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mtpforge import errors
from mtpforge.benching.slices import Slice, Source
from mtpforge.benching.streaming import PATHS, Reply
from mtpforge.errors import MtpforgeError, shown

if TYPE_CHECKING:
    from mtpforge.benching.asked import Asked
    from mtpforge.benching.server import Server
    from mtpforge.benching.streaming import Load

_BACKENDS: Final = {"chat": "openai-chat", "completions": "openai"}
_WARMING: Final = 10_007  # a seed that no measured slice has
_TOLD: Final = 300  # characters of what vLLM said last
# names of the options, and where the dataset lies in its path
_OPTIONS: Final = {"speed_bench": ("speed-bench", "qualitative.jsonl"), "spec_bench": ("spec-bench", "")}
_WHERE: Final = {
    "speed_bench": "`hf download nvidia/SPEED-Bench --repo-type dataset` and vLLM's docs say how to prepare it",
    "spec_bench": "question.jsonl of github.com/hemingkx/Spec-Bench, `data/spec_bench/`",
}


def opened(name: str, asked: Asked) -> Source:
    """Its classes, read from the file. MtpforgeError without a path, or where vLLM is not installed."""
    if not asked.dataset_path:
        raise MtpforgeError(
            f"`{name}` lies in files of its own",
            where="option `--dataset`",
            fix=f"`--dataset {name}=PATH`: {_WHERE[name]}",
            code=errors.USAGE,
        )
    program = shutil.which("vllm")
    if program is None:
        raise MtpforgeError(
            f"`{name}` is read and sent by `vllm bench serve`, and `vllm` is not on PATH",
            fix="`pip install 'vllm[bench]'` in an environment that is on PATH; or leave `--dataset` out:"
            " the texts that come with mtpforge need nothing",
            code=errors.MACHINE,
        )
    path = Path(asked.dataset_path)
    return Source(_categories(path / _OPTIONS[name][1]), partial(_send, program, name, path))


def _categories(file: Path) -> tuple[str, ...]:
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        found = tuple(dict.fromkeys(str(row["category"]) for row in rows))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MtpforgeError(
            "the dataset cannot be read",
            where=shown(file),
            why=shown(error),
            fix="a line is one JSON object with `category`",
        ) from error
    if not found:
        raise MtpforgeError("the dataset is empty", where=shown(file), fix="fetch it again")
    return found


def words(program: str, name: str, path: Path, server: Server, load: Load, some: Slice, out: Path) -> list[str]:
    """The command of a slice."""
    option = _OPTIONS[name][0]
    return [
        *(program, "bench", "serve", "--backend", _BACKENDS[load.endpoint], "--base-url", server.root),
        *("--endpoint", PATHS[load.endpoint], "--model", load.root or load.model, "--served-model-name", load.model),
        *("--dataset-name", name, "--dataset-path", str(path), f"--{option}-category", some.content),
        *(f"--{option}-output-len", str(load.generate), "--num-prompts", str(some.last - some.first)),
        *("--max-concurrency", str(some.concurrency), "--temperature", f"{load.temperature:g}"),
        *("--seed", str(_WARMING if some.is_warming else some.number), "--disable-tqdm"),
        *("--save-result", "--save-detailed", "--result-dir", str(out.parent), "--result-filename", out.name),
    ]


def _send(
    program: str, name: str, path: Path, server: Server, load: Load, some: Slice, on_reply: Callable[[], None]
) -> list[Reply]:
    with tempfile.TemporaryDirectory(prefix="mtpforge-bench-") as folder:
        out = Path(folder) / "result.json"
        argv = words(program, name, path, server, load, some, out)
        ran = subprocess.run(argv, capture_output=True, text=True, check=False, errors="replace")
        if ran.returncode or not out.exists():
            last = (ran.stderr or ran.stdout).strip().rsplit("\n", 1)[-1]
            raise MtpforgeError(
                "`vllm bench serve` failed",
                why=shown(last[-_TOLD:]),
                fix="the texts that come with mtpforge need no vLLM: leave `--dataset` out",
                code=errors.MACHINE,
            )
        found = replies(json.loads(out.read_text(encoding="utf-8")))
    for _ in found:
        on_reply()
    return found


def replies(result: Mapping[str, object]) -> list[Reply]:
    """Of the document that `--save-detailed` writes. MtpforgeError for a request that failed."""
    columns = [result.get(key) for key in ("output_lens", "ttfts", "itls", "errors")]
    if not all(isinstance(column, list) for column in columns):
        raise MtpforgeError("`vllm bench serve` wrote no single requests", fix="vLLM 0.33 does", code=errors.MACHINE)
    rows = list(zip(*columns, strict=False))
    failed = str(next((error for *_, error in rows if error), "")).strip()
    if failed or not rows:
        raise MtpforgeError(
            "a request of `vllm bench serve` failed" if failed else "`vllm bench serve` sent no request",
            why=shown(failed.rsplit("\n", 1)[-1].strip()),  # of a traceback its last line
            fix="the server's log says why",
            code=errors.REMOTE,
        )
    return [Reply(int(tokens), first + sum(gaps), first) for tokens, first, gaps, _ in rows]
