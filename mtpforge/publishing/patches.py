"""What changes in a JSON file, as data: keys of its top level that are set, and keys that go.

The file that comes out depends on the old one and the patch alone, so whoever has both makes the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from mtpforge.errors import MtpforgeError, Where


@dataclass(frozen=True, slots=True)
class Patch:
    """set: key -> its new value, whole. remove: keys that go."""

    set: dict[str, object] = field(default_factory=dict)
    remove: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether it changes anything."""
        return bool(self.set or self.remove)

    def applied(self, old: Mapping[str, object]) -> dict[str, object]:
        """The patched object; keys stay in their order, new ones follow."""
        return {key: value for key, value in {**old, **self.set}.items() if key not in self.remove}


def difference(old: Mapping[str, object], new: Mapping[str, object]) -> Patch:
    """The patch that makes the new object of the old one."""
    changed = {key: value for key, value in new.items() if key not in old or old[key] != value}
    return Patch(json.loads(json.dumps(changed)), tuple(key for key in old if key not in new))


def read(stated: object, where: Where) -> Patch:
    """A patch out of a JSON document."""
    match stated:
        case {"set": dict(values), "remove": list(keys)} if all(isinstance(key, str) for key in keys):
            return Patch(values, tuple(keys))
    raise MtpforgeError("the patch is no table of `set` and `remove`", where=where, fix="make the delta again")


def document(value: Mapping[str, object]) -> bytes:
    """A JSON file as configs are written."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
