"""A GPU: the torch functions of the formats run there, on the same bands, and make the same bytes.

    disk -> pinned buffer -> device: decode, encode -> pinned memory -> hash, file

A worker has a lane: a stream of its own and a reader with two buffers. While the device works on one band
the thread reads the next; it waits for the band's event, never for the device. Numbers of a whole matrix (a global
scale) are made on the CPU from the largest magnitude that the device found. What a band's codes cannot show (a NaN, a
number too large) sends it to the plain path on the CPU, which names it.

Why the bytes are equal: every operation on the device rounds each number by itself, as IEEE 754 says: products,
quotients of two tensors, reciprocals, roundings, casts; minimum and maximum depend on no order. What would differ
is kept away: torch divides by a Python number through its reciprocal there (scales.over), and sums and powers have the
device's own order and error (searching.py: hqq stays on the CPU, mse adds in an order of its own).
tests/formats/test_devices.py holds the list of operations.

Bands are the CPU's, from which the reference check draws: 4 M weights, 16 MiB of float32, which the second cache of a
large GPU holds. A thread has one band at a time on the device, with its temporaries 128 MiB at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import torch
from torch import Tensor

from mtpforge import errors
from mtpforge.building import bad_numbers
from mtpforge.building.encoding import encoded, encoded_weights
from mtpforge.building.sample_digests import Samples
from mtpforge.errors import MtpforgeError
from mtpforge.planning.steps import Move, Step
from mtpforge.weights import Band

# Starting CUDA takes seconds, in which the compiled kernels of a few cores encode billions of weights.
WORTH_A_GPU: Final = 4 << 30
THREADS: Final = 8  # read, hash and write beside one device; each keeps a band there

Work: TypeAlias = Callable[[Band], dict[str, Tensor]]
Made: TypeAlias = tuple[Band, dict[str, Tensor] | None]

# Keys beside the suffixes of parts, which have no spaces.
_LARGEST, _VALUES = "largest magnitude", "decoded values"


@dataclass(frozen=True, slots=True)
class Device:
    """What a lane needs of a device.

    host(n): uint8 [n] in host memory that the device can copy from by itself. stream(): for one lane, what opens the
    stream that its work is queued on. copy_in, copy_out: queue a copy to the device, to host memory. mark(): what waits
    until everything that is queued so far has been done.
    """

    name: str
    host: Callable[[int], Tensor]
    stream: Callable[[], Callable[[], AbstractContextManager[object]]]
    copy_in: Callable[[Tensor], Tensor]
    copy_out: Callable[[Tensor], Tensor]
    mark: Callable[[], Callable[[], None]]


def choose(name: str, steps: tuple[Step, ...]) -> Device | None:
    """The device that `--device` names, None for the CPU. MtpforgeError, code 5, where it is not there."""
    if name == "cpu" or (name == "auto" and encoded_weights(steps) < WORTH_A_GPU):
        return None
    index, count = int(name.partition(":")[2] or 0), torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index < count:
        return _cuda(index)
    if name == "auto":
        return None
    built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
    raise MtpforgeError(
        f"there is no device {name}",
        where="option `--device`",
        why=f"torch {torch.__version__} {built} and finds {count} devices",
        fix="`--device cpu` makes the same bytes",
        code=errors.MACHINE,
    )


def _cuda(index: int) -> Device:
    device = torch.device("cuda", index)

    def host(n_bytes: int) -> Tensor:
        return torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True)

    def stream() -> Callable[[], AbstractContextManager[object]]:
        own = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return lambda: torch.cuda.stream(own)

    def copy_in(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    def copy_out(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)

    def mark() -> Callable[[], None]:
        # a thread that waits sleeps: others hash meanwhile
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        event.record()
        return event.synchronize

    return Device(str(device), host, stream, copy_in, copy_out, mark)


@contextmanager
def told(device: Device | None) -> Iterator[None]:
    """Say what to do where the device fails; finished steps are kept, and a CPU can go on from them."""
    try:
        yield
    except RuntimeError as failure:
        is_full = isinstance(failure, torch.OutOfMemoryError)
        if device is None or not (is_full or "CUDA" in str(failure)):
            raise
        fewer = "fewer `--workers`, or " if is_full else ""
        raise MtpforgeError(
            f"the memory of {device.name} is full" if is_full else f"{device.name} failed",
            where="option `--device`",
            why=str(failure).splitlines()[0],
            fix=f"{fewer}`--device cpu`, which goes on with what is finished and makes the same bytes",
            code=errors.MACHINE,
        ) from failure


class Lane:
    """One thread's way through a device. None instead of a result means: the plain path explains this band."""

    def __init__(self, device: Device, samples: Samples) -> None:
        self._device, self._samples = device, samples
        self._stream = device.stream()

    def encode(self, move: Move, bands: Iterable[Band], matrix: Mapping[str, Tensor]) -> Iterator[Made]:
        """Every band with its row parts in the wanted format, in host memory."""

        def work(band: Band) -> dict[str, Tensor]:
            values = band.decoded()
            found = {_LARGEST: bad_numbers.largest(values)}
            if self._samples.wants(move, band):
                found[_VALUES] = values
            return found | encoded(move, values, self._copied_in(matrix))

        for band, made in self._through(bands, work):
            if made is None or not made.pop(_LARGEST).isfinite():
                yield band, None
                continue
            if _VALUES in made:
                self._samples.observe(move, band, made.pop(_VALUES))
            yield band, made

    def largest(self, bands: Iterable[Band]) -> Iterator[tuple[Band, Tensor | None]]:
        """Every band with its largest magnitude, float32 scalar in host memory."""
        for band, made in self._through(bands, lambda band: {_LARGEST: bad_numbers.largest(band.decoded())}):
            yield band, made[_LARGEST] if made is not None and made[_LARGEST].isfinite() else None

    def _through(self, bands: Iterable[Band], work: Work) -> Iterator[Made]:
        """Every band with what `work` made of its copy; None where it refused. The next band is read meanwhile."""
        before: Callable[[], Made] | None = None
        for band in bands:
            started = self._start(band, work)
            if before is not None:
                yield before()
            before = started
        if before is not None:
            yield before()

    def _start(self, band: Band, work: Work) -> Callable[[], Made]:
        """Queue the copies and the work of a band; what comes back waits for them."""
        with self._stream():
            found = None
            with suppress(MtpforgeError):  # told by the plain path, which knows names
                made = work(replace(band, parts=self._copied_in(band.parts)))
                found = {suffix: self._device.copy_out(tensor) for suffix, tensor in made.items()}
            wait = self._device.mark()

        def arrived() -> Made:
            wait()
            return band, found

        return arrived

    def _copied_in(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {suffix: self._device.copy_in(tensor) for suffix, tensor in parts.items()}
