"""The driver of SPEED-Bench and Spec-Bench: `vllm bench serve` as a child process, one run a slice.

vLLM reads the dataset, sends the load and writes each request's times (`--save-detailed`); what is judged, and the
counters around it, stay ours. Each slice has a seed of its own, by which vLLM shuffles the dataset, and both servers
get the same one, so that replies pair up by their place. vLLM 0.33.0, benchmarks/serve.py, benchmarks/datasets.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mtpforge import errors
from mtpforge.benching import answers
from mtpforge.benching.slices import Slice, Source
from mtpforge.benching.streaming import PATHS, Reply, longest
from mtpforge.errors import MtpforgeError, shown

if TYPE_CHECKING:
    from mtpforge.benching.asked import Asked
    from mtpforge.benching.server import Server
    from mtpforge.benching.streaming import Load

_BACKENDS: Final = {"chat": "openai-chat", "completions": "openai"}
_WARMING: Final = 10_007  # a seed that no measured slice has
_STARTS: Final = 600.0  # seconds in which it has to be imported, to load a tokenizer and to read the dataset
_READ: Final = 4096  # bytes of what it said that are looked at
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
        turns = -(-(some.last - some.first) // some.concurrency)
        _run(
            words(program, name, path, server, load, some, out), Path(folder), _STARTS + turns * longest(load.generate)
        )
        try:
            text = out.read_bytes()
        except OSError as error:
            raise _failed("it wrote no result") from error
        found = replies(answers.document(text) or {})
    for _ in found:
        on_reply()
    return found


def _run(argv: list[str], folder: Path, seconds: float) -> None:
    """Run it to its end. It has a session of its own: whatever it started ends with it, also where we are stopped."""
    said = folder / "said"
    with said.open("wb") as file:
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True)
    try:
        code = child.wait(seconds)
    except subprocess.TimeoutExpired:
        raise _failed(f"it did not end within {seconds:,.0f} seconds") from None
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    if code:
        raise _failed(_last_line(said))


def _last_line(said: Path) -> str:
    with said.open("rb") as file:
        file.seek(max(0, said.stat().st_size - _READ))
        words = file.read().decode("utf-8", "replace")
    return shown(words.strip().rsplit("\n", 1)[-1][-_TOLD:])


def _failed(why: str) -> MtpforgeError:
    fix = "the texts that come with mtpforge need no vLLM: leave `--dataset` out"
    return MtpforgeError("`vllm bench serve` failed", why=why, fix=fix, code=errors.MACHINE)


def _reply(tokens: int, first: float, gaps: Sequence[float], began: float) -> Reply:
    later = tuple(accumulate(gaps, initial=first))[1:]
    return Reply(tokens, later[-1] if later else first, first, began=began, later=later)


def replies(result: Mapping[str, object]) -> list[Reply]:
    """Of the document that `--save-detailed` writes. MtpforgeError for a request that failed."""
    columns = [result.get(key) for key in ("output_lens", "ttfts", "itls", "start_times", "errors")]
    is_one = all(isinstance(column, list) for column in columns)
    if not is_one or len({len(column) for column in columns if isinstance(column, list)}) > 1:
        raise MtpforgeError("`vllm bench serve` wrote no single requests", fix="vLLM 0.33 does", code=errors.MACHINE)
    rows = list(zip(*columns, strict=True))
    failed = str(next((error for *_, error in rows if error), "")).strip()
    if failed or not rows:
        raise MtpforgeError(
            "a request of `vllm bench serve` failed" if failed else "`vllm bench serve` sent no request",
            why=shown(failed.rsplit("\n", 1)[-1].strip()),  # of a traceback its last line
            fix="the server's log says why",
            code=errors.REMOTE,
        )
    try:
        found = [_reply(int(tokens), float(first), gaps, float(began)) for tokens, first, gaps, began, _ in rows]
    except (TypeError, ValueError, OverflowError) as error:
        raise _failed(f"times or lengths that are no numbers: {shown(error)}") from error
    if empty := sum(not (reply.tokens > 0 and reply.seconds >= reply.first > 0) for reply in found):
        raise MtpforgeError(
            f"{empty} of {len(found)} requests of `vllm bench serve` brought no token",
            fix="the server's log says why",
            code=errors.REMOTE,
        )
    return found
