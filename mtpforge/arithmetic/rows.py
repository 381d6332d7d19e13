"""Rows of a weight from one format into another by compiled kernels, a row of 24 KB staying in the first caches.

A decoder makes float32 of one packed row, an encoder packs one float32 row (*_kernels.py), and a driver runs one of
each over the rows of a band through function pointers: one kernel a format, none for pairs. numba compiles a kernel
when it is first wanted, about a second, and keeps it in the user's cache. All of it runs without the
interpreter's lock.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numba
import numpy as np
import numpy.typing as npt
from numba import types

from mtpforge.arithmetic import encoding_kernels, search_kernels
from mtpforge.arithmetic.decoding_kernels import DECODERS, compare

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Band = tuple[Bytes, Floats, int, int]

_MAGNITUDE: Final = np.int32(0x7FFFFFFF)
ENCODERS: Final = encoding_kernels.ENCODERS | search_kernels.ENCODERS
BLOCK_ENCODERS: Final = {"e2m1", "e2m1_modelopt"}  # they leave the factors of a row in work[0]
_lock = threading.Lock()
_ready: dict[Callable[..., Any], Any] = {}


def _run(
    decode: Callable[..., np.int32],
    encode: Callable[..., None],
    codes: Bytes,
    factors: Floats,
    rows_per_factor: int,
    columns: int,
    numbers: Floats,
    size: int,
    out_codes: Bytes,
    out_scales: Bytes,
    out_zeros: Bytes,
    work: Floats,
) -> np.int32:
    """Decode and encode every row; the bits of a bound of the magnitudes."""
    row, largest = work[2][:columns], np.int32(0)
    for r in range(len(codes)):
        largest = max(largest, decode(codes[r], factors[r // rows_per_factor], row))
        encode(row, numbers, size, out_codes[r], out_scales[r], out_zeros[r], work)
    return largest


def _largest(
    decode: Callable[..., np.int32], codes: Bytes, factors: Floats, rows_per_factor: int, columns: int, work: Floats
) -> np.int32:
    """Bits of the largest magnitude, without encoding."""
    row, largest = work[2][:columns], np.int32(0)
    bits = row.view(np.int32)
    for r in range(len(codes)):
        decode(codes[r], factors[r // rows_per_factor], row)
        for j in range(len(bits)):
            magnitude = np.int32(bits[j] & _MAGNITUDE)  # numba would go on in 64 bits
            largest = magnitude if magnitude > largest else largest
    return largest


def _compare(
    decode: Callable[..., np.int32],
    decode_theirs: Callable[..., np.int32],
    codes: Bytes,
    factors: Floats,
    rows_per_factor: int,
    columns: int,
    their_codes: Bytes,
    their_factors: Floats,
    their_rows_per_factor: int,
    absolute: Floats,
    relative: float,
    work: Floats,
    totals: npt.NDArray[np.float64],
) -> np.int32:
    """Decode and compare every row; `totals` gets both sums of `compare`, and how many rows are beyond limits."""
    ours, theirs, largest = work[1][:columns], work[2][:columns], np.int32(0)
    for r in range(len(codes)):
        largest = max(largest, decode(codes[r], factors[r // rows_per_factor], ours))
        largest = max(largest, decode_theirs(their_codes[r], their_factors[r // their_rows_per_factor], theirs))
        squares, reference, beyond = compare(ours, theirs, absolute[r], relative)
        totals[0] += squares
        totals[1] += reference
        totals[2] += beyond
    return largest


def _judge(
    decode: Callable[..., np.int32],
    decode_theirs: Callable[..., np.int32],
    codes: Bytes,
    factors: Floats,
    rows_per_factor: int,
    columns: int,
    their_codes: Bytes,
    their_factors: Floats,
    their_rows_per_factor: int,
    bits: float,
    symmetric: bool,
    limits: Floats,
    work: Floats,
    totals: npt.NDArray[np.float64],
) -> np.int32:
    """Decode and judge every row of searched codes; `totals` gets the sums and the count of `judge`."""
    ours, theirs, rtn, largest = work[1][:columns], work[2][:columns], work[0][:columns], np.int32(0)
    n = factors.shape[1] // 2
    scratch, stored = np.empty(2 * n, np.float32), np.empty(3 * n, np.uint8)
    for r in range(len(codes)):
        largest = max(largest, decode(codes[r], factors[r // rows_per_factor], ours))
        largest = max(largest, decode_theirs(their_codes[r], their_factors[r // their_rows_per_factor], theirs))
        search_kernels.as_rtn(theirs, columns // n, bits, symmetric, rtn, scratch, stored)
        own = factors[r // rows_per_factor]
        squares, reference, by_rtn, n_bad = search_kernels.judge(ours, theirs, rtn, own, bits, limits)
        totals[0] += squares
        totals[1] += reference
        totals[2] += by_rtn
        totals[3] += n_bad
    return largest


def _judge_blocks(
    decode: Callable[..., np.int32],
    decode_theirs: Callable[..., np.int32],
    encode: Callable[..., None],
    codes: Bytes,
    factors: Floats,
    rows_per_factor: int,
    columns: int,
    their_codes: Bytes,
    their_factors: Floats,
    their_rows_per_factor: int,
    numbers: Floats,
    absolute: Floats,
    work: Floats,
    totals: npt.NDArray[np.float64],
) -> np.int32:
    """Decode, encode anew and judge every row; numbers: the encoder's one, then those of `judge_blocks`."""
    n, largest = columns // 16, np.int32(0)
    held, stored = np.empty((4, columns), np.float32), np.empty(2 * columns, np.uint8)
    ours, theirs, nearest, rtn, packed = held[0], held[1], held[2], held[3], stored[: columns // 2]
    for r in range(len(codes)):
        own = factors[r // rows_per_factor]
        largest = max(largest, decode(codes[r], own, ours))
        largest = max(largest, decode_theirs(their_codes[r], their_factors[r // their_rows_per_factor], theirs))
        nearest[:] = theirs
        encoding_kernels.pack_e2m1(nearest, own, packed)
        decode(packed, own, nearest)
        rtn[:] = theirs
        encode(rtn, numbers, 16, packed, stored[columns : columns + n], stored[:0], work)
        decode(packed, work[0][:n], rtn)  # where the encoder has left its factors
        squares, reference, by_rtn, n_bad = search_kernels.judge_blocks(
            ours, theirs, nearest, rtn, absolute[r], numbers
        )
        totals[0] += squares
        totals[1] += reference
        totals[2] += by_rtn
        totals[3] += n_bad
    return largest


_U8, _F32, _F32S, _U8S = types.uint8[::1], types.float32[::1], types.float32[:, ::1], types.uint8[:, ::1]
_DECODER: Final = types.int32(_U8, _F32, _F32)
_ENCODER: Final = types.void(_F32, _F32, types.intp, _U8, _U8, _U8, _F32S)
_BAND: Final = (_U8S, _F32S, types.intp, types.intp)
_RUN: Final = types.int32(
    types.FunctionType(_DECODER),
    types.FunctionType(_ENCODER),
    *_BAND,
    _F32,
    types.intp,
    *(_U8S, _U8S, _U8S),
    _F32S,
)
_COMPARE: Final = types.int32(
    types.FunctionType(_DECODER),
    types.FunctionType(_DECODER),
    *_BAND,
    *_BAND[:3],
    _F32S,
    types.float32,
    _F32S,
    types.float64[::1],
)
_JUDGE: Final = types.int32(
    types.FunctionType(_DECODER),
    types.FunctionType(_DECODER),
    *_BAND,
    *_BAND[:3],
    types.float32,
    types.boolean,
    _F32,
    _F32S,
    types.float64[::1],
)
_JUDGE_BLOCKS: Final = types.int32(
    types.FunctionType(_DECODER),
    types.FunctionType(_DECODER),
    types.FunctionType(_ENCODER),
    *_BAND,
    *_BAND[:3],
    _F32,
    _F32S,
    _F32S,
    types.float64[::1],
)
_LARGEST: Final = types.int32(types.FunctionType(_DECODER), *_BAND, _F32S)


def keep_compiled_in(folder: Path) -> None:
    """Where kernels are kept once they are compiled, or in the user's own NUMBA_CACHE_DIR.

    Each version of the kernels has a folder of its own: numba looks at the file of a function alone, not at the files
    of what it calls, and would go on using what it compiled from an older one.
    """
    files = sorted(Path(__file__).parent.glob("*.py"))
    version = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
    home = Path(os.environ.get("NUMBA_CACHE_DIR", folder))
    numba.config.CACHE_DIR = str(home / f"mtpforge-{version}")  # type: ignore[attr-defined]


def encode_rows(
    decoder: str,
    encoder: str,
    band: Band,
    numbers: Floats,
    size: int,
    out: tuple[Bytes, Bytes, Bytes],
    work: Floats,
) -> int:
    """Run one decoder and one encoder over a band; the bits of a bound of the magnitudes, as float32.

    band: codes [rows, bytes], factors, rows that share factors, columns. out: codes, scales, zeros, [rows, width] each.
    work: float32 [3, columns or more]. From 0x7F800000 on a number may be NaN or Inf, and the output nonsense.
    """
    run = _compiled(_run, _RUN)
    return int(run(_decoder(decoder), _compiled(ENCODERS[encoder], _ENCODER), *band, numbers, size, *out, work))


def largest(decoder: str, band: Band, work: Floats) -> int:
    """Bits of the largest magnitude of a band, 0x7F800000 and more where a number is NaN or Inf."""
    return int(_compiled(_largest, _LARGEST)(_decoder(decoder), *band, work))


def compare_rows(
    decoders: tuple[str, str], ours: Band, theirs: Band, limits: tuple[Floats, float], work: Floats
) -> tuple[int, list[float]]:
    """Hold one band against another of the same shape.

    limits: float32 [rows, groups], groups of a multiple of 16 columns, and how far a number may be off by its own size;
    the larger counts. Returns the bits of a bound of the magnitudes, as `encode_rows` does, and three totals: squared
    differences, their squares, and how many rows hold a number that is too far off. NaN and Inf show in the bits alone.
    """
    totals = np.zeros(3)
    run = _compiled(_compare, _COMPARE)
    first, second = (_decoder(name) for name in decoders)
    bits = run(first, second, *ours, *theirs[:3], limits[0], np.float32(limits[1]), work, totals)
    return int(bits), totals.tolist()


def judge_rows(
    decoders: tuple[str, str],
    ours: Band,
    theirs: Band,
    coding: tuple[int, bool],
    limits: tuple[float, float, float],
    work: Floats,
) -> tuple[int, list[float]]:
    """Hold a band of codes with searched scales against the band that they were made from, and against rtn.

    coding: bits, and whether without zero points. limits: see search_kernels.judge. Returns the bits of a bound of the
    magnitudes, as `encode_rows` does, and four totals: squared differences, their squares, rtn's squared differences,
    and how many groups no search could have made.
    """
    totals = np.zeros(4)
    run = _compiled(_judge, _JUDGE)
    first, second = (_decoder(name) for name in decoders)
    bits, symmetric = coding
    told = np.array(limits, np.float32)
    found = run(first, second, *ours, *theirs[:3], np.float32(bits), symmetric, told, work, totals)
    return int(found), totals.tolist()


def judge_blocks(
    kernels: tuple[str, str, str], ours: Band, theirs: Band, numbers: Floats, absolute: Floats, work: Floats
) -> tuple[int, list[float]]:
    """Hold a band of FP4 codes against the band that they were made from, and against what its encoder would make.

    kernels: both decoders, and one of BLOCK_ENCODERS. numbers: the one that the encoder wants, then how many times the
    squared error of nearest codes and of rtn's a block may have. absolute: float32 [rows, blocks], how far a weight may
    be off. Returns as `judge_rows` does.
    """
    totals = np.zeros(4)
    run = _compiled(_judge_blocks, _JUDGE_BLOCKS)
    first, second = (_decoder(name) for name in kernels[:2])
    encoder = _compiled(ENCODERS[kernels[2]], _ENCODER)
    bits = run(first, second, encoder, *ours, *theirs[:3], numbers, absolute, work, totals)
    return int(bits), totals.tolist()


def _decoder(name: str) -> Any:
    return _compiled(DECODERS[name], _DECODER)


def _compiled(function: Callable[..., Any], signature: Any) -> Any:
    """The kernel, compiled once a process, by whichever thread wants it first."""
    with _lock:
        if function not in _ready:
            _ready[function] = _compile(function, signature)
        return _ready[function]


def _compile(function: Callable[..., Any], signature: Any) -> Any:
    try:
        return numba.njit(signature, nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # numba finds no folder that it may write to: compile again in every process
        return numba.njit(signature, nogil=True, error_model="numpy")(function)
