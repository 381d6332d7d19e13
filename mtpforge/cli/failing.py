"""What ends a command: every exception becomes one MtpforgeError, with its exit code."""

from __future__ import annotations

import os
import re
import shlex
import sys
import tempfile
import traceback
from importlib import import_module
from typing import TYPE_CHECKING, Final

import click
from click.core import ParameterSource

from mtpforge import errors
from mtpforge.cli.grammar import Argument, Option, suggestion
from mtpforge.cli.stopping import TerminatedError
from mtpforge.errors import MtpforgeError, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtpforge.cli.output import Screen

_ISSUES: Final = "report it with that file"


def explain(error: BaseException, screen: Screen) -> tuple[MtpforgeError, str]:
    """The error to show, and its traceback text where `--debug` asks for it or nothing else explains it."""
    story = "".join(traceback.format_exception(error))
    match error:
        case MtpforgeError(code=errors.INTERRUPTED):
            return _resumable(error, screen), story
        case MtpforgeError():
            return _as_called_here(error, screen.command), story
        case click.UsageError():
            return _usage(error, screen.command), story
        case KeyboardInterrupt() | click.Abort():
            return _stopped("interrupted", errors.INTERRUPTED, screen), story
        case TerminatedError():
            return _stopped("terminated", errors.TERMINATED, screen), story
        case MemoryError():
            fix = "a smaller budget: `--memory 1GiB --workers 1`"
            return MtpforgeError("this machine ran out of memory", fix=fix, code=errors.MACHINE), story
    return _bug(error, story, screen), story


def _as_called_here(error: MtpforgeError, command: str) -> MtpforgeError:
    """The error with options in its hint as this command calls them: the library says `--source`, whoever asked it."""
    if not command or "`--" not in error.fix:
        return error
    params = import_module(f"mtpforge.cli.{command.replace('-', '_')}").command.params
    known = {name for p in params for name in p.opts}
    for p in params:
        if not isinstance(p, Option | Argument) or not p.elsewhere or p.elsewhere in known:
            continue
        if isinstance(p, Argument):  # its value alone is typed
            error.fix = re.sub(rf"`{p.elsewhere} ", "`", error.fix)
        name = p.opts[-1] if isinstance(p, Option) else p.human_readable_name.strip("[]")
        error.fix = re.sub(rf"`{p.elsewhere}(?![\w-])", f"`{name}", error.fix)
    return error


def _stopped(what: str, code: int, screen: Screen) -> MtpforgeError:
    """What is kept, and the command that goes on from there."""
    return MtpforgeError(what, why=screen.kept(), fix=_again(screen), code=code)


def _resumable(error: MtpforgeError, screen: Screen) -> MtpforgeError:
    """An interrupt that the library has described already, with the command spelled out."""
    return MtpforgeError(error.what, where=error.place, why=error.why, fix=_again(screen), code=error.code)


def _again(screen: Screen) -> str:
    return f"start it again: `{shlex.join(['mtpforge', *screen.argv])}`"


def _bug(error: BaseException, story: str, screen: Screen) -> MtpforgeError:
    what = f"a bug in mtpforge: {type(error).__name__}: {shown(error)}"
    if screen.debug:
        return MtpforgeError(what, code=errors.BUG)
    descriptor, path = tempfile.mkstemp(prefix="mtpforge-", suffix=".traceback.txt")
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(f"{shlex.join(['mtpforge', *screen.argv])}\nPython {sys.version}\n\n{story}")
    return MtpforgeError(what, fix=f"the traceback is in {path}: {_ISSUES}", code=errors.BUG)


def _usage(error: click.UsageError, command: str) -> MtpforgeError:
    """A complaint of click in our form: what, which option, what to type."""
    help_line = f"`{' '.join(filter(None, ('mtpforge', command, '--help')))}`"
    fix = f"{help_line} shows the options"
    if isinstance(error, click.NoSuchOption):
        meant = _meant(error.option_name, error.ctx.command.params) if error.ctx else ""
        return _wrong(f"no such option `{shown(error.option_name)}`", meant or fix)
    if isinstance(error, click.MissingParameter) and error.param is not None:
        name = error.param.opts[-1] if isinstance(error.param, click.Option) else error.param.human_readable_name
        return _wrong(f"`{name}` is missing", fix)
    text = error.format_message().rstrip(".").replace("is not a valid integer range", "is no whole number")
    return _wrong(shown(text[:1].lower() + text[1:]), fix, _variable(error))


def _variable(error: click.UsageError) -> str:
    """The environment variable that a wrong value comes from, "" where it was typed."""
    context, param = error.ctx, getattr(error, "param", None)
    if context is None or param is None or context.get_parameter_source(param.name) != ParameterSource.ENVIRONMENT:
        return ""
    named = [param.envvar] if isinstance(param.envvar, str) else [*(param.envvar or ())]
    own = f"{context.auto_envvar_prefix}_{param.name}".upper().replace("-", "_")
    return f"environment variable {next((name for name in [*named, own] if os.environ.get(name)), own)}"


# What a typo never stands for: it would replace what is there.
_REPLACES: Final = "--force"


def _meant(typed: str, params: Sequence[click.Parameter]) -> str:
    """What an option stands for that a command does not have: another name, a slip, or the engine's own option."""
    named = next((p.opts[-1] for p in params if isinstance(p, Option) and p.elsewhere == typed), "")
    if named:
        return f"did you mean `{named}`?"
    passes_on = any(isinstance(p, click.Argument) and p.nargs == -1 for p in params)
    behind = f"an option of the engine's comes last, behind `--`: `-- {shown(typed)}`" if passes_on else ""
    safe = [name for p in params for name in p.opts if name != _REPLACES]
    return suggestion(typed, safe) or behind


def _wrong(what: str, fix: str, where: str = "") -> MtpforgeError:
    return MtpforgeError(what, where=where, fix=fix, code=errors.USAGE)
