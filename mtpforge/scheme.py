"""Scheme: which module of the layer is stored how, and why. Presets are TOML files, one a scheme.

load("int4-g32-asym" | "./mine.toml") -> Scheme
dumps(scheme)                         -> the TOML text of a scheme
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, NoReturn

from mtpforge import errors, formats, scheme_lines
from mtpforge.errors import MtpforgeError, shown
from mtpforge.tensors import BF16, DTYPES, Quantization

_SUFFIX: Final = ".toml"
_DEFAULTS: Final[dict[str, object]] = {f.name: f.default for f in fields(Quantization) if f.name != "format"}
KEYS: Final = ("pattern", "format", "reason", *_DEFAULTS)
_USUAL: Final[dict[str, object]] = {"group_size": 128, "block": (128, 128)}  # what hints propose where any size will do
_LONGEST: Final = 1 << 18  # characters; a preset has 2,000
_LARGEST: Final = (1 << 31) - 1  # no dimension of a matrix is larger


@dataclass(frozen=True, slots=True)
class Rule:
    """pattern: fnmatch on a module's template (`mlp.experts.*.gate_proj`). reason: what decided, as a sentence."""

    pattern: str
    quantization: Quantization
    reason: str


@dataclass(frozen=True, slots=True)
class Scheme:
    """Ordered rules; the first match wins."""

    name: str
    rules: tuple[Rule, ...]
    description: str = ""

    def of(self, template: str) -> Rule:
        """The rule that decides for a module template. A template that no rule matches is an error."""
        for rule in self.rules:
            if rule.pattern == template or fnmatchcase(template, rule.pattern):
                return rule
        raise MtpforgeError(
            f"scheme {self.name} has no rule for `{template}`",
            why="every weight matrix of the layer needs one",
            fix='add a last rule with pattern = "*"',
        )


def sparing(scheme: Scheme, dense: Collection[str]) -> Scheme:
    """The scheme with BF16 for templates that an engine builds dense whatever it is told, where only `*` fits them.

    `*` stands for every matrix that engines quantize; a rule that says more than that means what it says.
    """
    caught = [t for t in dense if (rule := scheme.of(t)).pattern == "*" and not rule.quantization.is_dense]
    rules = (Rule(template, BF16, "engines build it dense in this family") for template in caught)
    return replace(scheme, rules=(*rules, *scheme.rules)) if caught else scheme


def built_otherwise(built: Scheme, wanted: Scheme) -> str:
    """The first rule of what an engine would build that is not as wanted, for people; "" where all of it is."""
    for rule in built.rules:
        want = wanted.of(rule.pattern).quantization
        if rule.quantization != want:
            found, asked = formats.label(rule.quantization), formats.label(want)
            return f"`{rule.pattern}` would be {found} ({rule.reason}), not {asked}"
    return ""


def names() -> tuple[str, ...]:
    """The presets, in alphabetical order."""
    return tuple(sorted(file.stem for file in _folder().glob(f"*{_SUFFIX}")))


def load(name_or_path: str) -> Scheme:
    """A preset by name, or a scheme of one's own by path (anything with a `/` or that ends in `.toml`).

    Every mistake in a file is an error that names the line.
    """
    is_path = "/" in name_or_path or name_or_path.endswith(_SUFFIX)
    path = Path(name_or_path) if is_path else _folder() / f"{name_or_path}{_SUFFIX}"
    if not is_path and name_or_path not in names():
        near = _near(name_or_path.lower())
        raise MtpforgeError(
            f"no scheme is called `{shown(name_or_path)}`",
            why=f"presets: {', '.join(names())}",
            fix=f"did you mean {near}?" if near else "a file of your own is named by its path: `./mine.toml`",
            code=errors.USAGE,
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise _unread(f"{shown(path)}, line {line}", "it is not UTF-8 text") from error
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        raise _unread(shown(path), getattr(error, "strerror", None) or shown(error)) from error
    return loads(text, name=path.stem, where=str(path))


def _near(typed: str) -> str:
    """The presets that a name may stand for: those that begin or end with it, part by part, else the nearest; or ""."""
    if typed in names():  # in capitals
        return f"`{typed}`"
    parts = typed.split("-")
    meant = [n for n in names() if parts in (n.split("-")[: len(parts)], n.split("-")[-len(parts) :])]
    # another symmetry is another scheme, however near its name
    alike = [name for name in names() if name.rpartition("-")[2] == typed.rpartition("-")[2]]
    meant = meant or get_close_matches(typed, alike or names(), n=1)
    return " or ".join(f"`{name}`" for name in meant)


def _unread(where: str, why: str) -> MtpforgeError:
    return MtpforgeError(
        "the scheme file cannot be read", where=where, why=why, fix="`mtpforge schemes` lists the presets"
    )


def loads(text: str, *, name: str, where: str) -> Scheme:
    """A scheme from TOML text; `where` is the file in messages. Every mistake is an error that names its line."""
    table = _parsed(text, where)
    reader = _Reader(text, where)
    for key in table:
        if key not in ("description", "rules"):
            reader.refuse_unknown(key, ("description", "rules"), "a scheme")
    rows, description = table.get("rules"), table.get("description", "")
    if not isinstance(description, str):
        reader.refuse("`description` is no text", "", 'e.g. `description = "for my target"`', "description")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        why = "every weight matrix of the layer needs one, the last with pattern `*`"
        reader.refuse("the scheme has no rules", why, "begin each rule with a line `[[rules]]`", "rules")
    rules = tuple(reader.rule(row, index) for index, row in enumerate(rows))
    return Scheme(name, rules, " ".join(description.split()))


def _parsed(text: str, where: str) -> dict[str, object]:
    if len(text) > _LONGEST:
        raise MtpforgeError(
            f"the scheme file has {len(text):,} characters",
            where=f"{shown(where)}, line 1",
            why=f"mtpforge reads {_LONGEST:,} at most",
            fix='one rule can stand for many modules: `pattern = "mlp.experts.*"`',
        )
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: a number of 5,000 digits is no TOMLDecodeError
        raise MtpforgeError(
            "the scheme file is no TOML",
            where=f"{shown(where)}, line {scheme_lines.of_error(text, str(error))}",
            why=shown(error),
            fix="`mtpforge schemes bf16 -q` prints a file that is",
        ) from error


def dumps(scheme: Scheme) -> str:
    """The TOML text of a scheme: `loads` of it is the same scheme."""
    lines = [f"description = {toml(scheme.description)}"]
    for rule in scheme.rules:
        lines += ["", "[[rules]]", f"pattern = {toml(rule.pattern)}", f"format = {toml(rule.quantization.format)}"]
        for key, default in _DEFAULTS.items():
            value = getattr(rule.quantization, key)
            if value != default:
                lines.append(f"{key} = {toml(value)}")
        lines.append(f"reason = {toml(rule.reason)}")
    return "\n".join(lines) + "\n"


def name_of(rules: Iterable[Rule]) -> str:
    """A short name for rules: that of the preset that says the same, else what the most demanding rules say."""
    rules = tuple(rules)
    for preset in names():
        known = load(preset)
        if all(known.of(rule.pattern).quantization == rule.quantization for rule in rules):
            return preset
    kinds = sorted({formats.label(r.quantization) for r in rules if not r.quantization.is_dense})
    return "-and-".join(kind.lower().replace(" ", "-").replace("symmetric", "sym") for kind in kinds)


def _folder() -> Path:
    """Where the presets lie: inside the wheel, or beside the package in the repository."""
    package = Path(__file__).parent
    carried = package / "_schemes"
    return carried if carried.is_dir() else package.parent / "schemes"


@dataclass(frozen=True, slots=True)
class _Reader:
    """Rules out of parsed TOML, with the text for the lines of messages."""

    text: str
    where: str

    def rule(self, row: Mapping[str, object], index: int) -> Rule:
        """The rule that a table holds."""
        for key in row:
            if key not in KEYS:
                self.refuse_unknown(key, KEYS, "a rule", index)
        for key, value in row.items():
            self.refuse_type(key, value, index)
        pattern, name = row.get("pattern"), row.get("format")
        if not pattern:
            self.refuse("a rule has no pattern", "it says which modules it is for", '`pattern = "*"`', "pattern", index)
        known = sorted(name for name, form in formats.FORMATS.items() if form.encode is not None)
        if name not in known:
            what = "a rule has no format" if name is None else f"`{shown(name)}` is no format of a draft"
            near = get_close_matches(str(name)[:_LONG_WORD], known, n=1) or ["dense"]
            self.refuse(what, f"known: {', '.join(known)}", f'`format = "{near[0]}"`', "format", index)
        given = {
            key: tuple(v) if isinstance(v, list) else v for key, v in row.items() if key not in ("pattern", "reason")
        }
        quantization = Quantization(**given)  # type: ignore[arg-type]  # each was checked by `refuse_type`
        if refused := formats.refusal(quantization):
            self.refuse_value(quantization, *refused, row, index)
        if quantization.is_dense:
            quantization = self.of_dtype(quantization, row, index)
        return Rule(str(pattern), quantization, str(row.get("reason", f"scheme {Path(self.where).stem}")))

    def of_dtype(self, dense: Quantization, row: Mapping[str, object], index: int) -> Quantization:
        """With the bits of its dtype, which nobody has to state; raise where they are stated otherwise."""
        bits = DTYPES[dense.dtype].bits
        if row.get("bits", bits) != bits:
            self.refuse(f"`bits` is {row['bits']}", f"{dense.dtype} has {bits}", "leave `bits` out", "bits", index)
        return replace(dense, bits=bits)

    def refuse_type(self, key: str, value: object, index: int) -> None:
        """Raise unless a value is of the type that its key wants."""
        is_number = type(value) is int and 0 < value <= _LARGEST
        is_pair = (
            isinstance(value, list)
            and [type(n) for n in value] == [int, int]
            and 0 < min(value) <= max(value) <= _LARGEST
        )
        wanted, fits = {
            "bits": ("a positive whole number", is_number),
            "group_size": ("a positive whole number", is_number),
            "symmetric": ("true or false", isinstance(value, bool)),
            "block": ("two positive whole numbers", is_pair),
        }.get(key, ("a text in quotes", isinstance(value, str)))
        if not fits:
            example = {"bits": 4, "symmetric": True, **_USUAL}.get(key, "...")
            fix = f"e.g. `{key} = {toml(example)}`"
            self.refuse(f"`{key}` is {shown(toml(value))}", f"it must be {wanted}", fix, key, index)

    def refuse_value(
        self, quantization: Quantization, key: str, why: str, row: Mapping[str, object], index: int
    ) -> NoReturn:
        """Raise for a key that its format cannot have so; the hint is what it could have."""
        what = f"`{key}` is {shown(toml(row[key]))}" if key in row else f"a rule has no `{key}`"
        place = key if key in row else "format"
        self.refuse(what, f"{quantization.format}: {why}", _remedy(quantization, key), place, index)

    def refuse_unknown(self, key: str, known: tuple[str, ...], owner: str, index: int | None = None) -> NoReturn:
        """Raise for a key that nothing reads."""
        near = get_close_matches(key[:_LONG_WORD], known, n=1)
        fix = f"write `{near[0]}`" if near else f"leave `{shown(key)}` out"
        self.refuse(f"`{shown(key)}` is no key of {owner}", f"known: {', '.join(known)}", fix, key, index)

    def refuse(self, what: str, why: str, fix: str, key: str, index: int | None = None) -> NoReturn:
        """Raise, naming the line of the key, else that of its rule."""
        lines = scheme_lines.of_keys(self.text)
        line = next((lines[at] for at in ((index, key), (index, ""), (None, "rules")) if at in lines), 1)
        raise MtpforgeError(what, where=f"{shown(self.where)}, line {line}", why=why, fix=fix)


def _remedy(quantization: Quantization, key: str) -> str:
    """What to type for a key: the first value with which its format no longer refuses it."""
    allowed = formats.FORMATS[quantization.format].takes.get(key, ())
    for value in (*allowed, _USUAL.get(key), _DEFAULTS[key]):
        refused = formats.refusal(replace(quantization, **{key: value}))  # type: ignore[arg-type]
        if refused is None or refused[0] != key:
            return f"leave `{key}` out" if value in ("", None, _DEFAULTS[key]) else f"`{key} = {toml(value)}`"
    return "`mtpforge schemes` lists schemes that are whole"


def toml(value: object) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return (
            hex(value) if isinstance(value, int) and abs(value) > _LARGEST else str(value)
        )  # str() ends at 4,300 digits
    if isinstance(value, list | tuple):
        return f"[{', '.join(toml(part) for part in value)}]"
    if isinstance(value, dict):
        return "a table"
    return '"' + "".join(_ESCAPES.get(c, c if c.isprintable() else f"\\U{ord(c):08x}") for c in str(value)) + '"'


_LONG_WORD: Final = 40  # difflib takes seconds for a word of a megabyte
_ESCAPES: Final = {'"': '\\"', "\\": "\\\\"}
