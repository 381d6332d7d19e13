"""One step: read, decode, encode, write, a band of rows at a time. Decides nothing; the plan has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mtpforge.building import bad_numbers, dense_tensors, input_scales
from mtpforge.building.device import Lane, Made
from mtpforge.building.encoding import compiled, encoded
from mtpforge.building.output import Output, raw
from mtpforge.building.sample_digests import Samples
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.checkpoint.error_places import errors_by_origin
from mtpforge.formats import FORMATS
from mtpforge.formats.format import BAND_ROWS
from mtpforge.methods import METHODS
from mtpforge.planning.steps import Move, Step, Write
from mtpforge.tensors import DTYPES
from mtpforge.weights import Band, Buffers, Reader, StoredWeight
from mtpforge.writing.folder import DraftFolder

if TYPE_CHECKING:
    from mtpforge.weights.kernels import RowKernels


class Executor:
    """Executes steps for one thread. `advance` is called between bands: it may stop the step."""

    def __init__(
        self,
        checkpoints: Mapping[str, Checkpoint],
        buffers: Buffers,
        folder: DraftFolder,
        samples: Samples,
        advance: Callable[[int], None],
        kernels: RowKernels | None = None,
        lane: Lane | None = None,
        factor: Callable[[str], Tensor | None] = lambda _: None,
    ) -> None:
        """`kernels`, `lane`: what works faster than the plain functions, which take and explain what these leave.

        factor: of the inputs of a module, for codes that are fitted to them.
        """
        self._checkpoints, self._folder, self._samples, self._advance = checkpoints, folder, samples, advance
        self._reader = Reader(lambda ref, into: checkpoints[ref.origin].read(ref, into), buffers)
        self._kernels, self._lane, self._factor = kernels, lane, factor

    def __call__(self, index: int, step: Step) -> None:
        """Write every tensor of the step, or find that an earlier run has."""
        with errors_by_origin(self._checkpoints):
            self._execute(index, step)

    def _execute(self, index: int, step: Step) -> None:
        n_bytes = sum(w.spec.n_bytes for w in step.writes)
        if not self._is_finished(index, step):
            outputs = self._outputs(step)
            for carry in step.carries:
                dense_tensors.carry(self._reader, carry, outputs[carry.write.name])
            for scale in step.input_scales:
                input_scales.write(self._reader, scale, outputs[scale.write.name])
            self._moves(step, outputs)
            self._folder.finish(index, {name: o.digest() for name, o in outputs.items()}, n_bytes)
        for move in step.moves:
            self._observe_rest(move)
        self._advance(n_bytes)

    def _outputs(self, step: Step) -> dict[str, Output]:
        axes: dict[str, int] = {}
        for move in step.moves:
            parts = {w.suffix: w.spec for w in move.writes}
            lie = FORMATS[move.wanted.format].rows_in_parts(move.shape, move.wanted, parts)
            axes |= {w.name: lie[w.suffix].axis for w in move.writes if w.suffix in lie}
        return {w.name: Output(self._folder, w, axes.get(w.name, 0)) for w in step.writes}

    def _weight(self, move: Move) -> StoredWeight:
        return StoredWeight(self._reader, move.reads, move.shape, move.stored)

    def _is_finished(self, index: int, step: Step) -> bool:
        """Whether an earlier run wrote this step, and its bytes are still what the journal says."""
        before = self._folder.finished.get(index)
        return (
            before is not None
            and before.keys() == {w.name for w in step.writes}
            and all(self._folder.sha256(w.name, w.spec) == before[w.name] for w in step.writes)
        )

    def _moves(self, step: Step, outputs: Mapping[str, Output]) -> None:
        if all(m.action == "copy" for m in step.moves) and (not step.ties or self._agree(step)):
            for move in step.moves:
                self._copy(move, outputs)
            return
        moves = step.moves if step.ties else tuple(m for m in step.moves if m.action == "encode")
        for move in step.moves:
            if move not in moves:
                self._copy(move, outputs)
        largest = [self._largest(m) if FORMATS[m.wanted.format].needs_amax(m.wanted) else None for m in moves]
        known = [amax for amax in largest if amax is not None]
        joint = torch.stack(known).amax() if known else None
        for move, amax in zip(moves, largest, strict=True):
            self._encode(move, joint if step.ties and amax is not None else amax, outputs)

    def _agree(self, step: Step) -> bool:
        """Whether the scales that the moves must share are equal as they are stored."""
        shared = {bytes(raw(self._reader.tensor(m.reads[step.tied_suffix]))) for m in step.moves}
        return len(shared) == 1

    def _copy(self, move: Move, outputs: Mapping[str, Output]) -> None:
        """Every part byte for byte, but for what the shape implies, and a widened scale; numbers are looked at."""
        form, by_suffix = FORMATS[move.wanted.format], {w.suffix: w for w in move.writes}
        if form.implied and form.matrix_parts is not None:
            made = form.matrix_parts(move.shape, move.wanted, None)
            for suffix in form.implied:
                outputs[by_suffix.pop(suffix).name].add(made[suffix])
        for band in self._weight(move).bands(_copy_rows(move)):
            self._advance(0)
            bad_numbers.refuse_parts(move, band)
            for suffix, tensor in band.parts.items():
                write = by_suffix.get(suffix)
                if write is not None and (suffix in band.starts or band.first == 0):
                    outputs[write.name].add(_widened(tensor, write))

    def _encode(self, move: Move, amax: Tensor | None, outputs: Mapping[str, Output]) -> None:
        wanted = FORMATS[move.wanted.format]
        if wanted.matrix_parts is None:
            raise AssertionError(f"{move.module}: {wanted.name} is only read")
        named = {w.suffix: outputs[w.name] for w in move.writes}
        matrix = wanted.matrix_parts(move.shape, move.wanted, amax)
        for suffix, tensor in matrix.items():
            named[suffix].add(tensor)
        factor = self._factor(move.module) if METHODS[move.scales].needs_inputs else None
        for band, made in self._encoded(move, matrix):
            with bad_numbers.named(move):
                parts = made or self._plain(move, band, matrix, factor)
            bad_numbers.refuse_cut_off(move, parts)
            for suffix, rows in parts.items():
                named[suffix].add(rows)

    def _encoded(self, move: Move, matrix: Mapping[str, Tensor]) -> Iterator[Made]:
        """Every band with its row parts, None where they are left to the plain functions."""
        if METHODS[move.scales].needs_inputs:  # its products depend on the device: its bytes are the CPU's
            return ((band, None) for band in self._bands(move))
        if self._lane is not None:
            return self._lane.encode(move, self._bands(move), matrix)
        return ((band, self._compiled(move, band, matrix)) for band in self._bands(move))

    def _compiled(self, move: Move, band: Band, matrix: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        if self._kernels is None:
            return None
        if self._samples.wants(move, band) and (values := self._kernels.decode(band)) is not None:
            self._samples.observe(move, band, values)
        return compiled(self._kernels, move, band, matrix)

    def _plain(self, move: Move, band: Band, matrix: Mapping[str, Tensor], factor: Tensor | None) -> dict[str, Tensor]:
        values = band.decoded()
        bad_numbers.refuse_values(move, band, values)
        self._samples.observe(move, band, values)
        return encoded(move, values, matrix, factor)

    def _largest(self, move: Move) -> Tensor:
        """Largest magnitude of the whole weight, float32 scalar."""
        return torch.stack(
            [
                bad_numbers.refuse_values(move, band, band.decoded()) if found is None else found
                for band, found in self._largest_of_bands(move)
            ]
        ).amax()

    def _largest_of_bands(self, move: Move) -> Iterator[tuple[Band, Tensor | None]]:
        if self._lane is not None:
            return self._lane.largest(self._bands(move))
        kernels = self._kernels
        return ((band, kernels.largest(band) if kernels else None) for band in self._bands(move))

    def _bands(self, move: Move) -> Iterator[Band]:
        """The weight as it is stored, band by band, its scales looked at."""
        for band in self._weight(move).bands():
            self._advance(0)
            bad_numbers.refuse_scales(move, band)
            yield band

    def _observe_rest(self, move: Move) -> None:
        """Decode the sampled bands of a weight that was copied, or finished by an earlier run."""
        for first, last in self._samples.missing(move):
            band = self._weight(move).open().band(first, last)
            self._samples.observe(move, band, band.decoded())


def _copy_rows(move: Move) -> int:
    """Rows of a band that is only copied: a multiple of BAND_ROWS, about STEP_BYTES."""
    n_bytes = sum(r.stop - r.start for r in move.reads.values())
    rows = dense_tensors.STEP_BYTES * move.shape[0] // max(n_bytes, 1)
    return max(rows // BAND_ROWS, 1) * BAND_ROWS


def _widened(tensor: Tensor, write: Write) -> Tensor:
    return tensor.to(getattr(torch, DTYPES[write.spec.dtype].torch))
