"""Codes that were fitted to calibration inputs: the right inputs, and what the fit gained on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mtpforge.checkpoint import open_checkpoint
from mtpforge.methods import METHODS
from mtpforge.nextn.hessians import Calibration
from mtpforge.nextn.outputs import OutputErrors, output_errors
from mtpforge.planning.steps import Plan
from mtpforge.report import Check, OnProgress, Report


def refuse_other(plan: Plan, calibration: Calibration | None) -> None:
    """A plan is of the inputs and experts that it was made with: others are the caller's mistake, a ValueError."""
    if plan.inputs != (calibration.inputs.digest if calibration else ""):
        raise ValueError("these are not the inputs that the plan was made with")
    if calibration and calibration.kept != (plan.kept_experts or tuple(range(plan.n_experts))):
        raise ValueError("the calibration is of other experts than the plan's")


def compared(
    report: Report, plan: Plan, calibration: Calibration, draft: Path, on_progress: OnProgress | None
) -> Report:
    """The report with the errors of the experts' outputs, beside those of round-to-nearest."""
    wanted = {m.module: m.wanted for step in plan.steps for m in step.moves if METHODS[m.scales].needs_inputs}
    found = output_errors(calibration, open_checkpoint(str(draft)), wanted, on_progress)
    facts = {**report.facts, "output_error": found.draft, "rtn_output_error": found.rtn}
    return replace(report, checks=(*report.checks, _told(found)), facts=facts)


def _told(found: OutputErrors) -> Check:
    if not found.draft:
        return Check("outputs", "not checked", "no row of the inputs reaches an expert")
    ours, rtn = (sum(errors.values()) / len(errors) for errors in (found.draft, found.rtn))
    n_better = sum(error < found.rtn[expert] for expert, error in found.draft.items())
    more = "less" if ours <= rtn else "more"
    share = f"{abs(1 - ours / rtn):.1%} {more} than {rtn:.4g} by rtn" if rtn else f"{rtn:.4g} by rtn"
    detail = (
        f"on {found.n_rows:,} rows of the inputs: mean relative error of an expert's output {ours:.4g}, {share};"
        f" less in {n_better} of {len(found.draft)} experts"
    )
    if ours <= rtn:
        return Check("outputs", "passed", detail)
    return Check("outputs", "warning", detail, "`--scales rtn`, or capture more tokens: `mtpforge capture --tokens N`")
