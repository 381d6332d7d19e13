"""bench(): what drafting is worth on a live server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mtpforge.benching import cells, counting, depths, verdicts
from mtpforge.benching import server as servers
from mtpforge.benching.asked import Asked, refuse
from mtpforge.benching.drivers import source_of
from mtpforge.benching.found import Bench, Cell
from mtpforge.benching.measuring import Measured, Run, Side, pooled
from mtpforge.benching.server import Server
from mtpforge.benching.streaming import Load
from mtpforge.drafting.remarks import Remark
from mtpforge.drafting.request import Watching
from mtpforge.errors import MtpforgeError
from mtpforge.families.curves import curve_of

if TYPE_CHECKING:
    from mtpforge.engines import Engine

_CONSTANT: Final = 3  # units of text that cannot all accept exactly the same by chance


@dataclass(frozen=True, slots=True)
class _Opened:
    """A server that answered: its engine, how it is asked, and whether it told that acceptance is its own."""

    side: Side
    engine: Engine
    is_told: bool


def bench(asked: Asked, watching: Watching) -> Bench:
    """Measure the server that drafts, and the baseline. MtpforgeError before the first request where it can be."""
    refuse(asked)
    source = source_of(asked)
    with ExitStack() as stack:
        drafting = _opened(stack, asked, asked.url, asked.model)
        without = None
        if asked.baseline is not None:
            without = _opened(stack, asked, asked.baseline, _other_model(asked))
        run = Run(asked, source, drafting.side, without.side if without else None, watching.on_progress)
        _tell(watching, asked, run, drafting, without)
        found = dict(_measured(run, watching))
    _refuse_constant([each for some in found.values() for each in some], drafting)
    return _bench(asked, source.contents, found, drafting)


def _opened(stack: ExitStack, asked: Asked, url: str, model: str) -> _Opened:
    """Ask it what it is. Refused where acceptance is made up."""
    server = servers.connected(url)
    stack.callback(server.close)
    name, root = servers.model_of(server, model)
    engine = counting.engine_of_page(servers.metrics(server), server.root)
    counters = engine.counters
    assert counters is not None  # noqa: S101 -- how it was found
    told = servers.told(server, counters.info)
    made_up = counters.made_up(told) if told else None
    if made_up:
        raise _made_up(server, f"{made_up} where it was started")
    return _Opened(
        Side(server, Load(name, root, asked.endpoint, asked.generate, asked.temperature, counters)),
        engine,
        made_up is not None,
    )


def _other_model(asked: Asked) -> str:
    """The name at the baseline: the same one if it has several."""
    server = servers.connected(str(asked.baseline))
    try:
        return servers.model_of(server, "")[0]
    except MtpforgeError:
        return asked.model
    finally:
        server.close()


def _made_up(server: Server, why: str) -> MtpforgeError:
    return server.refusal(
        "makes acceptance up: its figures say nothing of the draft", "start it without that setting", why=why
    )


def _tell(watching: Watching, asked: Asked, run: Run, drafting: _Opened, without: _Opened | None) -> None:
    """What is about to be sent where."""
    for name, opened in (("drafts", drafting), ("without", without)):
        if opened is not None:
            load = opened.side.load
            watching.on_remark(Remark(name, f"{opened.side.server.root}   {opened.engine.name}, {load.model}"))
    times = ", ".join(map(str, asked.concurrency))
    contents = ", ".join(run.source.contents)
    what = f"{run.n_requests:,} requests of up to {asked.generate} tokens, {times} at a time: {contents}"
    watching.on_remark(Remark("load", f"{what}; temperature {asked.temperature:g}"))


def _measured(run: Run, watching: Watching) -> Iterator[tuple[tuple[str, int], list[Measured]]]:
    """By content and number of requests; each cell is told as soon as it is whole."""
    for number, concurrency in enumerate(run.asked.concurrency):
        counted = run.warm(concurrency)
        if not number:
            _refuse_roles(run, counted)
        for content in run.source.contents:
            found = list(run.cell(content, concurrency))
            watching.on_remark(Remark("", str(cells.cell(content, concurrency, found))))
            yield (content, concurrency), found


def _refuse_roles(run: Run, counted: Sequence[counting.Counts]) -> None:
    """The one has to draft, the other not."""
    if not counted[0].rounds:
        swapped = len(counted) > 1 and counted[1].rounds
        raise run.drafting.server.refusal(
            "does not draft",
            "both addresses may be swapped: the server that drafts comes first"
            if swapped
            else "`mtpforge serve DRAFT --target CKPT --print` has the command that does",
            why=f"`{run.drafting.counters.rounds}` stayed where it was",
        )
    if run.without is not None and counted[1].rounds:
        raise run.without.server.refusal(
            "drafts too, so nothing is compared",
            "start the baseline without its speculative config",
            why=f"`{run.without.counters.rounds}` rose",
        )


def _refuse_constant(found: Sequence[Measured], drafting: _Opened) -> None:
    """Different texts never accept exactly the same; a lot drawn in the engine may."""
    units = [unit for unit in pooled(found) if unit.rounds]
    lengths = {unit.length for unit in units}
    if len(units) >= _CONSTANT and len(lengths) == 1 and units[0].accepted:
        why = f"{units[0].length:.3f} tokens a round in each of {len(units)} pieces of different text"
        raise _made_up(drafting.side.server, f"{why}; {drafting.side.counters.unseen}")


def _bench(
    asked: Asked, contents: Sequence[str], found: dict[tuple[str, int], list[Measured]], drafting: _Opened
) -> Bench:
    """What it comes to."""
    side = drafting.side
    table = tuple(cells.cell(*key, some) for key, some in found.items())
    totals = tuple(
        cells.cell("", n, [each for content in contents for each in found[content, n]]) for n in asked.concurrency
    )
    all_of_it = [each for some in found.values() for each in some]
    whole = cells.cell("", 0, all_of_it)
    some = (_advised(total, asked) for total in totals if total.positions and total.decode_gain is not None)
    advice = tuple(each for each in some if each.depths)  # of depths that the server does not reach nothing is known
    curve = curve_of((side.load.model, side.load.root))
    k = len(whole.positions)
    checks = (
        *verdicts.of_acceptance(whole),
        verdicts.of_curve(whole, curve, k),
        *verdicts.of_speed(totals),
        *verdicts.of_depths(asked.depths, k),
        verdicts.of_others(
            sum(each.drafting.counts.generated for each in all_of_it), sum(each.drafting.tokens for each in all_of_it)
        ),
        *verdicts.unchecked(side.counters, is_told=drafting.is_told),
    )
    schedule = side.counters.schedule
    return Bench(
        url=side.server.root,
        baseline=asked.baseline,
        engine=drafting.engine.name,
        model=side.load.model,
        dataset=asked.dataset_name if asked.text is None else str(asked.text),
        temperature=asked.temperature,
        generate=asked.generate,
        k=k,
        cells=table,
        totals=totals,
        advice=advice,
        schedule=schedule(depths.schedule(advice)) if schedule and advice else "",
        curve=curve,
        loses_from=verdicts.loses_from(totals),
        checks=checks,
        causes=verdicts.causes(whole, side.counters),
    )


def _advised(total: Cell, asked: Asked) -> depths.Advice:
    return depths.advised(total.concurrency, total.positions, total.decode_gain or 1.0, asked.depths)
