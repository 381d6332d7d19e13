"""How a layer routes tokens to experts, and whether a list of experts to keep can serve that routing.

Experts may stand in `n_group` groups of equal size, in the order of their numbers; a token is then sent to the best
experts of its `topk_group` best groups, a group being worth the sum of its two best.
Source: DeepSeek-V3 inference/model.py, Gate; transformers models/glm_moe_dsa (5.23.0), GlmMoeDsaMoE.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from mtpforge.errors import MtpforgeError, Where
from mtpforge.families.sizes import whole_number

_TOP_K: Final = "num_experts_per_tok"
_GROUPS: Final = ("n_group", "topk_group")
_WORTH: Final = 2  # experts that make the worth of a group
_SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class Routing:
    """Experts of one token, groups of experts, groups that one token may use."""

    top_k: int
    n_group: int = 1
    topk_group: int = 1

    def refuse_count(self, n_kept: int) -> None:
        """MtpforgeError where so many experts cannot serve the routing: too few, or no equal share for every group."""
        if n_kept < self.top_k:
            raise MtpforgeError(
                f"{n_kept} experts are fewer than the {self.top_k} that every token is sent to",
                where=Where("config.json", inside=f"`{_TOP_K}`"),
                why="the router could not fill its choice",
                fix=f"keep at least {self.fewest}: `--experts {self.fewest}`",
            )
        if n_kept % self.n_group:
            near = max(n_kept // self.n_group * self.n_group, self.fewest)
            raise MtpforgeError(
                f"{n_kept} experts cannot be shared equally by {self.n_group} groups",
                where=Where("config.json", inside="`n_group`"),
                why="engines cut the experts into groups of one size",
                fix=f"keep a multiple of {self.n_group}: `--experts {near}`",
            )
        if n_kept < self.fewest:
            raise MtpforgeError(
                f"{n_kept} experts in {self.n_group} groups cannot fill the choice of {self.top_k} for every token",
                where=Where("config.json", inside="`topk_group`"),
                why=f"a token may use {self.topk_group} groups of {n_kept // self.n_group}, and the worth of a group is"
                f" the sum of its {_WORTH} best",
                fix=f"keep at least {self.fewest}: `--experts {self.fewest}`",
            )

    @property
    def fewest(self) -> int:
        """The smallest number of experts with which every token finds its choice."""
        if self.n_group == 1:
            return self.top_k
        return self.n_group * max(-(-self.top_k // self.topk_group), _WORTH)

    def refuse_list(self, kept: Sequence[int], n_stored: int) -> None:
        """MtpforgeError where a list of experts is no choice out of `n_stored`, or cannot serve the routing."""
        wrong = [number for number in kept if not 0 <= number < n_stored]
        if wrong:
            listed = ", ".join(map(str, wrong[:_SHOWN]))
            raise MtpforgeError(
                f"the source has no expert {listed}",
                why=f"its experts are numbered 0 to {n_stored - 1}",
                fix="correct the list of experts to keep",
            )
        if list(kept) != sorted(set(kept)):
            raise MtpforgeError(
                "the experts to keep are not in ascending order, each once",
                why="rows of the router and numbers of the experts follow the source's order",
                fix="sort the list of experts to keep, each number once",
            )
        self.refuse_count(len(kept))
        size, share = n_stored // self.n_group, len(kept) // self.n_group
        counts = [sum(number // size == group for number in kept) for group in range(self.n_group)]
        if n_stored % self.n_group or any(count != share for count in counts):
            raise MtpforgeError(
                f"of the {self.n_group} groups of experts {', '.join(map(str, counts))} stay",
                where=Where("config.json", inside="`n_group`"),
                why="engines cut what is left into groups of one size: experts would change their group",
                fix=f"keep {share} of every group of {size}",
            )


def routing(*configs: Mapping[str, object]) -> Routing:
    """The routing that the first of these configs states (text parts); a field may stand in a later one.

    Absent groups are one group. An absent `num_experts_per_tok` is an error.
    """
    merged: dict[str, object] = {}
    for config in reversed(configs):
        merged |= {key: config[key] for key in (_TOP_K, *_GROUPS) if config.get(key) is not None}
    groups = (whole_number(merged, key) if key in merged else 1 for key in _GROUPS)
    return Routing(whole_number(merged, _TOP_K), *groups)
