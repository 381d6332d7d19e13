"""Regular expressions out of a stranger's config: the answer of re.match, in time that the expression cannot blow up.

`re` tries one way after another: `(a+)+$` takes it 2^n attempts on n letters, and no limit can be set. An expression
that could do that is walked here instead: from each place of the name, the set of places where each part of the
expression may end; every part and place once. Both ask whether some way leads through, so the answers are the same.

What makes one way exclude another (references to groups, possessive repeats, atomic groups) is refused there.
"""

from __future__ import annotations

import functools
import math
import re
import warnings
from collections.abc import Callable, Iterable
from importlib import import_module
from itertools import chain
from typing import Any, Final, TypeAlias

Places: TypeAlias = frozenset[int]
# What the parser makes: a tree is a sequence of (op, value), and most values hold trees.
Tree: TypeAlias = Any
Op: TypeAlias = Any
Value: TypeAlias = Any

MAX_CHARACTERS: Final = 4_096  # of one expression; those of published configs have 478 at most
_LETTERS: Final = 64  # of the longest name that is asked about
_TAME: Final = 1_000_000  # attempts, a few milliseconds of `re`: three times `.*` side by side
_PARSER: Any = import_module("re._parser")  # the tree that `re` itself compiles
_OPS: Any = import_module("re._constants")
_REPEATS: Final = (_OPS.MAX_REPEAT, _OPS.MIN_REPEAT)
_NOWHERE: Final[Places] = frozenset()


def matches(expression: str, name: str) -> bool:
    """Whether an expression matches an ASCII name from its start, as re.match does; re.error says why it cannot."""
    compiled, tree = _read(expression)
    if tree is None:
        return compiled.match(name) is not None
    try:
        return bool(_Walk(name, bool(compiled.flags & re.IGNORECASE)).ends(tree, 0))
    except RecursionError:
        raise re.error("nested too deeply") from None


@functools.lru_cache(maxsize=1024)
def _read(expression: str) -> tuple[re.Pattern[str], Tree]:
    """The compiled expression; its tree too where `re` could take for ever, else None."""
    if len(expression) > MAX_CHARACTERS:
        raise re.error(f"it has {len(expression)} characters, at most {MAX_CHARACTERS} are allowed")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `[[` may mean something else in a later Python
            compiled, tree = re.compile(expression), _PARSER.parse(expression)
    except (RecursionError, OverflowError) as error:
        raise re.error("nested too deeply, or a count without end") from error
    return compiled, None if _attempts(tree) <= _TAME else tree


def _attempts(tree: Tree) -> int:
    """The most ways that `re` may try on one name: choices side by side multiply, those of a repeat at every round."""
    total = 1
    for op, value in tree:
        inside = [_attempts(part) for part in _parts(op, value)]
        if op is _OPS.BRANCH:
            total *= sum(inside)
        elif op in (*_REPEATS, _OPS.POSSESSIVE_REPEAT):
            least, most = (min(n, _LETTERS) for n in value[:2])
            total *= (most - least + 1) * inside[0] ** most
        else:
            total *= math.prod(inside)
        total = min(total, 2 * _TAME)
    return total


def _parts(op: Op, value: Value) -> Iterable[Tree]:
    """The trees directly below a node."""
    if op is _OPS.BRANCH:
        return list(value[1])
    if op in (*_REPEATS, _OPS.POSSESSIVE_REPEAT, _OPS.ASSERT, _OPS.ASSERT_NOT, _OPS.SUBPATTERN):
        return [value[-1]]
    if op is _OPS.ATOMIC_GROUP:
        return [value]
    return [part for part in value[1:] if part is not None] if op is _OPS.GROUPREF_EXISTS else []


class _Walk:
    """One name, and what was found of it: (part, place) -> where the part may end."""

    def __init__(self, name: str, ignore_case: bool) -> None:
        self.name, self.ignore_case = name, ignore_case
        self.known: dict[tuple[int, int], Places] = {}

    def ends(self, tree: Tree, start: int) -> Places:
        """Where a sequence may end that begins at a place."""
        key = id(tree), start
        if key not in self.known:
            places: Places = frozenset((start,))
            for op, value in tree:
                places = self._each(places, functools.partial(self._node, op, value))
            self.known[key] = places
        return self.known[key]

    def _each(self, places: Places, step: Callable[[int], Places]) -> Places:
        return frozenset(chain.from_iterable(map(step, places))) if places else _NOWHERE

    def _node(self, op: Op, value: Value, at: int) -> Places:
        if op in (_OPS.LITERAL, _OPS.NOT_LITERAL, _OPS.ANY, _OPS.IN):
            fits = at < len(self.name) and self._letter(op, value, self.name[at])
            return frozenset((at + 1,)) if fits else _NOWHERE
        if op is _OPS.BRANCH:
            return frozenset(chain.from_iterable(self.ends(part, at) for part in value[1]))
        if op is _OPS.SUBPATTERN and not value[1] and not value[2]:
            return self.ends(value[3], at)
        if op in _REPEATS:
            return self._repeat(value[0], value[1], value[2], at)
        if op in (_OPS.ASSERT, _OPS.ASSERT_NOT):
            return frozenset((at,)) if self._looks(value[0], value[1], at) == (op is _OPS.ASSERT) else _NOWHERE
        if op is _OPS.AT:
            return frozenset((at,)) if self._stands(value, at) else _NOWHERE
        if op is _OPS.FAILURE:
            return _NOWHERE
        raise re.error("it repeats in a way that could take for ever, beside groups that are referred to")

    def _repeat(self, least: int, most: int, tree: Tree, at: int) -> Places:
        step = functools.partial(self.ends, tree)
        places: Places = frozenset((at,))
        for _ in range(min(least, len(self.name) + 2)):  # after more rounds than letters nothing changes any more
            places = self._each(places, step)
        found, new = places, places
        for _ in range(min(most - least, len(self.name) + 2)):
            new = self._each(new, step) - found
            if not new:
                break
            found |= new
        return found

    def _looks(self, direction: int, tree: Tree, at: int) -> bool:
        if direction > 0:
            return bool(self.ends(tree, at))
        begin = at - tree.getwidth()[0]  # what is looked for behind has one width
        return begin >= 0 and at in self.ends(tree, begin)

    def _stands(self, where: Op, at: int) -> bool:
        if where in (_OPS.AT_BEGINNING, _OPS.AT_BEGINNING_STRING):
            return at == 0
        if where in (_OPS.AT_END, _OPS.AT_END_STRING):
            return at == len(self.name)
        sides = [_is_word(c) for c in (self.name[at - 1 : at], self.name[at : at + 1])]
        return (sides[0] != sides[1]) == (where is _OPS.AT_BOUNDARY)

    def _letter(self, op: Op, value: Value, letter: str) -> bool:
        letters = {letter, letter.lower(), letter.upper()} if self.ignore_case else {letter}
        if op is _OPS.ANY:
            return True
        if op is not _OPS.IN:
            return any(self._same(c, chr(value)) for c in letters) == (op is _OPS.LITERAL)
        negated = value[0][0] is _OPS.NEGATE
        return any(self._member(c, *item) for c in letters for item in value[negated:]) != negated

    def _same(self, letter: str, other: str) -> bool:
        return letter == (other.casefold() if self.ignore_case and letter.islower() else other)

    def _member(self, letter: str, op: Op, value: Value) -> bool:
        if op is _OPS.LITERAL:
            return self._same(letter, chr(value))
        if op is _OPS.RANGE:
            return ord(letter) in range(value[0], value[1] + 1)
        return _CATEGORIES[value](letter)


def _is_word(letter: str) -> bool:
    return letter.isalnum() or letter == "_"


_CATEGORIES: Final[dict[Op, Callable[[str], bool]]] = {
    _OPS.CATEGORY_DIGIT: str.isdigit,
    _OPS.CATEGORY_NOT_DIGIT: lambda c: not c.isdigit(),
    _OPS.CATEGORY_SPACE: str.isspace,
    _OPS.CATEGORY_NOT_SPACE: lambda c: not c.isspace(),
    _OPS.CATEGORY_WORD: _is_word,
    _OPS.CATEGORY_NOT_WORD: lambda c: not _is_word(c),
}
