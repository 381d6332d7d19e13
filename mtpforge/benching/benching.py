"""bench(): what drafting is worth on a live server."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack

from mtpforge.benching import cells, counting, depths, opening, verdicts
from mtpforge.benching.asked import Asked, refuse
from mtpforge.benching.drivers import source_of
from mtpforge.benching.found import Bench, Cell
from mtpforge.benching.measuring import Measured, Run, pooled
from mtpforge.benching.opening import Opened
from mtpforge.benching.slices import Source
from mtpforge.drafting.remarks import Remark
from mtpforge.drafting.request import Watching
from mtpforge.errors import shown
from mtpforge.families.curves import curve_of
from mtpforge.report import Check


def bench(asked: Asked, watching: Watching, on_cell: Callable[[Cell], None] = lambda _: None) -> Bench:
    """Measure the server that drafts, and the baseline. MtpforgeError before the first request where it can be.

    on_cell: gets each cell as soon as it is whole, so that a run that is stopped leaves something.
    """
    refuse(asked)
    source = source_of(asked)
    with ExitStack() as stack:
        drafting, without = opening.opened(stack, asked)
        run = Run(asked, source, drafting.side, without.side if without else None, watching.on_progress)
        _tell(watching, asked, run, drafting, without)
        found = dict(_measured(run, watching, drafting.steps, on_cell))
    return _bench(asked, source, found, drafting, without)


def _tell(watching: Watching, asked: Asked, run: Run, drafting: Opened, without: Opened | None) -> None:
    """What is about to be sent where."""
    for name, opened in (("drafts", drafting), ("without", without)):
        if opened is not None:
            load = opened.side.load
            watching.on_remark(Remark(name, f"{opened.side.server.root}   {opened.engine.name}, {shown(load.model)}"))
    times = ", ".join(map(str, asked.concurrency))
    contents = ", ".join(run.source.contents)
    what = f"{run.n_requests:,} requests of up to {asked.generate} tokens, {times} at a time: {contents}"
    watching.on_remark(Remark("load", f"{what}; temperature {asked.temperature:g}"))


def _measured(
    run: Run, watching: Watching, steps: int, on_cell: Callable[[Cell], None]
) -> Iterator[tuple[tuple[str, int], list[Measured]]]:
    """By content and number of requests; each cell is told as soon as it is whole."""
    for number, concurrency in enumerate(run.asked.concurrency):
        counted = run.warm(concurrency)
        if not number:
            _refuse_roles(run, counted)
        for content in run.source.contents:
            found = list(run.cell(content, concurrency))
            whole = cells.cell(content, concurrency, found, steps)
            watching.on_remark(Remark("", str(whole)))
            on_cell(whole)
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
            f"start the baseline without `{run.without.counters.drafts_by}`",
            why=f"`{run.without.counters.rounds}` rose",
        )


def _of_baseline(drafting: Opened, without: Opened) -> Iterator[Check]:
    """In what the servers differ beside the draft, as far as they tell."""
    yield from verdicts.of_baseline(drafting.engine.name, without.engine.name)
    one, other = drafting.side.load, without.side.load
    if not opening.is_same(one.model, one.root, other.model, other.root):
        yield verdicts.of_folders(one.model, one.root, other.root)


def _bench(
    asked: Asked,
    source: Source,
    found: dict[tuple[str, int], list[Measured]],
    drafting: Opened,
    without: Opened | None,
) -> Bench:
    """What it comes to."""
    side = drafting.side
    together = {n: [each for content in source.contents for each in found[content, n]] for n in asked.concurrency}
    totals = tuple(cells.cell("", n, some, drafting.steps) for n, some in together.items())
    # Numbers of requests share prompts, with `--prompts` all of them: pooled, these would count several times.
    fewest = min(asked.concurrency)
    whole = next(total for total in totals if total.concurrency == fewest)
    curve = curve_of((side.load.model, side.load.root))
    like_it = [
        each
        for name in source.contents
        if curve and curve.is_like(name, asked.temperature)
        for each in found[name, fewest]
    ]
    alike = cells.cell("", fewest, like_it, drafting.steps) if like_it else None
    k = max(drafting.steps, len(whole.positions))
    advice = tuple(advised for total in totals if (advised := _advised(total, asked)) is not None)
    option = side.counters.schedule if len(advice) == len(totals) else None
    schedule = option(depths.schedule(advice)) if option else ""
    checks = (
        *(_of_baseline(drafting, without) if without else ()),
        *verdicts.of_acceptance(whole),
        *verdicts.of_load(totals),
        verdicts.of_curve(alike, curve, k, source.known, "--dataset" if asked.text is None else "--text"),
        *verdicts.of_speed(totals),
        *verdicts.of_depths(asked.depths, k),
        *verdicts.of_advice(advice, is_scheduled=option is not None),
        verdicts.of_others(*_tokens(found.values())),
        *verdicts.of_made_up(pooled(together[fewest]), side.counters, is_told=drafting.is_told),
        verdicts.ANSWERS,
    )
    return Bench(
        url=side.server.root,
        baseline=asked.baseline,
        engine=drafting.engine.name,
        model=side.load.model,
        checkpoint=side.load.root,
        dataset=asked.dataset_name if asked.text is None else str(asked.text),
        temperature=asked.temperature,
        generate=asked.generate,
        k=k,
        cells=tuple(cells.cell(*key, some, drafting.steps) for key, some in found.items()),
        totals=totals,
        advice=advice,
        schedule=schedule,
        schedule_option=side.counters.drafts_by if schedule else "",
        curve=curve if alike else None,
        loses_from=verdicts.loses_from(totals),
        checks=checks,
        causes=verdicts.causes(totals, side.counters),
    )


def _tokens(found: Iterable[Sequence[Measured]]) -> tuple[float, int]:
    """What the server that drafts counted, and what it gave us."""
    taken = [each.drafting for some in found for each in some]
    return sum(each.counts.generated for each in taken), sum(each.tokens for each in taken)


def _advised(total: Cell, asked: Asked) -> depths.Advice | None:
    """Among depths that the server reaches; None where nothing is known of any."""
    if not total.positions or total.decode_gain is None or total.gain is None or not depths.is_possible(total):
        return None
    pays = True if total.gain.is_above(1) else False if total.gain.is_below(1) else None
    found = depths.advised(total.concurrency, total.positions, total.decode_gain, asked.depths, pays=pays)
    return found if found.depths else None
