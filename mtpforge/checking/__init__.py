"""Reference checks: the format's own library decodes the same bytes, and the BF16 results must be equal.

    selection    which rows of which weights
    comparing    the parent: starts the child, collects both sides' digests, names a difference
    libraries    the child: opens the source itself, decodes with the library, shares no decoder with mtpforge
    __main__     `python -m mtpforge.checking`: JSON on stdin, JSON lines on stdout

The libraries take seconds to import and a few hundred MB; in a process of their own both overlap with the build.
"""

from __future__ import annotations

from mtpforge.checking.comparing import CheckResult, ReferenceCheck, bf16_bytes
from mtpforge.checking.selection import Sample, Selection, choose

__all__ = ["CheckResult", "ReferenceCheck", "Sample", "Selection", "bf16_bytes", "choose"]
