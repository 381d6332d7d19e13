"""A server command as data: words, and for each flag why it is there and who says so."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from mtpforge import tables
from mtpforge.report import Trap, advice

COLUMNS: Final = ("flag", "why, and who decides")


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag of a command, or one key of the JSON object that a flag holds.

    value: None for a flag that takes none, the keys where it is a JSON object, else what JSON knows. reason: why it is
    there. source: who decides it: a file of the engine and its version, a key of a config, an option.
    """

    name: str
    value: object
    reason: str
    source: str

    @property
    def words(self) -> tuple[str, ...]:
        """The flag as words of a command."""
        if self.value is None:
            return (self.name,)
        return (self.name, json.dumps(self.plain) if isinstance(self.value, tuple) else str(self.value))

    @property
    def plain(self) -> object:
        """The value as JSON has it."""
        return {key.name: key.plain for key in self.value} if isinstance(self.value, tuple) else self.value


@dataclass(frozen=True, slots=True, repr=False)
class Command:
    """A server command. start: program, verb and model. flags: the rest of it.

    offers: keys of the engine's that would make drafting cheaper beside this target and are not in the command, each
    with a value to begin with; `mtpforge serve --draft-option NAME=VALUE` puts one in.
    traps: what would spoil the drafts all the same. environment: variables that the program is started with. beside:
    the command by which another engine serves the same pair, where both were asked for.
    """

    start: tuple[str, ...]
    flags: tuple[Flag, ...]
    offers: tuple[Flag, ...] = ()
    traps: tuple[Trap, ...] = ()
    environment: tuple[Flag, ...] = ()
    beside: Command | None = None

    @property
    def each(self) -> tuple[Command, ...]:
        """This command, and the one beside it."""
        return (self,) if self.beside is None else (self, self.beside)

    @property
    def argv(self) -> list[str]:
        """The words; before them `env` and the variables, where there are any."""
        variables = [f"{variable.name}={variable.value}" for variable in self.environment]
        before = ["env", *variables] if variables else []
        return [*before, *self.start, *(word for flag in self.flags for word in flag.words)]

    @property
    def rows(self) -> list[tuple[str, str]]:
        """One row per variable and flag, and per key inside one: its name, why it is there and who decides."""
        return list(_rows((*self.environment, *self.flags), ""))

    @property
    def offered(self) -> list[tuple[str, str]]:
        """One row per offer, as the words of the option that takes it."""
        return [
            (shlex.join(("--draft-option", f"{flag.name}={_word(flag.value)}")), _why(flag)) for flag in self.offers
        ]

    def __repr__(self) -> str:
        return f"<{' '.join(self.start)}, {len(self.flags)} flags>"

    def __str__(self) -> str:
        """Every flag with its reason, then what could be added and what is doubtful."""
        own = tables.text(" ".join(self.start), COLUMNS, [*self.rows, *self.offered], advice(self.traps))
        return own if self.beside is None else f"{own}\n\n{self.beside}"

    def _repr_html_(self) -> str:
        return "".join(
            tables.html(" ".join(each.start), COLUMNS, [*each.rows, *each.offered], advice(each.traps))
            for each in self.each
        )


def keys_of(value: Mapping[str, object], reason: str, source: str) -> tuple[Flag, ...]:
    """Keys of a JSON object that share a reason."""
    return tuple(Flag(key, held, reason, source) for key, held in value.items())


def _rows(flags: Iterable[Flag], indent: str) -> Iterator[tuple[str, str]]:
    for flag in flags:
        yield indent + flag.name, _why(flag)
        if isinstance(flag.value, tuple):
            yield from _rows(flag.value, indent + "  ")


def _why(flag: Flag) -> str:
    return f"{flag.reason} [{flag.source}]"


def _word(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
