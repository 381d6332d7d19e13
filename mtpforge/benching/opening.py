"""Both servers before the first request: engine, model, draft steps; what cannot be compared is refused."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mtpforge.benching import counting
from mtpforge.benching import server as servers
from mtpforge.benching.asked import Asked
from mtpforge.benching.measuring import Side
from mtpforge.benching.streaming import Load
from mtpforge.checkpoint.checkpoint import own_name
from mtpforge.errors import shown

if TYPE_CHECKING:
    from mtpforge.benching.server import Server
    from mtpforge.engines import Engine


@dataclass(frozen=True, slots=True)
class Opened:
    """A server that answered: its engine, how it is asked, draft steps as it tells them, 0 where it does not.

    is_told: whether it said that acceptance is its own.
    """

    side: Side
    engine: Engine
    steps: int
    is_told: bool


def opened(stack: ExitStack, asked: Asked) -> tuple[Opened, Opened | None]:
    """The server that drafts and the baseline, asked what they are. MtpforgeError where nothing can be compared."""
    first = _connected(stack, asked.url)
    name, root = servers.model_of(first, asked.model)
    drafting = _opened(first, asked, name, root)
    if asked.baseline is None:
        return drafting, None
    second = _connected(stack, asked.baseline)
    other = servers.model_beside(second, name, root)
    if name != other[0] and not is_same(name, root, *other):
        raise second.refusal(
            "serves another model than the server that drafts",
            "serve the same checkpoint at both addresses, here without its draft; under one name where folders differ",
            why=f"`{_told(*other)}` here, `{_told(name, root)}` there",
        )
    return drafting, _opened(second, asked, *other)


def _connected(stack: ExitStack, url: str) -> Server:
    server = servers.connected(url)
    stack.callback(server.close)
    return server


def _opened(server: Server, asked: Asked, name: str, root: str) -> Opened:
    """Ask it what it is. Refused where it tells that acceptance is made up."""
    text = servers.metrics(server)
    engine = counting.engine_of_page(text, server.root)
    counters = engine.counters
    assert counters is not None  # noqa: S101 -- how it was found
    told = servers.told(server, counters.info)
    made_up = counters.made_up(told) if told else None
    if made_up:
        raise server.refusal(
            "makes acceptance up: its figures say nothing of the draft",
            "start it without that setting",
            why=f"{made_up} where it was started",
        )
    page = counting.page(text, counters, server.root)
    steps = max(len(page.positions), page.steps, counters.depth(told) if told else 0)
    load = Load(name, root, asked.endpoint, asked.generate, asked.temperature, counters)
    return Opened(Side(server, load), engine, steps, made_up is not None)


def is_same(name: str, root: str, other_name: str, other_root: str) -> bool:
    """Whether two servers serve one checkpoint, by the names of the model and of the checkpoint behind it.

    A checkpoint lies in another folder on another machine: the last part of its path counts. Where one of them tells
    nothing but the model's name, that decides.
    """
    if root not in ("", name) and other_root not in ("", other_name):
        return own_name(root) == own_name(other_root)
    return bool({own_name(name), own_name(root)} & {own_name(other_name), own_name(other_root)} - {""})


def _told(name: str, root: str) -> str:
    return shown(root or name)
