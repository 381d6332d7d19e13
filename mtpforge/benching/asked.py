"""What is measured, and where; values that leave nothing to measure are refused before the first request."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias
from urllib.parse import urlsplit

from mtpforge import errors
from mtpforge.benching.slices import fewest
from mtpforge.errors import MtpforgeError, shown

Endpoint: TypeAlias = Literal["chat", "completions"]
ENDPOINTS: Final[tuple[Endpoint, ...]] = ("chat", "completions")
CONCURRENCY: Final = (1, 4, 16)
GENERATE: Final = 256
SLICES: Final = 4  # of the prompts of one cell: on, off, off, on, on, off, off, on
_FEWEST: Final = 8  # prompts of a cell
_MOST: Final = 512  # requests at a time: more would measure this client


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is measured.

    url: the server that drafts. baseline: one that serves the same model and does not, None for none. dataset: a name
    of `drivers.DATASETS`, with `=PATH` where it lies in a file. text: prompts are taken from here instead. content:
    classes of the dataset, () for all. concurrency: requests at a time. depths: what is advised among, () for all up to
    the server's own. prompts: of each class at each concurrency, 0 for as many as 4 slices need. generate: tokens of a
    reply at most. model: as the server names it, "" where it serves one.
    """

    url: str
    baseline: str | None = None
    dataset: str = "corpus"
    text: Path | None = None
    content: tuple[str, ...] = ()
    concurrency: tuple[int, ...] = CONCURRENCY
    depths: tuple[int, ...] = ()
    prompts: int = 0
    generate: int = GENERATE
    temperature: float = 1.0
    endpoint: Endpoint = "chat"
    model: str = ""

    def prompts_at(self, concurrency: int) -> int:
        """Prompts of one class at so many requests at a time: most of a slice keeps all of them busy."""
        return self.prompts or max(_FEWEST, SLICES * fewest(concurrency))

    @property
    def dataset_name(self) -> str:
        """Without its path."""
        return self.dataset.partition("=")[0]

    @property
    def dataset_path(self) -> str:
        """Where it lies, "" where it came with mtpforge."""
        return self.dataset.partition("=")[2]


def address(url: str) -> str:
    """The root of a server: no `/v1`, no slash at the end. MtpforgeError for what is none."""
    where = f"`{shown(url)}`"
    try:
        parts = urlsplit(url)
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        is_one = False
        parts = urlsplit("")
    if not is_one:
        raise MtpforgeError(
            f"{where} is no address of a server",
            fix="`http://HOST:PORT`, as `mtpforge bench http://127.0.0.1:8000`",
            code=errors.USAGE,
        )
    if parts.username or parts.password:
        raise MtpforgeError(
            "the address holds a password",
            why="every process of this machine could read it",
            fix="`export OPENAI_API_KEY=...` gives the server its key",
            code=errors.USAGE,
        )
    if parts.query or parts.fragment:
        raise MtpforgeError(
            f"{where} is more than the address of a server",
            fix="leave out what stands behind `?` or `#`",
            code=errors.USAGE,
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}"


def refuse(asked: Asked) -> None:
    """MtpforgeError for values of which nothing comes."""
    if asked.baseline is not None and address(asked.baseline) == address(asked.url):
        raise _wrong(
            "`--baseline` is the same server",
            "name one that serves the same target without a draft: the same command without its draft",
        )
    if asked.text is not None and asked.dataset != "corpus":
        raise _wrong("`--text` and `--dataset` exclude each other", "leave one of them out")
    if not asked.concurrency:
        raise _wrong("no number of requests at a time is given", "`--concurrency 1,4,16`")
    for n in asked.concurrency:
        if not 1 <= n <= _MOST:
            raise _wrong(f"{n} requests at a time cannot be sent", f"between 1 and {_MOST}: `--concurrency 1,4,16`")
    if not 0 <= asked.temperature <= 2:  # noqa: PLR2004 -- the range of the API
        raise _wrong(f"a temperature of {asked.temperature:g} is none", "between 0 and 2: `--temperature 1.0`")
    if any(k < 1 for k in asked.depths):
        raise _wrong("a depth begins at 1", "`--depths 1,2,3,5`")
    most = max(asked.concurrency)
    needed = 2 * fewest(most)
    if 0 < asked.prompts < needed:
        what = f"{asked.prompts} prompts are too few for {most} requests at a time: an interval needs two slices"
        raise _wrong(what, f"`--prompts {needed}` or more, or fewer requests at a time")


def _wrong(what: str, fix: str) -> MtpforgeError:
    return MtpforgeError(what, fix=fix, code=errors.USAGE)
