"""No engine: a plain layer on its own, of which nothing is demanded but what its family says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NoReturn

from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.engines.engine import Engine, Serving
from mtpforge.errors import MtpforgeError
from mtpforge.families import Family
from mtpforge.report import Report, Trap
from mtpforge.scheme import Scheme
from mtpforge.tensors import Spec


def standalone(engines: Iterable[Engine]) -> Engine:
    """The record that stands where no engine was named. The layer's config has the fields of every engine's."""
    known = tuple(engines)

    def draft_config(
        served: Checkpoint, source_config: Mapping[str, object], family: Family, scheme: Scheme, n_experts: int
    ) -> dict[str, object]:
        config: dict[str, object] = {}
        for engine in (
            engine for engine in reversed(known) if engine.runs(family)
        ):  # where two differ, the default one has the last word
            config |= engine.draft_config(served, source_config, family, scheme, n_experts)
        return dict(sorted(config.items()))

    return Engine(
        name="the family",
        versions="",
        package="",
        demands=_unserved,
        runs=lambda _: True,
        refuse_misstated=lambda *_: None,
        restate=_unserved,
        told_config=lambda target: target.config,
        carrying_config=lambda target: target.config,
        carry=_unserved,
        disturbed=lambda *_: "",
        merged=_unserved,
        stated=_unserved,
        draft_config=draft_config,
        target_traps=_no_traps,
        draft_traps=_no_traps,
        block_traps=_no_traps,
        serving_traps=_no_traps,
        path_traps=_no_traps,
        serve=_unserved,
        memory=_memory,
        never_quantized=_nothing,
        decoded_on_load=_nothing,
        is_installed=lambda: False,
        ask=_unasked,
        most_experts="",
        fewer_experts=lambda _: "",
        without_layer=lambda _: "",
    )


def _no_traps(*_: object) -> tuple[Trap, ...]:
    return ()


def _nothing(_: Family) -> dict[str, frozenset[str]]:
    return {}


def _memory(_family: Family, _config: Mapping[str, object], specs: Mapping[str, Spec], _serving: Serving) -> int:
    return sum(spec.n_bytes for spec in specs.values())


def _unserved(*_: object) -> NoReturn:
    raise MtpforgeError("a layer on its own is served by no engine", fix="`mtpforge build --target CKPT`")


def _unasked(_draft: Path, _target: Checkpoint, _serving: Serving, _python: str | None) -> Report:
    _unserved()
