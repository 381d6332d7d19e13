"""The driver of our own prompts: streamed replies, a fixed number of requests at a time.

A thread a request keeps one prompt under way: as many are served at each moment as asked for, until the slice runs out.
Requests carry a seed, so that a reply can be had again.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mtpforge.benching.asked import Endpoint
from mtpforge.errors import shown

if TYPE_CHECKING:
    import requests

    from mtpforge.benching.corpus import Prompt
    from mtpforge.benching.server import Server
    from mtpforge.engines.counters import Counters

_DATA: Final = b"data:"
_DONE: Final = b"[DONE]"
PATHS: Final[dict[Endpoint, str]] = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
_PAUSE: Final = 0.2  # seconds between two looks at what is done


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply. seconds: from the request to its last token; first: to its first; histogram: see Counters."""

    tokens: int
    seconds: float
    first: float
    histogram: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Load:
    """How prompts are sent. model, root: its name at the server, and the checkpoint behind it; generate: of a reply."""

    model: str
    root: str
    endpoint: Endpoint
    generate: int
    temperature: float
    counters: Counters


def send(
    server: Server, load: Load, prompts: Sequence[Prompt], concurrency: int, on_reply: Callable[[], None]
) -> list[Reply]:
    """The replies in the order of their prompts. The first request that fails ends the others, as Ctrl-C does."""
    leave = threading.Event()
    with ThreadPoolExecutor(concurrency, thread_name_prefix="bench") as pool:
        replies = [pool.submit(_reply, server, load, prompt, leave) for prompt in prompts]
        try:
            told, left = 0, True
            while left:
                done, left_over = wait(replies, _PAUSE, FIRST_EXCEPTION)
                for each in done:
                    each.result()
                for _ in range(len(done) - told):
                    on_reply()
                told, left = len(done), bool(left_over)
        except BaseException:
            leave.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [each.result() for each in replies]


def _reply(server: Server, load: Load, prompt: Prompt, leave: threading.Event) -> Reply:
    """One prompt's; what comes of it after `leave` is nobody's."""
    import requests

    began = time.perf_counter()
    first = last = 0.0
    tokens, histogram = 0, tuple[int, ...]()
    with server.stream(PATHS[load.endpoint], _body(load, prompt)) as answer:
        try:
            for event in _events(answer):
                if leave.is_set():
                    break
                if "error" in event:
                    raise server.refusal("broke a reply off", "its log says why", why=shown(event["error"]))
                if event.get("choices"):
                    last = time.perf_counter() - began
                    first = first or last
                histogram = load.counters.histogram(event) or histogram
                usage = event.get("usage")
                tokens = int(usage.get("completion_tokens") or 0) if isinstance(usage, Mapping) else tokens
        except (requests.RequestException, OSError, ValueError) as error:
            raise server.unreachable("broke a reply off", error) from error
    if not tokens:
        raise server.refusal(
            "does not say how many tokens a reply has",
            "it has to know `stream_options: {include_usage: true}`; a proxy in between may drop it",
        )
    return Reply(tokens, last, first, histogram)


def _body(load: Load, prompt: Prompt) -> dict[str, object]:
    asked: dict[str, object] = {
        "model": load.model,
        "max_tokens": load.generate,
        "temperature": load.temperature,
        "seed": prompt.seed,
        "stream": True,
        "stream_options": {"include_usage": True},
        **load.counters.body,
    }
    if load.endpoint == "chat":
        return {**asked, "messages": [{"role": "user", "content": prompt.text}]}
    return {**asked, "prompt": prompt.text}


def _events(answer: requests.Response) -> Iterator[Mapping[str, object]]:
    """The JSON of server-sent events; lines that are none are passed over."""
    for line in answer.iter_lines():
        text = line[len(_DATA) :].strip() if line.startswith(_DATA) else b""
        if text and text != _DONE:  # read on to the end, so that the connection can be used again
            found = json.loads(text)
            if isinstance(found, dict):
                yield found
