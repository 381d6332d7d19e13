"""Scheme: which module of the layer is stored how, and why. Presets are TOML files, one a scheme.

load("int4-g32-asym" | "./mine.toml") -> Scheme
dumps(scheme)                         -> the TOML text of a scheme
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, NoReturn

from mtpforge import errors
from mtpforge.errors import MtpforgeError, shown
from mtpforge.formats import FORMATS, label
from mtpforge.tensors import DTYPES, Quantization

_SUFFIX: Final = ".toml"
_DEFAULTS: Final[dict[str, object]] = {f.name: f.default for f in fields(Quantization) if f.name != "format"}
_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "strategy": ("tensor", "channel", "group", "block"),
    "input_scale": ("none", "dynamic", "static"),
    "dtype": ("BF16", "F16", "F32"),
    "scale_dtype": tuple(DTYPES),
}


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
        # another symmetry is another scheme, however near its name
        alike = [name for name in names() if name.rpartition("-")[2] == name_or_path.rpartition("-")[2]]
        near = get_close_matches(name_or_path, alike or names(), n=1)
        raise MtpforgeError(
            f"no scheme is called `{shown(name_or_path)}`",
            why=f"presets: {', '.join(names())}",
            fix=f"did you mean `{near[0]}`?" if near else "a file of your own is named by its path: `./mine.toml`",
            code=errors.USAGE,
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MtpforgeError(
            "the scheme file cannot be read",
            where=shown(path),
            why=getattr(error, "strerror", None) or "it is not UTF-8 text",
            fix="`mtpforge schemes` lists the presets",
        ) from error
    return loads(text, name=path.stem, where=str(path))


def loads(text: str, *, name: str, where: str) -> Scheme:
    """A scheme from TOML text; `where` is the file in messages."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise MtpforgeError(
            "the scheme file is no TOML",
            where=shown(where),
            why=shown(error),
            fix="`mtpforge schemes` shows how one looks",
        ) from error
    reader = _Reader(text, where)
    for key in table:
        if key not in ("description", "rules"):
            reader.refuse(f"`{shown(key)}` is no key of a scheme", "known: description, rules", key)
    rows, description = table.get("rules"), table.get("description", "")
    if not isinstance(description, str):
        reader.refuse("`description` must be a text", "", "description")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        reader.refuse("the scheme has no rules", "every weight matrix of the layer needs one: `[[rules]]`", "rules")
    rules = tuple(reader.rule(row, index) for index, row in enumerate(rows))
    return Scheme(name, rules, " ".join(description.split()))


def dumps(scheme: Scheme) -> str:
    """The TOML text of a scheme: `loads` of it is the same scheme."""
    lines = [f"description = {_toml(scheme.description)}"]
    for rule in scheme.rules:
        lines += ["", "[[rules]]", f"pattern = {_toml(rule.pattern)}", f"format = {_toml(rule.quantization.format)}"]
        for key, default in _DEFAULTS.items():
            value = getattr(rule.quantization, key)
            if value != default:
                lines.append(f"{key} = {_toml(value)}")
        lines.append(f"reason = {_toml(rule.reason)}")
    return "\n".join(lines) + "\n"


def name_of(rules: Iterable[Rule]) -> str:
    """A short name for rules: that of the preset that says the same, else what the most demanding rules say."""
    rules = tuple(rules)
    for preset in names():
        known = load(preset)
        if all(known.of(rule.pattern).quantization == rule.quantization for rule in rules):
            return preset
    kinds = sorted({label(r.quantization) for r in rules if not r.quantization.is_dense})
    return "-and-".join(kind.lower().replace(" ", "-").replace("symmetric", "sym") for kind in kinds)


def _folder() -> Path:
    """Where the presets lie: inside the wheel, or beside the package in the repository."""
    package = Path(__file__).parent
    carried = package / "_schemes"
    return carried if carried.is_dir() else package.parent / "schemes"


@dataclass(frozen=True, slots=True)
class _Reader:
    """Rules out of parsed TOML, with the lines of the text for messages."""

    text: str
    where: str

    def rule(self, row: Mapping[str, object], index: int) -> Rule:
        pattern, reason = row.get("pattern"), row.get("reason", f"scheme {Path(self.where).stem}")
        if not isinstance(pattern, str) or not pattern:
            self.refuse("a rule has no pattern", 'e.g. pattern = "mlp.experts.*"', "pattern", index)
        if not isinstance(reason, str):
            self.refuse("`reason` must be a text", "", "reason", index)
        stored_as = row.get("format")
        if stored_as not in FORMATS:
            self.refuse(f"`{shown(stored_as)}` is no format", f"known: {', '.join(sorted(FORMATS))}", "format", index)
        values: dict[str, object] = {"format": stored_as}
        for key, value in row.items():
            if key in ("pattern", "reason", "format"):
                continue
            if key not in _DEFAULTS:
                self.refuse(f"`{shown(key)}` is no key of a rule", f"known: {', '.join(_DEFAULTS)}", key, index)
            values[key] = self.value(key, value, index)
        quantization = Quantization(**values)  # type: ignore[arg-type]  # each was checked by `value`
        self.whole(quantization, index)
        return Rule(pattern, quantization, reason)

    def value(self, key: str, value: object, index: int) -> object:
        """A value of the type and range that its key wants."""
        is_number = isinstance(value, int) and not isinstance(value, bool) and value > 0
        match key:
            case "bits" | "group_size" if is_number:
                return value
            case "symmetric" if isinstance(value, bool):
                return value
            case "block" if isinstance(value, list) and [type(n) for n in value] == [int, int] and min(value) > 0:
                return tuple(value)
            case _ if key in _WORDS and value in _WORDS[key]:
                return value
        wanted = {
            "bits": "a positive whole number",
            "group_size": "a positive whole number",
            "symmetric": "true or false",
            "block": "two positive whole numbers, e.g. [128, 128]",
        }.get(key) or f"one of {', '.join(_WORDS[key])}"
        return self.refuse(f"`{key}` is {shown(repr(value))}", f"it must be {wanted}", key, index)

    def whole(self, quantization: Quantization, index: int) -> None:
        """Refuse what no format can lay out: a dense rule without dtype, a group or block strategy without its size."""
        if quantization.is_dense and not quantization.dtype:
            self.refuse("a dense rule needs a `dtype`", 'e.g. dtype = "BF16"', "format", index)
        if not quantization.is_dense and not quantization.strategy:
            self.refuse(
                "a quantized rule needs a `strategy`", f"one of {', '.join(_WORDS['strategy'])}", "format", index
            )
        if (quantization.strategy == "group") != (quantization.group_size is not None):
            self.refuse('`strategy = "group"` and `group_size` go together', "", "strategy", index)
        if (quantization.strategy == "block") != (quantization.block is not None):
            self.refuse('`strategy = "block"` and `block` go together', "", "strategy", index)

    def refuse(self, what: str, why: str, key: str, index: int | None = None) -> NoReturn:
        line = self.line(key, index)
        raise MtpforgeError(
            what,
            where=f"{shown(self.where)}{f', line {line}' if line else ''}",
            why=why,
            fix="`mtpforge schemes` shows how a scheme looks",
        )

    def line(self, key: str, index: int | None) -> int | None:
        """Line of a key (within the index-th `[[rules]]`, or before the first), else of the table's own header."""
        lines = self.text.splitlines()
        heads = [n for n, line in enumerate(lines) if re.match(r"\s*\[\[\s*rules\s*\]\]", line)]
        bounds = [*heads, len(lines)]
        start, stop = (0, bounds[0]) if index is None or index >= len(heads) else (heads[index], bounds[index + 1])
        named = (n for n in range(start, stop) if re.match(rf"\s*\"?{re.escape(key)}\"?\s*=", lines[n]))
        head = None if index is None or index >= len(heads) else heads[index]
        found = next(named, head)
        return None if found is None else found + 1


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, tuple):
        return f"[{', '.join(_toml(part) for part in value)}]"
    return '"' + "".join(_ESCAPES.get(c, c if c.isprintable() else f"\\u{ord(c):04x}") for c in str(value)) + '"'


_ESCAPES: Final = {'"': '\\"', "\\": "\\\\"}
