"""The NOTICE of a draft: where its weights come from and what was done to them."""

from __future__ import annotations

from collections.abc import Mapping

from mtpforge.planning.steps import Plan


def documents(plan: Plan, of_source: Mapping[str, bytes]) -> dict[str, bytes]:
    """Licence files of the source as they are, and a NOTICE that ends with ours."""
    files = dict(sorted(of_source.items()))
    theirs = files.get("NOTICE", b"")
    files["NOTICE"] = (theirs.rstrip() + b"\n\n" if theirs.strip() else b"") + _notice(plan).encode()
    return files


def _notice(plan: Plan) -> str:
    experts = "all experts" if plan.kept_experts is None else f"{len(plan.kept_experts)} of the experts"
    beside = f" beside {plan.target.identity}" if plan.target else ""
    return (
        f"The weights of this draft are layer {plan.source_layer} of {plan.source.identity}, {experts},\n"
        f"stored by mtpforge as scheme {plan.scheme.name} for use{beside}.\n"
        "mtpforge.json says of every tensor what it is; the licence of the source applies.\n"
    )
