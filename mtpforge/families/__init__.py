"""Families: the table by model_type. A family is one TOML file of this folder."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from mtpforge.errors import MtpforgeError, Where, shown
from mtpforge.families.family import Dropped, Family, Module, ModuleRow, Plain, PlainRow
from mtpforge.families.other_layouts import other_layout

__all__ = ["Dropped", "Family", "Module", "Plain", "families", "family_of"]


@cache
def families() -> tuple[Family, ...]:
    """Every family that mtpforge knows, by file name."""
    found = (file for file in files(__name__).iterdir() if file.name.endswith(".toml"))
    return tuple(_family(file.read_text(encoding="utf-8")) for file in sorted(found, key=lambda f: f.name))


def family_of(config: Mapping[str, object]) -> Family:
    """The family of a config.json, by `model_type` of its top, else of its `text_config`.

    A model_type that no family names is an error: what is different there, or else which types are known.
    """
    nested = config.get("text_config")
    places = (config, nested) if isinstance(nested, Mapping) else (config,)
    for place in places:
        for family in families():
            if place.get("model_type") in family.model_types:
                _refuse_foreign(family, config)
                return family
        if layout := other_layout(place):
            raise _refused(f"no draft is made for {layout.models}", layout.why, layout.instead)
    known = ", ".join(sorted(t for family in families() for t in family.model_types))
    what = f"no MTP layer is known for model_type `{shown(config.get('model_type'))}`"
    raise _refused(what, f"known: {known}", "name a checkpoint of one of them")


def _refuse_foreign(family: Family, config: Mapping[str, object]) -> None:
    """MtpforgeError for a key by whose mere presence, null or not, engines build another layer than the family's."""
    for key, row in family.foreign.items():
        if key in family.text(config):
            raise MtpforgeError(
                f"a config of {family.name} has `{key}`",
                where=Where("config.json", inside=f"`{key}`"),
                why=row["why"],
                fix=row["fix"],
            )


def _refused(what: str, why: str, fix: str) -> MtpforgeError:
    return MtpforgeError(what, where=Where("config.json", inside="`model_type`"), why=why, fix=fix)


def _family(text: str) -> Family:
    table = tomllib.loads(text)
    return Family(
        name=table["name"],
        model_types=tuple(table["model_types"]),
        architecture=table["architecture"],
        stem=table["stem"],
        base_models={version: tuple(names) for version, names in table["base_models"].items()},
        nextn=table["layer"],
        expert_keys=tuple(table["expert_keys"]),
        module_rows=tuple(ModuleRow(**{**row, "shape": tuple(row["shape"])}) for row in table["modules"]),
        plain_rows=tuple(PlainRow(**{**row, "shape": tuple(row["shape"])}) for row in table["plain"]),
        dropped=tuple(Dropped(**{**row, "shape": tuple(row.get("shape", ()))}) for row in table["dropped"]),
        main_rows=tuple(ModuleRow(**{**row, "shape": tuple(row["shape"])}) for row in table.get("main", ())),
        is_runnable=table.get("runnable", False),
        foreign=table.get("foreign", {}),
    )
