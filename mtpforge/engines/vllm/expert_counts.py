"""Expert counts of a target that contradict its tensors: vLLM would build another model than the files hold.

The config class lets a twin overwrite the count (`expert_count` of the draft class: transformers 5.20 to 5.23), and no
override of the command line reaches the value before that. Only the file can be mended.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.engines.vllm.draft_classes import draft_class
from mtpforge.errors import MtpforgeError, shown
from mtpforge.families import Family
from mtpforge.families.counting import stored_experts

_CONFIG = "config.json"


def stale_counts(target: Checkpoint, family: Family) -> dict[str, object]:
    """Key -> value of every expert count that is not the true one: the headers', else `n_routed_experts`."""
    text, first = family.text(target.config), family.expert_keys[0]
    true = stored_experts(family, target) or text.get(first)
    if first not in text:
        return {}
    keys = (first, *draft_class(family).expert_count_twins)
    return {key: text[key] for key in keys if text.get(key) is not None and text[key] != true}


def cure(target: Checkpoint, family: Family) -> str:
    """What has to be done to the target's config.json, as a sentence."""
    stale, first = stale_counts(target, family), family.expert_keys[0]
    twins = " and ".join(f"`{key}`" for key in stale if key != first)
    place = f"the target's {_CONFIG}"
    if first not in stale:
        return f"delete {twins} from {place}"
    corrected = f"set `{first}` to {stored_experts(family, target)} in {place}"
    return f"{corrected}, and delete {twins}" if twins else corrected


def refuse_stale(target: Checkpoint, family: Family) -> None:
    """MtpforgeError where no command can serve the target before its config.json is mended; shows how."""
    stale, text = stale_counts(target, family), family.text(target.config)
    if not stale:
        return
    true = stored_experts(family, target) or text[family.expert_keys[0]]
    said = ", ".join(f"`{key}` {shown(value)}" for key, value in stale.items())
    raise MtpforgeError(
        "no command serves this target before its config.json is mended",
        where=f"{shown(target.label)}, {_CONFIG}",
        why=f"it says {said}, the model has {shown(true)} experts: vLLM would build another model, and no flag helps",
        fix=f"{cure(target, family)}: `{_command(target, family, stale)}`",
    )


def _command(target: Checkpoint, family: Family, stale: dict[str, object]) -> str:
    """The change as one line for a shell; of a hub repository a copy is changed."""
    inside = "" if family.text(target.config) is target.config else '["text_config"]'
    first = family.expert_keys[0]
    changes = [f"c{inside}.pop({json.dumps(key)})" for key in stale if key != first]
    changes += [f"c{inside}[{json.dumps(first)}] = {stored_experts(family, target)}"] if first in stale else []
    path = _CONFIG if target.revision else str(Path(target.location) / _CONFIG)
    program = (
        f"import json; p = {json.dumps(path)}; c = json.load(open(p)); {'; '.join(changes)}; json.dump(c, open(p, "
    )
    program += '"w"), indent=2)'
    change = shlex.join(("python", "-c", program))
    if not target.revision:
        return change
    return f"hf download {target.location} --revision {target.revision} --local-dir target && cd target && {change}"
