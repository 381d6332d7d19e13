"""Reference checks: the format's own library decodes the same bytes, and the BF16 results must be equal.

    selection    which rows of which weights
    comparing    the parent: starts the child, collects both sides' digests, names a difference
    __main__     the child, `python -m mtpforge.checking`: JSON lines on stdin and stdout
    parts        what the child reads: it opens the source itself
    libraries    the child's decoders: every format's own library, nothing of mtpforge's
    plain        the same for a few MB of NVFP4, by definition, where importing a library would take longer

The libraries take seconds to import and a few hundred MB; in a process of their own both overlap with the build.
"""

from __future__ import annotations

from mtpforge.checking.comparing import CheckResult, ReferenceCheck, bf16_bytes
from mtpforge.checking.selection import Sample, Selection, choose

__all__ = ["CheckResult", "ReferenceCheck", "Sample", "Selection", "bf16_bytes", "choose"]
