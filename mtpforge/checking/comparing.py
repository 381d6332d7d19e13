"""The parent's side of a reference check: start the child, compare digests, name the first difference."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Final, Self

from mtpforge import errors, formats
from mtpforge.checking.selection import Key, Sample, Selection
from mtpforge.errors import MtpforgeError, shown
from mtpforge.report import OnProgress, Progress
from mtpforge.tensors import TensorRef
from mtpforge.weights import Reader, StoredWeight

if TYPE_CHECKING:
    from torch import Tensor

_OFF: Final = "`--check off` builds without the comparison"
_PACKAGE: Final = Path(__file__).parents[2]
_LOOK_SECONDS: Final = 0.2  # between two looks at how far the child is
_TAIL: Final = 400  # characters of a dead child's last words


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What was found equal: weights, values, and the libraries that decoded them with their versions."""

    n_tensors: int
    n_elements: int
    libraries: dict[str, str]


def bf16_bytes(rows: Tensor) -> memoryview:
    """A decoded band, float32 [rows, in], as BF16 bytes: what a sample's sha256 is made of."""
    import torch

    raw: memoryview = rows.to(torch.bfloat16).contiguous().view(torch.uint8).numpy().data.cast("B")
    return raw


class ReferenceCheck:
    """A running comparison. Make it before anything long, `begin` when the bytes are here, `finish` with our digests.

    The child loads its libraries meanwhile. No samples: no child, nothing compared. As a context manager it ends the
    child on the way out.
    """

    def __init__(self, selection: Selection) -> None:
        self.samples = selection.samples
        self._little = selection.is_little
        self._paths: Mapping[str, str | os.PathLike[str]] = {}
        self._child = _Child(self.samples, little=self._little) if self.samples else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.cancel()

    def cancel(self) -> None:
        """End the child, if it still runs."""
        if self._child:
            self._child.kill()

    def begin(self, paths: Mapping[str, str | os.PathLike[str]]) -> None:
        """Let the child decode. paths: file of a TensorRef -> absolute local path with the same offsets."""
        self._paths = paths
        if self._child:
            self._child.ask(request(self.samples, paths, values=False))

    def finish(self, digests: Mapping[Key, str], on_progress: OnProgress | None = None) -> CheckResult:
        """Wait for the child and compare. digests: Sample.key -> sha256 (hex) of our BF16 bytes, all samples.

        on_progress: hears how many samples the child has decoded, 0 for as long as its libraries load.
        Raises MtpforgeError for the first difference (exit code 1), and where the child could not do its work (5).
        """
        if self._child is None:
            return CheckResult(0, 0, {})
        theirs, libraries = self._child.answers(on_progress)
        for sample, answer in zip(self.samples, theirs, strict=True):
            if answer["sha256"] != digests[sample.key]:
                raise self._difference(sample)
        modules = {sample.module for sample in self.samples}
        return CheckResult(len(modules), sum(sample.n_elements for sample in self.samples), libraries)

    def _difference(self, sample: Sample) -> MtpforgeError:
        """Decode again on both sides and say where they part."""
        import torch

        child = _Child((sample,), little=self._little)
        try:
            child.ask(request((sample,), self._paths, values=True))
            answers, libraries = child.answers()
        finally:
            child.kill()
        raw = bytearray(base64.b64decode(answers[0]["values"]))
        theirs = torch.frombuffer(raw, dtype=torch.bfloat16).view(-1, sample.shape[1])
        ours = _decoded(sample, self._paths).to(torch.bfloat16)
        library = " ".join(next(iter(libraries.items())))
        where = f"{shown(next(iter(sample.reads.values())).file)}, {shown(sample.module)}"
        different = (ours.view(torch.int16) != theirs.view(torch.int16)).nonzero()
        if not len(different):
            return MtpforgeError(
                f"`{shown(sample.module)}` was decoded from other bytes than the file holds now",
                where=where,
                why=f"mtpforge and {library} agree on the file; it changed while it was read, or memory is faulty",
                fix="build again; if it comes back, test the memory and the disk of this machine",
                code=errors.ANSWER_NO,
            )
        row, column = different[0].tolist()
        return MtpforgeError(
            f"`{shown(sample.module)}` decodes differently in mtpforge and in {library}",
            where=f"{where} [{row + sample.rows[0]}, {column}]",
            why=f"mtpforge reads {ours[row, column].item()!r}, {library} {theirs[row, column].item()!r};"
            f" {len(different)} of {ours.numel()} values differ ({sample.format})",
            fix=f"report this message; {_OFF}",
            code=errors.ANSWER_NO,
        )


def _decoded(sample: Sample, paths: Mapping[str, str | os.PathLike[str]]) -> Tensor:
    """Our own decoding of a sample's rows, from the file, float32."""

    def read(ref: TensorRef, into: memoryview) -> None:
        with Path(paths[ref.file]).open("rb") as file:
            file.seek(ref.start)
            file.readinto(into)

    weight = StoredWeight(Reader(read), sample.reads, sample.shape, sample.quantization)
    return weight.open().band(*sample.rows).decoded()


class _Child:
    """The process that decodes with the libraries; its answers gather in a file, so it never waits for us."""

    def __init__(self, samples: tuple[Sample, ...], *, little: bool) -> None:
        self._n_samples = len(samples)
        self._out: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by kill()
        self._err: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 -- same
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "mtpforge.checking"],
            stdin=subprocess.PIPE,
            stdout=self._out,
            stderr=self._err,
            env=_environment(),
        )
        self.ask(opening(samples, little=little))

    def ask(self, line: bytes) -> None:
        """Write a line to the child; its stdin stays open, for its end tells the child that we are gone."""
        with contextlib.suppress(BrokenPipeError):  # a child that died at once is reported by answers()
            assert self._process.stdin  # noqa: S101 -- PIPE was asked for
            self._process.stdin.write(line)
            self._process.stdin.flush()

    def answers(self, on_progress: OnProgress | None = None) -> tuple[list[dict[str, str]], dict[str, str]]:
        """One answer a sample, in order, and library -> version. Waits for the child's end."""
        while on_progress and self._process.poll() is None:
            # read without moving: the child writes where this file stands
            said = os.pread(self._out.fileno(), os.fstat(self._out.fileno()).st_size, 0).count(b"\n")
            on_progress(Progress("check", min(said, self._n_samples - 1), self._n_samples, "items"))
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_LOOK_SECONDS)
        self._process.wait()
        self._out.seek(0)
        lines = [json.loads(line) for line in self._out if line.endswith(b"\n")]
        last = lines[-1] if lines else {}
        if "libraries" not in last:
            raise self._dead(last)
        if on_progress:
            on_progress(Progress("check", self._n_samples, self._n_samples, "items"))
        self.kill()
        return lines[:-1], last["libraries"]

    def _dead(self, last: Mapping[str, str]) -> MtpforgeError:
        self._err.seek(0)
        words = self._err.read().decode(errors="replace").strip()[-_TAIL:]
        status = self._process.returncode
        ended = f"killed by signal {-status}" if status < 0 else words.rpartition("\n")[2] or f"exit status {status}"
        detail = last.get("detail") or ended
        self.kill()
        if last.get("error") == "import":
            return MtpforgeError(
                "a library that the reference check needs is missing",
                why=shown(detail),
                fix=f"`pip install compressed-tensors nvidia-modelopt requests`, or {_OFF}",
                code=errors.MACHINE,
            )
        return MtpforgeError(
            "the reference check ended before it was done", why=shown(detail), fix=_OFF, code=errors.MACHINE
        )

    def kill(self) -> None:
        """End the process and close what belongs to it; more than once is fine."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            if self._process.stdin:
                self._process.stdin.close()
        self._out.close()
        self._err.close()


def opening(samples: Iterable[Sample], *, little: bool) -> bytes:
    """The child's first line: the formats that it will be asked for, and whether plain decoders do for so little."""
    return (
        json.dumps({"readers": sorted({formats.FORMATS[s.format].reader for s in samples}), "little": little}).encode()
        + b"\n"
    )


def request(samples: Iterable[Sample], paths: Mapping[str, str | os.PathLike[str]], *, values: bool) -> bytes:
    """The child's second line: every sample with its parts' absolute paths and offsets."""
    listed = [
        {
            "reader": formats.FORMATS[sample.format].reader,
            "quantization": asdict(sample.quantization),
            "shape": sample.shape,
            "rows": sample.rows,
            "parts": {
                suffix: {
                    "path": str(Path(paths[ref.file]).absolute()),
                    "dtype": ref.spec.dtype,
                    "shape": ref.spec.shape,
                    "start": ref.start,
                    "stride": ref.stride,
                }
                for suffix, ref in sample.reads.items()
            },
        }
        for sample in samples
    ]
    return json.dumps({"samples": listed, "values": values}).encode() + b"\n"


def _environment() -> dict[str, str]:
    """Ours, with this very package importable, and the libraries quiet, eager, single-threaded and off the network."""
    path = os.pathsep.join(filter(None, (str(_PACKAGE), os.environ.get("PYTHONPATH", ""))))
    return {
        **os.environ,
        "PYTHONPATH": path,
        "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": "1",
        "CT_ENFORCE_EAGER": "1",
        "HF_HUB_OFFLINE": "1",
    }
