"""`mtpforge bench`: what drafting is worth on a live server."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import click

from mtpforge import errors
from mtpforge.cli import options
from mtpforge.cli.grammar import Command, OneOf, Option
from mtpforge.cli.output import Ending, Screen
from mtpforge.errors import MtpforgeError, shown

if TYPE_CHECKING:
    from mtpforge.benching.asked import Endpoint
    from mtpforge.benching.found import Bench, Cell

_ALL: Final = "all"


class Numbers(click.ParamType):  # type: ignore[type-arg]  # not generic in older releases of click
    """Whole numbers above 0, with commas between: `1,4,16`."""

    name = "N,N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:  # noqa: ANN401, ARG002
        """In the order in which they were typed, each once."""
        if isinstance(value, tuple):
            return value
        words = [word.strip() for word in str(value).split(",")]
        if not all(re.fullmatch(r"[1-9]\d{0,5}", word, re.ASCII) for word in words):
            option = param.opts[-1] if param else self.name
            raise MtpforgeError(
                f"`{shown(value)}` is no list of whole numbers from 1 to 999,999",
                where=f"option `{option}`",
                fix=f"numbers with commas between: `{option} 1,4,16`",
                code=errors.USAGE,
            )
        return tuple(dict.fromkeys(int(word) for word in words))


class Words(click.ParamType):  # type: ignore[type-arg]  # not generic in older releases of click
    """Names with commas between."""

    name = "NAME,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:  # noqa: ANN401, ARG002
        """Each once."""
        if isinstance(value, tuple):
            return value
        return tuple(dict.fromkeys(word.strip() for word in str(value).split(",") if word.strip()))


def _endpoints() -> Iterable[str]:
    from mtpforge.benching.asked import ENDPOINTS

    return ENDPOINTS


def _option(name: str, heading: str, text: str, **attrs: Any) -> Callable[[Any], Any]:  # noqa: ANN401 -- click's own
    return click.option(name, cls=Option, heading=heading, help=text, **attrs)


@click.command(
    "bench",
    cls=Command,
    help="What drafting is worth on a live OpenAI-compatible server: how many drafted tokens are accepted, by its own"
    " counters, and how much faster it is than one that does not draft. Load goes to URL and --baseline, nowhere else."
    " Exit 1 where hardly a token is accepted, if only at some number of requests at a time, or drafting is slower"
    " somewhere and faster nowhere.",
    examples=(
        "mtpforge bench http://127.0.0.1:8000 --baseline http://127.0.0.1:8001",
        "mtpforge bench http://127.0.0.1:8000 --text prompts.txt --concurrency 1 --prompts 16",
    ),
    quiet="A line a number of requests at a time: it, tokens a round, and the gain where there is a baseline.",
)
@click.argument("url", metavar="URL")
@_option("--baseline", "Input", "The same target served without a draft.", metavar="URL")
@_option(
    "--dataset",
    "Input",
    "corpus (prompts that come with mtpforge), or speed_bench=FOLDER, spec_bench=FILE, sent by `vllm bench serve`.",
    metavar="NAME[=PATH]",
    default="corpus",
    show_default=True,
)
@options.text(help="Take prompts from a text, UTF-8, to be continued; a form feed begins a new document.")
@_option("--content", "Input", "Classes of the dataset; default: all.", type=Words(), metavar=Words.name)
@_option("--model", "Input", "Which one, where the server has several.", metavar="NAME", default="")
@_option(
    "--concurrency",
    "Compute",
    "Requests at a time.",
    type=Numbers(),
    metavar=Numbers.name,
    default="1,4,16",
    show_default=True,
)
@_option(
    "--depths",
    "Compute",
    "Draft steps to advise among; default: all up to the server's own.",
    elsewhere="--k",
    type=Numbers(),
    metavar=Numbers.name,
)
@_option(
    "--prompts",
    "Compute",
    "Of each class at each concurrency; default: 8, and 8 times a concurrency above 1 at least.",
    type=click.IntRange(min=2),
    metavar="N",
)
@_option(
    "--generate",
    "Input",
    "Tokens of a reply at most.",
    type=click.IntRange(min=2),
    metavar="N",
    default=256,
    show_default=True,
)
@_option("--temperature", "Compute", "Of the sampling.", type=float, metavar="T", default=1.0, show_default=True)
@_option(
    "--endpoint",
    "Compute",
    "chat, or completions for a model without a chat template.",
    type=OneOf("KIND", _endpoints),
    default="chat",
    show_default=True,
)
@options.report()
@click.pass_obj
def command(  # noqa: D103 -- the help text above
    screen: Screen,
    *,
    url: str,
    baseline: str | None,
    dataset: str,
    text: Path | None,
    content: tuple[str, ...] | None,
    model: str,
    concurrency: tuple[int, ...],
    depths: tuple[int, ...] | None,
    prompts: int | None,
    generate: int,
    temperature: float,
    endpoint: str,
) -> Ending:
    from mtpforge.benching.asked import Asked
    from mtpforge.benching.benching import bench

    asked = Asked(
        url=url,
        baseline=baseline,
        dataset=dataset,
        text=text,
        content=content or (),
        concurrency=concurrency,
        depths=depths or (),
        prompts=prompts or 0,
        generate=generate,
        temperature=temperature,
        endpoint=cast("Endpoint", endpoint),
        model=model,
    )
    whole: list[Cell] = []
    screen.result = {"measured": whole}
    screen.kept = lambda: _kept(screen, whole)
    with screen.watching() as watching:
        found = bench(asked, watching, whole.append)
    screen.result = found.document()
    _show(screen, found)
    for total in found.totals:
        gain = f" {total.gain.mean:.3f}" if total.gain else ""
        screen.answer(f"{total.concurrency} {total.length.mean:.3f}{gain}")
    screen.report(found.report)
    _explain(screen, found)
    return Ending(found.document(), found.report.exit_code)


def _kept(screen: Screen, whole: Sequence[Cell]) -> str:
    """What a run that was stopped leaves."""
    if not whole:
        return "nothing was measured to its end, so nothing is judged"
    held = "`measured` holds" if screen.json else "lines above hold"
    return "nothing is judged" if screen.quiet else f"{held} what was measured until then; nothing is judged"


def _show(screen: Screen, found: Bench) -> None:
    """Acceptance by content; speed by number of requests; depths."""
    steps = [f"token {number}" for number in range(1, found.k + 1)]
    screen.line()
    screen.table(
        ("content", "at a time", *steps, "tokens a round", "tokens/s", "without", "gain"),
        [_row(cell, found.k) for cell in (*found.cells, *(found.totals if len(found.contents) > 1 else ()))],
    )
    rows = [
        (each.concurrency, depth.k, f"{depth.length:.2f}", f"{depth.gain:.2f}", _remark(each.best, depth.k, found.k))
        for each in found.advice
        for depth in each.depths
    ]
    if rows:
        screen.line()
        screen.table(("at a time", "k", "tokens a round", "decoding, times as fast", ""), rows)
    screen.line()


def _row(cell: Cell, k: int) -> tuple[object, ...]:
    positions = [f"{share:.3f}" for share in cell.positions] + ["-"] * (k - len(cell.positions))
    without = "-" if cell.speed_without is None else f"{cell.speed_without:,.1f}"
    numbers = (str(cell.length), f"{cell.speed:,.1f}", without, str(cell.gain or "-"))
    return (cell.content or _ALL, cell.concurrency, *positions, *numbers)


def _remark(best: int | None, k: int, own: int) -> str:
    told = "as measured" if k == own else "by the curve"
    return f"{told}, fastest" if k == best else told


def _explain(screen: Screen, found: Bench) -> None:
    """Where drafting loses, the engine's own option for it, and what may be wrong."""
    if found.loses_from is not None:
        screen.line(f"drafting loses from {found.loses_from} requests at a time on")
    if found.schedule:
        screen.line(f"depth by batch size, for `{found.schedule_option}`: {found.schedule}")
    if found.causes:
        screen.line("likely causes, in this order, and what tells:")
        screen.table(("", ""), [(cause.what, cause.check) for cause in found.causes])
