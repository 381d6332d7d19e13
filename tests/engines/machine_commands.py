"""Commands of every machine beside the stored target configs, for tests and for the engines' own parsers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

from mtpforge.drafting import deploying
from mtpforge.engines import ENGINES, Serving
from mtpforge.engines.command import Command
from mtpforge.engines.hardware import Deployment, machine_of, machines, ranks
from mtpforge.errors import MtpforgeError
from mtpforge.families import family_of

CONFIGS = Path(__file__).parents[1] / "data" / "configs"
INDEX = json.dumps({"metadata": {"total_size": 400 * 10**9}}).encode()


def names() -> list[str]:
    return sorted(path.name.removesuffix(".config.json") for path in CONFIGS.glob("target-*.config.json"))


def target(name: str, index: bytes = INDEX) -> SimpleNamespace:
    config = json.loads((CONFIGS / f"{name}.config.json").read_text())
    return SimpleNamespace(
        config=config,
        quantization=config.get("quantization_config") or {},
        names=frozenset(),
        label=f"org/{name}",
        location=f"org/{name}",
        revision="",
        is_restated=False,
        has_headers=False,
        small_file=lambda file: index if file.endswith(".index.json") else None,
    )


def command(engine: str, served: SimpleNamespace, asked: Deployment, serving: Serving | None = None) -> Command:
    machine = machine_of(asked)
    serving = serving or Serving(tensor_parallel=ranks(asked, None))
    serving = deploying.serving_on(machine, asked, engine, served, serving)
    scheme = ENGINES[engine].demands(served, None, family_of(served.config))
    made = ENGINES[engine].serve(served, "/drafts/d", serving, scheme)
    return deploying.placed(made, machine, asked, engine, served, scheme, serving)


def asked(name: str, fork: str = "", node: int = 0) -> Deployment:
    return Deployment(name, fork, node, "10.0.0.1" if machines()[name].nodes > 1 else "")


def commands(engine: str) -> Iterator[tuple[str, str, Command]]:
    """Machine, target and command of all pairs that the engine serves at all."""
    for name in names():
        served = target(name)
        for machine in machines():
            try:
                yield machine, name, command(engine, served, asked(machine))
            except MtpforgeError:
                break  # the engine cannot draft beside this target, on whatever machine
