"""Every option that two commands share, once: one word, one meaning."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from click.shell_completion import CompletionItem

from mtpforge import errors
from mtpforge.cli.grammar import OneOf, Option
from mtpforge.cli.output import Screen
from mtpforge.errors import MtpforgeError, shown
from mtpforge.methods import METHODS, RTN
from mtpforge.nextn import DEEPEST

F = TypeVar("F", bound=Callable[..., Any])

_UNITS: Final = {
    "": 1,
    **{f"{letter}B": 1000**n for n, letter in enumerate("KMGT", 1)},
    **{f"{letter}iB": 1024**n for n, letter in enumerate("KMGT", 1)},
}
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kKmMgGtT]?)(i?)[bB]?")


class CheckpointName(click.ParamType):  # type: ignore[type-arg]  # not generic in older releases of click
    """A folder, or `org/name[@revision]`. Completes from folders, never from the network."""

    name, is_read = "CKPT", True

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002
        """Folders."""
        return [CompletionItem(incomplete, type="dir")]


class NewFolder(click.Path):
    """A folder that the command makes."""

    is_made = True


class Size(click.ParamType):  # type: ignore[type-arg]  # not generic in older releases of click
    """Bytes: `2GB` and `2G` are decimal, `2GiB` binary."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:  # noqa: ANN401, ARG002
        """The number of bytes."""
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(str(value).strip())
        unit = f"{match[2].upper()}{match[3]}B" if match and match[2] else ""
        n_bytes = int(float(match[1]) * _UNITS[unit]) if match else 0
        if n_bytes < 1:
            option = param.opts[-1] if param else self.name
            raise MtpforgeError(
                f"`{shown(value)}` is no size",
                where=f"option `{option}`",
                fix=f"a number with a unit: `{option} 2GB`, `{option} 500MB`, `{option} 2GiB`",
                code=errors.USAGE,
            )
        return n_bytes


class Count(click.ParamType):  # type: ignore[type-arg]  # not generic in older releases of click
    """How many experts: `match`, `keep`, or a number."""

    name = "match|keep|N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:  # noqa: ANN401, ARG002
        """The word, or the number."""
        if value in ("match", "keep"):
            return str(value)
        if re.fullmatch(r"[1-9]\d{0,5}", str(value)):
            return int(value)
        raise MtpforgeError(
            f"`{shown(value)}` is no number of experts",
            where=f"option `{param.opts[-1] if param else self.name}`",
            fix="`--experts match`, `--experts keep`, or a number such as `--experts 168`",
            code=errors.USAGE,
        )


class DeviceName(click.ParamType):  # type: ignore[type-arg]  # not generic in older releases of click
    """Where torch computes: `auto`, `cpu`, `cuda` or `cuda:N`. Whether it is there is asked by who uses it."""

    name = "DEVICE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ANN401, ARG002
        """The name."""
        if re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", str(value), re.ASCII):
            return str(value)
        raise MtpforgeError(
            f"`{shown(value)}` is no device",
            where=f"option `{param.opts[-1] if param else self.name}`",
            fix="`--device cpu`, `--device cuda`, `--device cuda:1` or `--device auto`",
            code=errors.USAGE,
        )


class Compared(click.ParamType):  # type: ignore[type-arg]  # not generic in older releases of click
    """What is shown beside the first: a name out of a table, or anything where there is none."""

    def __init__(self, name: str, choices: Callable[[], Iterable[str]] | None = None) -> None:
        self.name, self._known = name, OneOf(name, choices) if choices else None
        self.is_read = choices is None

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ANN401
        """The name."""
        return self._known.convert(value, param, ctx) if self._known else str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Names of the table, else folders."""
        if self._known:
            return self._known.shell_complete(ctx, param, incomplete)
        return [CompletionItem(incomplete, type="dir")]


def _engines() -> Iterable[str]:
    from mtpforge.engines import choices

    return choices()


def _default_engine() -> str:
    from mtpforge.engines import DEFAULT

    return DEFAULT


def _option(*names: str, heading: str, **attrs: Any) -> Callable[..., Callable[[F], F]]:  # noqa: ANN401 -- click's own
    """A decorator factory, so that a command can say what differs for it: `options.target(required=True)`."""

    def here(*other: str, **more: Any) -> Callable[[F], F]:  # noqa: ANN401 -- click's own
        return click.option(*(other or names), cls=Option, heading=heading, **{**attrs, **more})

    return here


target = _option("--target", type=CheckpointName(), heading="Input", help="Checkpoint that is served.")
into = _option(
    "--into",
    type=CheckpointName(),
    heading="Input",
    elsewhere="--target",
    help="Checkpoint that the layer goes into.",
)
source = _option("--source", type=CheckpointName(), heading="Input", help="Checkpoint that the layer comes from.")
text = _option(
    "--text",
    type=click.Path(path_type=Path),
    metavar="FILE",
    heading="Input",
    help="Plain text, UTF-8; a form feed begins a new document.",
)
reference = _option(
    "--reference",
    type=CheckpointName(),
    heading="Input",
    elsewhere="--source",
    help="Checkpoint whose layer is the measure: the dense one.",
)
compare = _option("--compare", type=Compared("CKPT"), multiple=True, heading="Input", help="Measure this one too.")
tokens = _option(
    "--tokens",
    type=click.IntRange(min=2),
    metavar="N",
    show_default=True,
    heading="Input",
    help="Tokens in all, at most.",
)
length = _option("--length", type=click.IntRange(min=2), metavar="N", heading="Input")
k = _option(
    "--k",
    type=click.IntRange(1, DEEPEST),
    metavar="N",
    default=3,
    show_default=True,
    heading="Compute",
    help="Draft steps.",
)


def _recycled() -> Iterable[str]:
    from mtpforge.nextn.speculating import RECYCLED

    return RECYCLED


recycle = _option(
    "--recycle",
    type=OneOf("STATE", _recycled),
    default="post-norm",
    show_default=True,
    heading="Compute",
    help="State that a step hands to the next: post-norm, as engines do, or pre-norm, once done: docs/fidelity.md.",
)
picture = _option(
    "--picture",
    type=click.Path(path_type=Path),
    metavar="FILE",
    heading="Output",
    help="Draw it (png, svg, pdf); needs `pip install 'mtpforge[plots]'`.",
)


def _place_page(ctx: click.Context, _param: click.Parameter, path: Path | None) -> None:
    """Refuse at once what could not be written; what is to be written is the screen's business."""
    if path is not None and isinstance(ctx.obj, Screen) and not ctx.resilient_parsing:
        from mtpforge.reporting.writing import refuse

        refuse(path)
        ctx.obj.page = path


report = _option(
    "--report",
    type=click.Path(path_type=Path),
    metavar="FILE.html",
    heading="Output",
    expose_value=False,
    callback=_place_page,
    help="Write one self-contained page, whatever the answer is; needs `pip install 'mtpforge[plots]'`.",
)
scheme = _option(
    "--scheme",
    metavar="NAME|FILE",
    heading="Input",
    help="Preset or TOML file; `mtpforge schemes` lists presets.",
)
overlay = _option(
    "--overlay",
    type=NewFolder(path_type=Path),
    metavar="DIR",
    heading="Output",
    help="Where the engine has to be told more than the target's config says: a folder that says it, links to the"
    " target beside another config.json, is written and takes the target's place.",
)
ENGINE_OF_GRAFT: Final = "vllm, sglang, or both for one graft that either loads: whose rules apply; default: vllm."
engine = _option(
    "--engine",
    type=OneOf("ENGINE", _engines),
    default=_default_engine,
    heading="Input",
    help="vllm, sglang, or both for one draft that either loads: whose rules apply; default: vllm.",
)
input_scales = _option(
    "--input-scales",
    metavar="CKPT|FILE",
    heading="Input",
    help="Static activation scales, where neither source nor target has any.",
)


def _methods() -> Iterable[str]:
    from mtpforge.pruning import METHODS

    return METHODS


experts = _option(
    "--experts",
    type=Count(),
    metavar=Count.name,
    default="match",
    show_default=True,
    heading="Experts",
    help="Experts of the draft: match (the target's count where it has fewer), keep (all) or a number.",
)
prune_by = _option(
    "--prune-by",
    type=OneOf("METHOD", _methods),
    heading="Experts",
    help="What chooses the experts that go: bias, router-norm, aimer; with --inputs reap, frequency.  [default: reap"
    " with --inputs, else bias, which of those that need no data keeps most acceptance on the tiny model: 0.753 of"
    " 0.808 with 12 of 16]",
)
inputs = _option(
    "--inputs",
    type=click.Path(path_type=Path),
    metavar="FILE",
    heading="Input",
    help="Calibration inputs, for reap, frequency and `--scales gptq`; `mtpforge capture` makes them.",
)
keep_experts = _option(
    "--keep-experts",
    type=click.Path(),
    metavar="FILE|CKPT",
    heading="Experts",
    help="The experts to keep: a JSON list of the source's numbers, or a checkpoint that was pruned before.",
)
out = _option(
    "-o",
    "--out",
    type=NewFolder(path_type=Path),
    metavar="PATH",
    heading="Output",
    help="Folder to write.",
)
force = _option(
    "--force", is_flag=True, heading="Output", help="Replace an existing output, at the very end, in one move."
)
dry_run = _option(
    "--dry-run", is_flag=True, heading="Output", help="Print the plan, with the same exit code, and write nothing."
)
max_shard_size = _option("--max-shard-size", type=Size(), heading="Output", help="Split the weights into files.")
check = _option(
    "--check",
    type=OneOf("HOW", lambda: ("full", "sample", "off")),
    default="sample",
    show_default=True,
    heading="Compute",
    help="full, sample or off: compare decoded weights with the reference library of their format.",
)
scales = _option(
    "--scales",
    type=OneOf("METHOD", lambda: METHODS),
    default=RTN.name,
    show_default=True,
    heading="Compute",
    help="rtn; mse, hqq: search the scales of integers; gptq: fit the codes of experts to --inputs. The format stays.",
)


def _links() -> Iterable[str]:
    from mtpforge.publishing.graft import LINKS

    return LINKS


link = _option(
    "--link",
    type=OneOf("HOW", _links),
    default="hard",
    show_default=True,
    heading="Output",
    help="How unchanged files are shared: hard or sym (links), or copy.",
)
workers = _option("--workers", type=click.IntRange(min=1), metavar="N", heading="Compute", help="Threads.")
memory = _option(
    "--memory", type=Size(), default="2GiB", show_default=True, heading="Compute", help="Memory to stay within."
)
device = _option(
    "--device",
    type=DeviceName(),
    metavar="auto|cpu|cuda[:N]",
    default="cpu",
    show_default=True,
    heading="Compute",
    help="cpu, cuda, or auto: a GPU where there is one and enough to do; the bytes are the same.",
)
tp = _option(
    "--tp",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    heading="Compute",
    help="Tensor parallel size of the server.",
)
ep = _option("--ep", is_flag=True, heading="Compute", help="The server runs with expert parallelism.")


def _kv_cache_dtypes() -> Iterable[str]:
    from mtpforge.engines import ENGINES

    return dict.fromkeys(dtype for engine in ENGINES.values() for dtype in engine.kv_cache_dtypes)


kv_cache_dtype = _option(
    "--kv-cache-dtype",
    type=OneOf("DTYPE", _kv_cache_dtypes),
    default="auto",
    show_default=True,
    heading="Compute",
    help="Of the server's KV cache, in the engine's words: auto, bfloat16, fp8, fp8_e4m3, fp8_ds_mla, nvfp4_ds_mla.",
)
engine_python = _option(
    "--engine-python",
    type=click.Path(),
    metavar="PATH",
    heading="Input",
    help="Interpreter in which the engine is installed; PATH:PATH where two are asked.",
)


def kept(*names: str) -> tuple[str, ...]:
    """Those options of the running command that differ from their defaults, as words for the command that is next."""
    context = click.get_current_context()
    words: list[str] = []
    for param in context.command.params:
        value = context.params.get(param.name or "")
        if param.name in names and value is not None and value != param.get_default(context):
            words += [param.opts[-1]] if value is True else [param.opts[-1], str(value)]
    return tuple(words)
