"""docs/reference, made from the click objects, the table of exit codes and the records of the JSON documents."""

from __future__ import annotations

import dataclasses
import inspect
import re

import click

from mtpforge import errors, report, scheme, tensors
from mtpforge.benching import depths, estimates
from mtpforge.benching import found as benched
from mtpforge.cli import COMMANDS, group
from mtpforge.cli.grammar import HEADINGS, Option
from mtpforge.engines import command as commands
from mtpforge.engines import counters
from mtpforge.families import curves
from mtpforge.judging import accepting, fidelity, swapping
from mtpforge.planning import steps

GENERATED = "<!-- Made from the code: REWRITE_GOLDEN=1 pytest tests/cli rewrites it. -->\n"

ENDINGS = {
    "inspect": {"report": "Report"},
    "build": {
        "draft": "path of the folder; null where there was nothing to build",
        "plan_digest": "sha256 of everything that decides a byte",
        "downloaded": "`n_bytes` of weight files that were fetched, `again_bytes` fetched twice to be compared",
        "report": "Report of the verification",
        "traps": "list of Trap: what the plan found in source and target",
        "manifest": "content of mtpforge.json",
        "serve": "words of the server command; null where the target's config.json has to be mended first",
        "reason": "why nothing had to be built",
    },
    "build --dry-run, extract --dry-run": {
        "plan": "Plan, but for `steps` and `unused`: these with `-v`; the rows of `facts.stored` say the same by kind",
        "plan.n_steps": "steps, without `-v`",
        "plan.left_out": "reason -> tensors of the source that the draft does not carry, without `-v`",
        "digest": "of the plan",
        "draft": "path that it would have",
    },
    "extract, demo": {"...": "as build; extract has no `serve`"},
    "schemes": {"schemes": "list of Scheme", "scheme": "Scheme, with a name or `--from`", "toml": "the same as a file"},
    "prune-plan": {
        "kept": "numbers in the source of the experts that stay, ascending",
        "method": "what chose them",
        "n_stored": "experts of the source",
        "scores": "method -> one number per expert of the source",
        "choices": "method -> the experts that it would keep",
        "agreement": "method -> method -> how many experts both drop",
        "inputs": "sha256 and tokens of the calibration inputs, null where none were given",
        "picture": "path, null where none was asked for",
    },
    "capture": {
        "inputs": "path of the file",
        "digest": "sha256 of the file",
        "target": "what it was captured from: folder and content hash",
        "n_tokens": "rows",
        "n_sequences": "windows",
        "hidden_size": "columns of the hidden states",
        "first_layer": "the first that was computed here: 0, or the one before which a vLLM stored its states",
    },
    "verify": {"draft": "as typed", "report": "Report"},
    "validate": {
        "draft": "as typed",
        "report": "Report of verify",
        "engine": "Report of the engine's own loader, and of its pass on a GPU: `facts.forward` has the device, the"
        " methods that processed weights, and by how much of their size `mlp` and `states` are off",
        "fidelity": "Fidelity, with `--inputs`; null where it could not be asked",
        "predictions": "Report of fidelity, with `--inputs`",
        "error": "why no engine was asked, with exit code 5, or fidelity could not be",
    },
    "fidelity": {
        "fidelity": "Fidelity",
        "ranked": "drafts, nearest to the reference first",
        "picture": "path, null where none was asked for",
        "report": "Report: the checks of all drafts",
    },
    "accept": {"acceptance": "Acceptance", "report": "Report: the checks of all drafts"},
    "bench": {
        "bench": "Bench",
        "report": "Report: its checks",
        "measured": "where it failed or was stopped, beside `error`: list of Cell, those that were whole until then",
    },
    "serve --print": {
        "serve": "words of the command",
        "traps": "list of Trap: what would spoil the drafts of this pair",
    },
    "serve --explain": {
        "serve, traps": "as with `--print`",
        "flags": "list of Flag, and in the value of one that holds a JSON object its keys, as Flags too",
        "offers": "list of Flag: keys for cheaper drafts that `--draft-option` takes beside this target",
    },
    "graft": {
        "graft": "path of the folder",
        "report": "Report: the layer as `verify` sees it beside the graft, then the rest beside the target",
        "document": "content of mtpforge-graft.json",
    },
    "delta": {"delta": "path of the folder", "document": "content of mtpforge-delta.json"},
    "merge": {
        "merge": "path of the folder",
        "report": "Report: files, and every module against the merged config",
        "document": "content of mtpforge-merge.json",
    },
    "merge --dry-run": {
        "merge": "path that it would have",
        "taken": "pattern -> modules",
        "linked": "files that stay as they are",
        "rewritten": "name -> bytes of shards of which only some tensors are taken",
        "config": "what changes in the base's config.json",
    },
    "graft --dry-run, delta --dry-run": {
        "graft, delta": "path that it would have",
        "scheme": "how the layer is stored in it",
        "built_first": 'why the layer does not go in as it is stored; "" where it does',
        "n_tensors": "of the layer",
        "files": "name -> bytes of the layer's files",
        "rewritten": "name -> bytes of the target's shards that lose a layer that they held",
        "left_out": "weight files of the target that held nothing else",
        "linked": "files that stay as they are",
        "superseded": "tensors of the target that give way",
        "config": "what changes in config.json: keys that are set, keys that go",
        "side_file": "the same of hf_quant_config.json; null where nothing does",
        "traps": "list of Trap",
    },
    "doctor": {"report": "Report"},
    "completion": {"script": "text"},
}

RECORDS = (
    fidelity.Fidelity,
    fidelity.DraftFidelity,
    fidelity.StepFidelity,
    swapping.Swap,
    accepting.Acceptance,
    accepting.DraftAcceptance,
    accepting.Drawn,
    accepting.Estimate,
    benched.Bench,
    benched.Cell,
    estimates.Interval,
    depths.Advice,
    depths.Depth,
    curves.Curve,
    counters.Cause,
    report.Report,
    report.Check,
    report.Trap,
    commands.Flag,
    scheme.Scheme,
    scheme.Rule,
    tensors.Quantization,
    steps.Plan,
    steps.Side,
    steps.Step,
    steps.Move,
    steps.Carry,
    steps.InputScaleMove,
    steps.Write,
    steps.Unused,
    tensors.TensorRef,
    tensors.Spec,
)


def cli_page() -> str:
    """docs/reference/cli.md."""
    ctx = click.Context(group(), info_name="mtpforge")
    parts = [f"# Commands\n\n{GENERATED}", _general(ctx)]
    parts += [_command(ctx, entry.name) for entry in COMMANDS]
    return "\n".join(parts)


def _general(ctx: click.Context) -> str:
    return (
        "Every command takes the general options, before or after its name. Any option can come from the\n"
        "environment: `MTPFORGE_JSON=1`, `MTPFORGE_BUILD_TP=8`. `CKPT` is a folder, `org/name[@revision]`\n"
        "on the hub, or as a source a GGUF file; a path that exists wins. `SIZE` is a number with a\n"
        "unit: `2GB` and `2G` are decimal, `2GiB` is binary.\n\n" + _options(ctx.command.params, ctx)
    )


def _command(ctx: click.Context, name: str) -> str:
    command = group().get_command(ctx, name)
    inner = click.Context(command, info_name=name, parent=ctx)
    usage = command.get_usage(inner).removeprefix("Usage: ")
    examples = "\n".join(command.examples)
    own = [p for p in command.params if not (isinstance(p, Option) and p.heading == "General")]
    text = f"## {name}\n\n{command.help}\n\n    {usage}\n\n```\n{examples}\n```\n"
    return text + (f"\n{table}" if (table := _options(own, inner)) else "")


def _options(params: list[click.Parameter], ctx: click.Context) -> str:
    rows = [
        (p.heading, *p.get_help_record(ctx))
        for heading in HEADINGS
        for p in params
        if isinstance(p, Option) and p.heading == heading
    ]
    if not rows:
        return ""
    lines = [f"| {heading} | `{_cell(names)}` | {_cell(text)} |" for heading, names, text in rows]
    return "\n".join(("| | option | meaning |", "|---|---|---|", *lines, ""))


def exit_codes_page() -> str:
    """docs/reference/exit-codes.md."""
    rows = "\n".join(f"| {code} | {meaning} |" for code, meaning in errors.EXIT_CODES.items())
    return (
        f"# Exit codes\n\n{GENERATED}\n| code | meaning |\n|---|---|\n{rows}\n\n"
        "Codes are only ever added: treat an unknown one that is not 0 as a failure.\n\n"
        "From Python the number is `code` of the `MtpforgeError`. 0 is one too: `build` and `plan` raise it where the\n"
        "target's own layer loads, so that there is nothing to return; `standalone=True` builds all the same.\n"
    )


def json_page() -> str:
    """docs/reference/json.md."""
    head = (
        f"# JSON documents\n\n{GENERATED}\n"
        "`--json` prints exactly one document on stdout, also on failure. Within a schema number keys are only\n"
        "added. `--help` and `--version` are for people and print text with it as well; `doctor` has the versions.\n\n"
        "| key | value |\n|---|---|\n"
        "| `mtpforge` | version |\n| `schema` | 1 |\n| `command` | name, empty where none was recognised |\n"
        "| `ok` | whether the exit code is 0 |\n| `exit_code` | see [exit codes](exit-codes.md) |\n"
        "| `error` | on failure: `what`, `where`, `cause`, `hint`, empty where there is none |\n"
        "| ... | keys of the command, below |\n"
    )
    return "\n".join([head, "# Commands\n", *map(_ending, ENDINGS), "# Records\n", *map(_record, RECORDS)])


def _ending(name: str) -> str:
    rows = "\n".join(f"| `{key}` | {_cell(value)} |" for key, value in ENDINGS[name].items())
    return f"## {name}\n\n| key | value |\n|---|---|\n{rows}\n"


def _record(record: type) -> str:
    rows = "\n".join(f"| `{f.name}` | `{_cell(str(f.type))}` |" for f in dataclasses.fields(record))
    return f"## {record.__name__}\n\n{inspect.getdoc(record)}\n\n| field | type |\n|---|---|\n{rows}\n"


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", r"\|")
