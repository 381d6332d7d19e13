"""`mtpforge capture`: calibration inputs, what a target hands to its MTP layer for a text."""

from __future__ import annotations

from pathlib import Path

import click

from mtpforge.cli import options
from mtpforge.cli.grammar import Command, Option
from mtpforge.cli.output import Ending, Screen
from mtpforge.nextn.texts import USUAL_LENGTH, USUAL_TOKENS
from mtpforge.units import file_size


@click.command(
    "capture",
    cls=Command,
    help="Compute what a target hands to its MTP layer for a text, and store it for `--inputs`.",
    examples=(
        "mtpforge capture --target ./GLM-5.2-AWQ-INT4 --text calibration.txt -o inputs.safetensors",
        "mtpforge capture --target ./GLM-5.2-AWQ-INT4 --states /tmp/states -o inputs.safetensors",
    ),
    quiet="Only the path of the file that was made.",
    then="mtpforge prune-plan --target TARGET --inputs FILE",
)
@options.target(required=True, help="Checkpoint that is served: a folder with all of its weights.")
@options.text()
@click.option(
    "--states",
    cls=Option,
    type=click.Path(path_type=Path),
    metavar="DIR",
    heading="Input",
    help="Hidden states that a running engine stored, instead of a text: docs/calibration.md.",
)
@options.length(help=f"Tokens of a window of the text.  [default: {USUAL_LENGTH}, or what the target takes]")
@options.tokens(default=USUAL_TOKENS)
@options.out(
    help="File to write.  [default: out/<target>-inputs.safetensors; where another target's lie there"
    " out/<target>-<hash>-...]"
)
@options.force()
@click.pass_obj
def command(  # noqa: D103 -- the help text above
    screen: Screen,
    *,
    target: str,
    text: Path | None,
    states: Path | None,
    length: int | None,
    tokens: int,
    out: Path | None,
    force: bool,
) -> Ending:
    from mtpforge.drafting.capture import Capture, capture

    asked = Capture(target, text, states, out, length, tokens, force, screen.offline)
    with screen.watching() as watching:
        found = capture(asked, watching)
    made = found.inputs
    screen.line(f"wrote   {made.path}   {file_size(made.path.stat().st_size)}", "green")
    screen.answer(str(made.path))
    screen.next("mtpforge", "prune-plan", "--target", target, "--inputs", str(made.path))
    return Ending(
        {
            "inputs": made.path,
            "digest": made.digest,
            "target": made.target,
            "n_tokens": made.n_tokens,
            "n_sequences": made.n_sequences,
            "hidden_size": made.hidden_size,
            "first_layer": found.first_layer,
        }
    )
