"""Where a draft is served: flags of a machine, as data of `machines/`, one file for each kind of chip.

[machines.NAME]  title; ranks that target and draft are cut over; nodes (1 where not said); memory_gb of one rank, and
                 host_memory_gb beside it that experts can be left in; shares_memory: whether CPU and GPU share it
[[notes]]        text for people, with `when`
[forks.NAME]     engine, and what: a patched one whose flags are given only to those who name it; reads_topk_pattern:
                 whether it knows the layers with an indexer by `index_topk_pattern` alone
[[flags]]        engine (its key), name (an environment variable where it does not begin with a dash), value (none for a
                 flag that takes none; `{nodes}`, `{node_rank}` and `{head_node}` are filled in), reason, source; fork;
                 when: all must hold, each a list of what may stand there: method of the target's block, experts
                 ("format strategy" of the draft's), algo (ModelOpt's quant_algo), family, ranks of the machine, tp
                 (those that it is served on), follower (whether the node is another than 0)

`chat.toml` names no machine: its flags are given on every one.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from itertools import chain
from typing import Final

from mtpforge import errors
from mtpforge.engines.command import Flag
from mtpforge.errors import MtpforgeError, shown

_FOLDER: Final = "machines"
_SHARE: Final = "--gpu-memory-utilization"
_LONG_WORD: Final = 80  # difflib takes seconds for a word of a megabyte
Row = Mapping[str, object]
Facts = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine, or several nodes that serve one model. memory_gb, host_memory_gb: of one rank.

    shares_memory: whether that of the GPU is the CPU's too.
    """

    name: str
    title: str
    ranks: int
    nodes: int
    memory_gb: int
    host_memory_gb: int
    shares_memory: bool
    forks: Mapping[str, Row]
    rows: tuple[Row, ...]
    noted: tuple[Row, ...]

    def holds_bytes(self, ranks: int) -> int:
        """Weights that so many ranks could hold together, with nothing left for a cache."""
        return min(self.ranks, ranks) * (self.memory_gb + self.host_memory_gb) * 10**9


@dataclass(frozen=True, slots=True)
class Deployment:
    """What is asked for: a machine by its name, a fork by its, which node this is, and where node 0 is reached."""

    machine: str
    fork: str = ""
    node_rank: int = 0
    head_node: str = ""


@cache
def machines() -> dict[str, Machine]:
    """Every machine, by name, in alphabetical order."""
    found = sorted(files(__package__).joinpath(_FOLDER).iterdir(), key=lambda file: file.name)
    tables = [tomllib.loads(file.read_text(encoding="utf-8")) for file in found if file.name.endswith(".toml")]
    everywhere = tuple(chain.from_iterable(t["flags"] for t in tables if "machines" not in t))
    made = (
        Machine(
            name,
            row["title"],
            row["ranks"],
            row.get("nodes", 1),
            row["memory_gb"],
            row.get("host_memory_gb", 0),
            row.get("shares_memory", False),
            table.get("forks", {}),
            (*table["flags"], *everywhere),
            tuple(table.get("notes", ())),
        )
        for table in tables
        for name, row in table.get("machines", {}).items()
    )
    return {machine.name: machine for machine in sorted(made, key=lambda machine: machine.name)}


def memory_shares() -> dict[str, float]:
    """Machines whose GPU shares the CPU's memory, each with the part of it that a server is given there."""
    return {
        machine.name: float(str(row["value"]))
        for machine in machines().values()
        if machine.shares_memory
        for row in machine.rows
        if row["name"] == _SHARE and _holds(row, {"ranks": machine.ranks})
    }


def deployment(machine: str, fork: str, node_rank: int, head_node: str) -> Deployment | None:
    """What is asked for, None for no machine; MtpforgeError for what only a machine gives a meaning."""
    if machine:
        return Deployment(machine, fork, node_rank, head_node)
    for option, given in {"--fork": fork, "--node-rank": node_rank, "--head-node": head_node}.items():
        if given:
            fix = f"`--hardware MACHINE {option} {shown(str(given))}`, a machine of: {', '.join(machines())}"
            _refuse(option, f"`{option}` says nothing without a machine", "", fix)
    return None


def ranks(asked: Deployment | None, wanted: int | None) -> int:
    """Ranks that it is served on: as many as are asked for, else the machine's; 1 without a machine."""
    if wanted is not None:
        return wanted
    return 1 if asked is None else machine_of(asked).ranks


def machine_of(asked: Deployment) -> Machine:
    """The machine that is asked for; MtpforgeError for an unknown one, and for a fork or node that it has not."""
    known = machines()
    if asked.machine not in known:
        meant = [f"`--hardware {name}`" for name in _meant(asked.machine, tuple(known))]
        fix = f"did you mean {' or '.join(meant)}?" if meant else ""
        _refuse("--hardware", f"no machine `{shown(asked.machine)}` is known", f"known: {', '.join(known)}", fix)
    found = known[asked.machine]
    if asked.fork and asked.fork not in found.forks:
        why = f"known there: {', '.join(found.forks) or 'none'}"
        _refuse("--fork", f"`{shown(asked.fork)}` is no fork that {found.name} is served with", why, "")
    if not 0 <= asked.node_rank < found.nodes:
        why = f"{found.name} has {found.nodes} node{'s' * (found.nodes > 1)}, counted from 0"
        fix = f"`--node-rank` from 0 to {found.nodes - 1}" if found.nodes > 1 else "leave `--node-rank` out"
        _refuse("--node-rank", f"there is no node {asked.node_rank}", why, fix)
    if found.nodes > 1 and not asked.head_node:
        why = f"{found.name} has {found.nodes} nodes, and each must reach node 0"
        _refuse("--head-node", "where is node 0?", why, "`--head-node ADDRESS`, an address that every node reaches")
    if found.nodes == 1 and asked.head_node:
        _refuse("--head-node", f"{found.name} is one node", "there is none to be reached", "leave `--head-node` out")
    return found


def _meant(typed: str, known: Sequence[str]) -> list[str]:
    """Machines that a wrong name may stand for: the same chip in another number first, else the nearest names."""
    plain = {_plain(name): name for name in known}
    if _plain(typed) in plain:
        return [plain[_plain(typed)]]
    chip = typed.lower().partition("-x")[0]
    same = [name for name in known if name.partition("-x")[0] == chip]
    return same or [plain[near] for near in get_close_matches(_plain(typed)[:_LONG_WORD], plain, n=1)]


def _plain(name: str) -> str:
    return "".join(sign for sign in name.lower() if sign.isalnum())


def flags(machine: Machine, asked: Deployment, engine: str, facts: Facts) -> tuple[tuple[Flag, ...], tuple[Flag, ...]]:
    """Flags of the command, and environment variables, each with its reason.

    facts: of the pair and how it is served, as `when` of the tables asks for them.
    """
    known = {**facts, "ranks": machine.ranks, "follower": asked.node_rank > 0}
    filled = {
        "{nodes}": str(machine.nodes),
        "{node_rank}": str(asked.node_rank),
        "{head_node}": asked.head_node,
    }
    found = [_flag(row, filled) for row in _fitting(machine.rows, engine, asked.fork, known)]
    given = tuple(flag for flag in found if flag.name.startswith("-"))
    return given, tuple(flag for flag in found if not flag.name.startswith("-"))


def refuse_fork(machine: Machine, asked: Deployment, engine: str) -> None:
    """MtpforgeError for a fork of another engine."""
    patched = machine.forks.get(asked.fork, {}).get("engine", engine)
    if patched != engine:
        why = f"it is a fork of `{patched}`"
        _refuse("--fork", f"`{asked.fork}` serves nothing for `{engine}`", why, f"`--engine {patched}`, or no fork")


def notes(machine: Machine) -> tuple[str, ...]:
    """What people have to do, or to know, on this machine."""
    return tuple(str(row["text"]) for row in machine.noted if _holds(row, {"ranks": machine.ranks}))


def topk_pattern(asked: Deployment, machine: Machine, text_config: Mapping[str, object]) -> dict[str, object]:
    """Keys of the target's config that a fork has to be told: layers with an indexer (F) and without (S).

    {} where the fork derives them, and where the config lists no kinds of indexers.
    """
    kinds = text_config.get("indexer_types")
    if not machine.forks.get(asked.fork, {}).get("reads_topk_pattern") or not isinstance(kinds, list):
        return {}
    return {"index_topk_pattern": "".join("F" if kind == "full" else "S" for kind in kinds)}


def _fitting(rows: tuple[Row, ...], engine: str, fork: str, facts: Facts) -> Iterator[Row]:
    """Rows of this engine and fork whose conditions hold."""
    return (row for row in rows if row["engine"] == engine and row.get("fork", "") in {"", fork} and _holds(row, facts))


def _holds(row: Row, facts: Facts) -> bool:
    when = row.get("when", {})
    return isinstance(when, Mapping) and all(facts[key] in wanted for key, wanted in when.items())


def _flag(row: Row, filled: Mapping[str, str]) -> Flag:
    made = Flag(str(row["name"]), row.get("value"), str(row["reason"]), str(row["source"]))
    if not isinstance(made.value, str):
        return made
    value = made.value
    for word, meant in filled.items():
        value = value.replace(word, meant)
    return replace(made, value=value)


def _refuse(option: str, what: str, why: str, fix: str) -> None:
    raise MtpforgeError(what, where=f"option `{option}`", why=why, fix=fix, code=errors.USAGE)
