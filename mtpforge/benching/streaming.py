"""The driver of our own prompts: streamed replies, a fixed number of requests at a time.

A thread a request keeps one prompt under way: as many are served at each moment as asked for, until the slice runs out.
Requests carry a seed, so that a reply can be had again. A reply that stalls, or does not end, ends the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

from mtpforge.benching import answers, apart
from mtpforge.benching import server as servers
from mtpforge.benching.asked import Endpoint
from mtpforge.errors import shown

if TYPE_CHECKING:
    import requests

    from mtpforge.benching.corpus import Prompt
    from mtpforge.benching.server import Server
    from mtpforge.engines.counters import Counters

PATHS: Final[dict[Endpoint, str]] = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
TOKEN: Final = 5.0  # seconds that a token of a reply may take, beside the silence that is borne before the first one
_LOG: Final = "its log says why"
_ENDED: Final = (
    "its log ends with the reason, or without one where the system killed it, which `dmesg` tells; once it is up again,"
    " type the same command: it measures from the start, nothing of this run is kept"
)
_OVER: Final = 64  # tokens beyond those asked for that an engine may give by rounds it had begun


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply. seconds: from the request to its last token; first: to its first; histogram: see Counters.

    began: when it was asked for, by any clock that all replies of a slice share. later: seconds from the request to
    each event after the first one; () where that is not known.
    """

    tokens: int
    seconds: float
    first: float
    histogram: tuple[int, ...] = ()
    began: float = 0.0
    later: tuple[float, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Load:
    """How prompts are sent. model, root: its name at the server, and the checkpoint behind it; generate: of a reply."""

    model: str
    root: str
    endpoint: Endpoint
    generate: int
    temperature: float
    counters: Counters


def longest(generate: int) -> float:
    """Seconds after which a reply of so many tokens is given up."""
    return servers.SILENCE + generate * TOKEN


@dataclass(slots=True)
class _UnderWay:
    """A reply that is being read. began, token: moments of its request and of its last token; answer: to be cut off."""

    began: float = 0.0
    token: float = 0.0
    answer: requests.Response | None = field(default=None, repr=False)
    is_left: bool = False

    def leave(self) -> None:
        """End its reading, wherever it stands."""
        self.is_left = True
        if self.answer is not None:
            # read to its end meanwhile; or an older urllib3: then its thread waits for the next byte, and nobody for it
            with suppress(AttributeError, ValueError, RuntimeError, OSError):
                self.answer.raw.shutdown()


def send(
    server: Server, load: Load, prompts: Sequence[Prompt], concurrency: int, on_reply: Callable[[], None]
) -> list[Reply]:
    """The replies in the order of their prompts. The first request that fails ends the others, as Ctrl-C does."""
    under_way: list[_UnderWay] = [_UnderWay() for _ in prompts]
    calls = [partial(_reply, server, load, prompt, each) for prompt, each in zip(prompts, under_way, strict=True)]
    found: dict[int, Reply] = {}
    try:
        for place, reply in apart.results(calls, concurrency, partial(_refuse_late, server, load, under_way)):
            found[place] = reply
            on_reply()
    finally:
        for each in under_way:
            each.leave()
    return [found[place] for place in range(len(prompts))]


def _refuse_late(server: Server, load: Load, under_way: Sequence[_UnderWay]) -> None:
    """MtpforgeError where a reply brings nothing for too long, or does not end."""
    now, most = time.perf_counter(), longest(load.generate)
    open_ones = [each for each in under_way if each.began and not each.is_left]
    if any(now - max(each.began, each.token) > servers.SILENCE for each in open_ones):
        raise server.refusal(f"gave no token for {servers.SILENCE:g} seconds", "its log says what it waits for")
    if any(now - each.began > most for each in open_ones):
        raise server.refusal(
            f"needs more than {most:,.0f} seconds for a reply of {load.generate} tokens",
            "fewer tokens a reply: `--generate N`; fewer requests at a time: `--concurrency 1`",
        )


def _reply(server: Server, load: Load, prompt: Prompt, under_way: _UnderWay) -> Reply:
    """One prompt's; what comes of it once it is left is nobody's."""
    under_way.began = time.perf_counter()
    with server.stream(PATHS[load.endpoint], _body(load, prompt)) as under_way.answer:
        try:
            reply = _read(server, load, under_way)
        except answers.NoEventsError as error:
            raise server.refusal(
                "does not stream its replies as events",
                "a proxy in between may answer for it, or gather replies: name the server itself",
                why=str(error),
            ) from error
        except answers.broken() as error:
            if type(error) is ValueError:
                raise server.refusal("sent a reply that cannot be read", _LOG, why=str(error)) from error
            why = answers.reason(error)
            raise server.refusal("broke a reply off", _ENDED if answers.closed(why) else _LOG, why=why) from error
    under_way.is_left = True
    return reply


def _read(server: Server, load: Load, under_way: _UnderWay) -> Reply:
    """Of the begun answer. ValueError for what is none."""
    moments: list[float] = []
    tokens, histogram = 0, tuple[int, ...]()
    assert under_way.answer is not None  # noqa: S101 -- it has begun
    for event in answers.events(under_way.answer):
        if under_way.is_left:
            raise answers.HalfError("nobody reads on")
        if "error" in event:
            raise server.refusal("broke a reply off", _LOG, why=shown(event["error"]))
        if isinstance(event.get("choices"), list) and event["choices"]:
            under_way.token = time.perf_counter()
            moments.append(under_way.token - under_way.began)
            _refuse_endless(server, load, len(moments))
        histogram = load.counters.histogram(event) or histogram
        tokens = _counted(event.get("usage"), load.generate) or tokens
    if not tokens:
        raise server.refusal(
            "does not say how many tokens a reply has",
            "it has to know `stream_options: {include_usage: true}`; a proxy in between may drop it",
        )
    if not moments:
        raise ValueError(f"it counts {tokens} tokens and brings none")
    return Reply(tokens, moments[-1], moments[0], histogram, under_way.began, tuple(moments[1:]))


def _refuse_endless(server: Server, load: Load, n_events: int) -> None:
    """A token is an event at most; a few more hold none: the role, the reason for its end."""
    if n_events > 2 * load.generate + _OVER:
        raise server.refusal(
            f"goes on beyond the {load.generate} tokens that were asked for", "it has to know `max_tokens`"
        )


def _counted(usage: object, asked: int) -> int:
    """Tokens of a reply, 0 where it does not say. ValueError for a number that cannot be one."""
    found = usage.get("completion_tokens") if isinstance(usage, Mapping) else None
    if found is None:
        return 0
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found <= asked + _OVER:
        raise ValueError(f"`completion_tokens` is `{shown(found)}`, and {asked} were asked for")
    return found


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
