"""One line about a draft: what it is, what the target asks for, whether they fit."""

from __future__ import annotations

from collections.abc import Iterable

from mtpforge import scheme
from mtpforge.formats import label
from mtpforge.report import Check
from mtpforge.scheme import Rule
from mtpforge.tensors import Quantization
from mtpforge.verifying.expectations import Subject


def sentence(subject: Subject, checks: Iterable[Check], asking: str) -> str:
    """`fits: this draft is int4-g32-asym, as the target asks`, or what differs, or what failed.

    asking: who wants the scheme: `the target asks`.
    """
    pairs = [(w.module.template, subject.stored[w.module.name], w.quantization) for w in subject.weights]
    held = {(template, form) for template, form, _ in pairs if form is not None}
    other = next(((t, h, q) for t, h, q in pairs if h is not None and _key(h) != _key(q)), None)
    wanted = subject.scheme.name
    if not held:
        return f"does not fit: it holds no weight of this layer in a known form; {asking} for {wanted}"
    if other is not None:
        name = scheme.name_of(Rule(template, form, "") for template, form in sorted(held, key=str)) or "dense"
        what = name if name != wanted else f"{label(other[1])} in `{other[0]}`, which is to be {label(other[2])}"
        return f"does not fit: this draft is {what}; {asking} for {wanted}"
    failed = [check.name for check in checks if check.verdict == "failed"]
    if failed:
        return f"does not fit: this draft is {wanted}, as {asking}, and fails at {', '.join(failed)}"
    compared = any(check.name == "values" and check.verdict == "passed" for check in checks)
    return f"fits: this draft is {wanted}, as {asking}" + (
        "" if compared else "; its values were not compared with a source"
    )


def _key(form: Quantization) -> tuple[str, str]:
    """What makes two forms one to people; a scale of another dtype is told by the checks."""
    return form.format, label(form)
