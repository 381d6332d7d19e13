"""Sizes of a layer as expressions of config keys: `num_attention_heads * (qk_nope_head_dim + qk_rope_head_dim)`."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Final

from mtpforge.errors import MtpforgeError, Where, shown

_LARGEST: Final = 1 << 31  # no axis of a weight comes near; a config that claims more is damaged


def evaluate(expression: str, config: Mapping[str, object]) -> int:
    """The value of an expression of config keys, whole numbers, `+`, `*` and parentheses.

    A key that the config lacks, or that holds no positive whole number, is an error that names the key.
    """
    value = _value(ast.parse(expression, mode="eval").body, config)
    if value > _LARGEST:
        raise MtpforgeError(
            f"the config gives a layer size of {value}",
            where=Where("config.json", inside=f"`{expression}`"),
            why="no axis is that long",
        )
    return value


def keys(expression: str) -> tuple[str, ...]:
    """The config keys of an expression, in order."""
    return tuple(node.id for node in ast.walk(ast.parse(expression, mode="eval")) if isinstance(node, ast.Name))


def flag(config: Mapping[str, object], key: str) -> bool:
    """True or false under a key; its absence, or anything else, is an error."""
    value = config.get(key)
    if not isinstance(value, bool):
        raise MtpforgeError(
            f"`{key}` is {shown(repr(value))}, not true or false" if key in config else f"the config has no `{key}`",
            where=Where("config.json", inside=f"`{key}`"),
            why="tensors of the MTP layer depend on it",
            fix=f"state `{key}` in config.json, as the published base model does",
        )
    return value


def whole_number(config: Mapping[str, object], key: str) -> int:
    """A positive whole number of the config; its absence, or anything else under that key, is an error."""
    if key not in config:
        raise MtpforgeError(
            f"the config has no `{key}`",
            where=Where("config.json", inside=f"`{key}`"),
            why="the sizes of the MTP layer depend on it",
            fix=f"add `{key}` to config.json, as the published base model states it",
        )
    value = config[key]
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise misstated(key, value, "a positive whole number")
    return value


def misstated(key: str, value: object, kind: str) -> MtpforgeError:
    """The error for a key of config.json that holds something else than its kind."""
    return MtpforgeError(
        f"`{key}` is {shown(repr(value))}, not {kind}",
        where=Where("config.json", inside=f"`{key}`"),
        fix=f"correct `{key}` in config.json, as the published base model states it",
    )


def _value(node: ast.expr, config: Mapping[str, object]) -> int:
    match node:
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _value(left, config) + _value(right, config)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _value(left, config) * _value(right, config)
        case ast.Name(id=key):
            return whole_number(config, key)
        case ast.Constant(value=int(number)):
            return number
        case _:
            raise ValueError(f"no size expression: {ast.unparse(node)}")
