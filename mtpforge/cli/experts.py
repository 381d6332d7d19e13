"""What build and prune-plan share: the experts that stay, by the three options about them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from mtpforge.cli.output import Screen

if TYPE_CHECKING:
    from mtpforge.checkpoint.checkpoint import Checkpoint
    from mtpforge.pruning.choosing import Pruned, Wish


def wish(screen: Screen, experts: int | str, prune_by: str | None, keep_experts: str | None) -> Wish:
    """The options as the library takes them: a list is read, a checkpoint that was pruned before is opened."""
    from mtpforge.checkpoint import open_checkpoint
    from mtpforge.pruning import lists
    from mtpforge.pruning.choosing import Wish

    kept = copy = None
    if keep_experts is not None:
        is_list = keep_experts.endswith(".json") or Path(keep_experts).is_file()
        kept = lists.read(Path(keep_experts)) if is_list else None
        copy = None if is_list else open_checkpoint(keep_experts, offline=screen.offline)
    return Wish(cast("int | Literal['match', 'keep']", experts), prune_by or "", kept, copy)


def show(screen: Screen, chosen: Pruned) -> None:
    """One line about the experts, where some go."""
    if not chosen.keeps_all:
        screen.line(f"experts {len(chosen.kept)} of {chosen.n_stored}   {chosen.reason}")


def kept(screen: Screen, source: Checkpoint, target: Checkpoint, asked: Wish) -> tuple[int, ...] | None:
    """The experts that a draft keeps, shown; None for all."""
    from mtpforge.pruning.choosing import pruned

    chosen = pruned(source, target, asked)
    show(screen, chosen)
    return None if chosen.keeps_all else chosen.kept
