"""Which blocks of a tensor were touched, and how often."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

Box: TypeAlias = tuple[tuple[int, int], ...]  # one (start, stop) per dimension


def box_of(view: torch.Tensor, base: torch.Tensor) -> Box | None:
    """`view` as index ranges of the tensor `base` that it looks into, or None where it is no such block."""
    offset = int(view.storage_offset()) - int(base.storage_offset())
    shape = tuple(base.shape)
    wide = sorted((d for d in range(len(shape)) if shape[d] > 1), key=base.stride, reverse=True)
    starts, extents = [0] * len(shape), [1] * len(shape)
    for d in wide:
        if base.stride(d):
            starts[d], offset = divmod(offset, base.stride(d))
    free = {base.stride(d): d for d in wide}
    if offset or len(free) != len(wide):
        return None
    for d, size in enumerate(view.shape):
        if size != 1:
            found = free.pop(view.stride(d), None)
            if found is None:
                return None
            extents[found] = size
    box = tuple((start, start + extent) for start, extent in zip(starts, extents, strict=True))
    return None if any(stop > n for (_, stop), n in zip(box, shape, strict=True)) else box


class Coverage:
    """The boxes of one tensor that were touched; `unknown` counts touches that no box describes."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        self.boxes: list[Box] = []
        self.unknown = 0

    @property
    def touched(self) -> bool:
        """Whether anything was."""
        return bool(self.boxes or self.unknown)

    def add(self, box: Box | None) -> None:
        """Note one touch."""
        if box is None:
            self.unknown += 1
        else:
            self.boxes.append(box)

    def join(self, other: Coverage) -> None:
        """Add the touches of another rank."""
        self.boxes += other.boxes
        self.unknown += other.unknown

    def missing(self) -> list[Box]:
        """Blocks never touched; `[()]` for an untouched scalar."""
        import numpy as np

        if 0 in self.shape:
            return []
        if not self.shape:
            return [] if self.touched else [()]
        if self.boxes == [tuple((0, n) for n in self.shape)]:
            return []
        edges, grid = self._counts()
        return [tuple((edges[d][i], edges[d][i + 1]) for d, i in enumerate(cell)) for cell in np.argwhere(grid == 0)]

    def repeated(self) -> bool:
        """Whether any element was touched twice."""
        if not self.shape or 0 in self.shape:
            return len(self.boxes) > 1
        return len(self.boxes) > 1 and bool((self._counts()[1] > 1).any())

    def _counts(self) -> tuple[list[list[int]], NDArray[np.int32]]:
        """Block edges per dimension, and how many boxes cover each cell of that grid."""
        import numpy as np

        edges = [sorted({0, n} | {edge for box in self.boxes for edge in box[d]}) for d, n in enumerate(self.shape)]
        places = [{edge: i for i, edge in enumerate(found)} for found in edges]
        grid = np.zeros([len(found) - 1 for found in edges], dtype=np.int32)
        for box in self.boxes:
            grid[tuple(slice(places[d][lo], places[d][hi]) for d, (lo, hi) in enumerate(box))] += 1
        return edges, grid
