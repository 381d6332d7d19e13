"""Who sends the load: a dataset's name, and what opens it. A driver is one file and one line in the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

from mtpforge import errors
from mtpforge.benching import corpus, streaming, vllm_bench
from mtpforge.benching.slices import Slice, Source
from mtpforge.errors import MtpforgeError, shown

if TYPE_CHECKING:
    from mtpforge.benching.asked import Asked
    from mtpforge.benching.server import Server
    from mtpforge.benching.streaming import Load, Reply

Open: TypeAlias = "Callable[[Asked], Source]"


@dataclass(frozen=True, slots=True)
class _Prompts:
    """Prompts by class, so many as a cell of that class needs."""

    of: Callable[[str, int], tuple[corpus.Prompt, ...]]

    def send(self, server: Server, load: Load, some: Slice, on_reply: Callable[[], None]) -> list[Reply]:
        """Of one slice."""
        found = self.of(some.content, some.of)[some.first : some.last]
        if some.is_warming:
            found = corpus.warm(found, some.last - some.first)
        return streaming.send(server, load, found, some.concurrency, on_reply)


def _bundled(asked: Asked) -> Source:
    if asked.text is not None:
        pieces = corpus.pieces(asked.text)
        return Source(("text",), _Prompts(lambda _content, n: corpus.continued(pieces, n)).send)
    return Source(corpus.classes(), _Prompts(corpus.prompts).send)


DATASETS: Final[Mapping[str, Open]] = {
    "corpus": _bundled,
    "speed_bench": partial(vllm_bench.opened, "speed_bench"),
    "spec_bench": partial(vllm_bench.opened, "spec_bench"),
}


def source_of(asked: Asked) -> Source:
    """What the load is made of, cut down to the classes that were asked for."""
    opened = DATASETS.get(asked.dataset_name)
    if opened is None:
        raise MtpforgeError(
            f"no dataset `{shown(asked.dataset_name)}`",
            where="option `--dataset`",
            why=f"known: {', '.join(DATASETS)}",
            fix="`--text FILE` takes prompts from a text of your own",
            code=errors.USAGE,
        )
    source = opened(asked)
    unknown = [name for name in asked.content if name not in source.contents]
    if unknown:
        raise MtpforgeError(
            f"no content `{shown(unknown[0])}` in {asked.dataset_name if asked.text is None else 'a text'}",
            where="option `--content`",
            why=f"known: {', '.join(source.contents)}",
            fix="name some of them, or leave `--content` out for all",
            code=errors.USAGE,
        )
    return Source(asked.content or source.contents, source.send, source.contents)
