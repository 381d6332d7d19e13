"""`mtpforge capture`: calibration inputs, what a target hands to its MTP layer for a text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from mtpforge import errors
from mtpforge.cli import options
from mtpforge.cli.grammar import Command, Option
from mtpforge.cli.output import Ending, Screen
from mtpforge.errors import MtpforgeError, shown
from mtpforge.units import count, file_size, memory_size

if TYPE_CHECKING:
    from mtpforge.nextn.capturing import Entering
    from mtpforge.nextn.target import Target

_LENGTH: Final = 2048  # index_topk of GLM-5.2: in a window of as many tokens each sees all before it
_TOKENS: Final = 32_768  # their activations of GLM-5.2 fit into the 1 GiB that a reader of the file holds


@click.command(
    "capture",
    cls=Command,
    help="Compute what a target hands to its MTP layer for a text, and store it for `--inputs`.",
    examples=(
        "mtpforge capture --target ./GLM-5.2-AWQ-INT4 --text calibration.txt -o inputs.safetensors",
        "mtpforge capture --target ./GLM-5.2-AWQ-INT4 --from-vllm /tmp/states -o inputs.safetensors",
    ),
    then="mtpforge prune-plan --target TARGET --inputs FILE",
)
@options.target(required=True, help="Checkpoint that is served: a folder with all of its weights.")
@options.text()
@click.option(
    "--from-vllm",
    cls=Option,
    type=click.Path(path_type=Path),
    metavar="DIR",
    heading="Input",
    help="Hidden states that a running vLLM stored, instead of a text: docs/calibration.md.",
)
@click.option(
    "--length",
    cls=Option,
    type=click.IntRange(min=2),
    metavar="N",
    heading="Input",
    help=f"Tokens of a window of the text.  [default: {_LENGTH}, or what the target takes]",
)
@click.option(
    "--tokens",
    cls=Option,
    type=click.IntRange(min=2),
    metavar="N",
    default=_TOKENS,
    show_default=True,
    heading="Input",
    help="Tokens in all, at most.",
)
@options.out(help="File to write.  [default: out/TARGET-inputs.safetensors]")
@options.force()
@click.pass_obj
def command(  # noqa: D103 -- the help text above
    screen: Screen,
    *,
    target: str,
    text: Path | None,
    from_vllm: Path | None,
    length: int | None,
    tokens: int,
    out: Path | None,
    force: bool,
) -> Ending:
    from mtpforge.checkpoint import open_checkpoint
    from mtpforge.drafting.remarks import of_checkpoint
    from mtpforge.nextn import capturing, inputs, recording
    from mtpforge.nextn.target import open_target

    _refuse_both(text, from_vllm, length)
    _refuse_remote(target)
    checkpoint = open_checkpoint(target, offline=screen.offline)
    place = out or Path("out") / f"{Path(checkpoint.location).name}-inputs.safetensors"
    _refuse_among(place, Path(checkpoint.location))
    recording.refuse_existing(place, force=force)
    model = open_target(checkpoint)
    screen.remark(of_checkpoint("target", checkpoint))
    entering = _entering(model, text, from_vllm, length, tokens)
    first = model.entry if from_vllm else 0
    _show(screen, model, entering, first)
    _refuse_small(model, entering, place)
    with screen.progress() as on_progress:
        recording.write(
            place, capturing.finish(model, entering, first, on_progress), target=checkpoint.identity, force=force
        )
    made = inputs.read(place, hidden_size=model.config.hidden_size, vocab_size=model.config.vocab_size)
    screen.line(f"wrote   {place}   {file_size(place.stat().st_size)}", "green")
    screen.answer(str(place))
    screen.next("mtpforge", "prune-plan", "--target", target, "--inputs", str(place))
    return Ending(
        {
            "inputs": place,
            "digest": made.digest,
            "target": made.target,
            "n_tokens": made.n_tokens,
            "n_sequences": made.n_sequences,
            "hidden_size": made.hidden_size,
            "first_layer": first,
        }
    )


def _refuse_remote(target: str) -> None:
    """Only what lies here can be computed; nobody has to be asked for that."""
    if not Path(target).exists() and re.fullmatch(r"[\w.-]+/[\w.-]+(@.+)?", target):
        name = shown(target.split("@", maxsplit=1)[0])
        raise MtpforgeError(
            f"there is no folder `{shown(target)}`, capture needs every weight on this machine",
            where="option `--target`",
            why="all layers are computed, and what is fetched for that is the whole checkpoint",
            fix=f"`hf download {name} --local-dir DIR`, then `--target DIR`",
        )


def _refuse_among(place: Path, folder: Path) -> None:
    """An output among the target's files would replace one, or be taken for one by whoever loads the folder."""
    if place.resolve().parent == folder.resolve():
        raise MtpforgeError(
            "the output would lie among the target's files",
            where=shown(place),
            why="loaders read every *.safetensors of the folder",
            fix="name a place outside of it with `--out`",
            code=errors.MACHINE,
        )


def _refuse_both(text: Path | None, from_vllm: Path | None, length: int | None) -> None:
    """Exactly one origin, and no option that would have no effect."""
    if (text is None) == (from_vllm is None):
        what = (
            "name a text or the states of a vLLM" if text is None else "`--text` and `--from-vllm` exclude each other"
        )
        raise MtpforgeError(what, fix="`--text FILE`, or `--from-vllm DIR`", code=errors.USAGE)
    if from_vllm and length:
        why = "windows are the prompts that vLLM was sent"
        raise MtpforgeError(
            "`--length` has no effect with `--from-vllm`", why=why, fix="leave it out", code=errors.USAGE
        )


def _entering(
    model: Target, text: Path | None, from_vllm: Path | None, length: int | None, tokens: int
) -> list[Entering]:
    from mtpforge.nextn import capturing, extracted, texts

    if from_vllm:
        return extracted.windows_of(from_vllm, model, tokens)
    assert text is not None  # noqa: S101 -- _refuse_both
    most = model.config.max_position_embeddings
    if length and length > most:
        raise MtpforgeError(
            f"a window of {length:,} tokens is longer than the target takes",
            where="option `--length`",
            why=f"`max_position_embeddings` of its config.json is {most:,}",
            fix=f"`--length {min(_LENGTH, most)}`",
            code=errors.USAGE,
        )
    found = texts.windows(text, model.folder, length or min(_LENGTH, most), tokens, model.config.vocab_size)
    return capturing.embed(model, found)


def _show(screen: Screen, model: Target, entering: list[Entering], first: int) -> None:
    """What will be computed, and what that takes."""
    from mtpforge.nextn.capturing import memory_bytes

    lengths = [len(window.token_ids) for window in entering]
    windows = f"{count(len(lengths))} window{'s' if len(lengths) > 1 else ''} of {_span(lengths)} tokens"
    memory = memory_size(memory_bytes(model, lengths))
    screen.line(f"text    {windows}, {count(sum(lengths))} in all")
    screen.line(f"layers  {first} to {model.n_layers - 1}, one after another; memory about {memory}")


def _span(lengths: list[int]) -> str:
    low, high = min(lengths), max(lengths)
    return count(high) if low == high else f"{count(low)} to {count(high)}"


def _refuse_small(model: Target, entering: list[Entering], place: Path) -> None:
    """Refuse what this machine's memory or disk cannot hold, before the first layer."""
    from mtpforge.nextn import capturing, recording

    lengths = [len(window.token_ids) for window in entering]
    recording.refuse_small_disk(place, sum(lengths) * (2 * model.config.hidden_size + 16))
    capturing.refuse_small_memory(capturing.memory_bytes(model, lengths))
