"""Checkpoints: folders and hub repositories of which only config, names, headers and byte ranges are read."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias, Union

from mtpforge.errors import MtpforgeError, shown

if TYPE_CHECKING:
    from mtpforge.checkpoint.checkpoint import Checkpoint

# What a function takes for a checkpoint: what a user would type, a path, or one that is open already.
Named: TypeAlias = Union["Checkpoint", str, os.PathLike[str]]

_SCALES: Final = ".safetensors"
# huggingface_hub.utils.validate_repo_id: letters, digits, `-`, `_`, `.`; at most 96 characters; no `--` and no `..`.
_HUB_NAME: Final = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::(?P<choice>[^@\s]+))?(?:@(?P<revision>[^@\s]+))?", re.ASCII
)
_FILES: Final = (".json", ".safetensors", ".gguf", ".bin", ".git")  # somebody means a file


def open_checkpoint(named: Named, *, offline: bool = False) -> Checkpoint:
    """The checkpoint that a user names: a folder, a GGUF file, or a hub id `org/name[:choice][@revision]`.

    One that is open is handed back. choice: which model, where a repository for llama.cpp holds several.

    What exists on disk wins, also a folder that is called as an organisation of the hub: there a revision, or a choice,
    says that the hub is meant. `./x`, `../x`, `~/x` and absolute paths are always paths; a path to a config.json means
    its folder. offline: nothing is asked of the hub. Neither path nor hub id is an error with what was meant.
    """
    if not isinstance(named, str | os.PathLike):
        return named
    from mtpforge.checkpoint import folder

    text = os.fspath(named)
    path = _path(text)
    if text and _exists(path):
        return folder.open_local(path, label=text)
    if text.startswith((".", "~", "/")):
        raise _absent(text, f"no folder at `{shown(path.absolute())}`")
    refuse_below_a_folder(text)
    match = _hub_name(text)
    if match is None:
        nowhere = f"there is no such folder, and a hub id looks like `org/name` or `org/name@revision`{_meant(text)}"
        raise _absent(text, "there is no such file here" if text.endswith(_FILES) else nowhere)
    return _opened(match, offline=offline)


def open_served(named: Named, *, offline: bool = False) -> Checkpoint:
    """The same for a checkpoint that is to be served with a draft. One that can only be a source is an error."""
    opened = open_checkpoint(named, offline=offline)
    if opened.only_source:
        raise MtpforgeError(
            f"`{shown(opened.label)}` cannot be a target",
            where=shown(opened.location),
            why=opened.only_source,
            fix=f"name what the engine serves: `--target CKPT`; the layer can come from here: `--source"
            f" {shown(opened.label)}`",
        )
    return opened


def open_base_model(name: str, *, offline: bool = False) -> Checkpoint:
    """The checkpoint that a card or a family names by its hub id: a folder of that very path, else the hub's.

    Nobody typed it: a folder that is called as the organisation is no sign that a path was meant.
    """
    match = _hub_name(name)
    if match is None or _exists(Path(name)):
        return open_checkpoint(name, offline=offline)
    return _opened(match, offline=offline)


def _opened(match: re.Match[str], *, offline: bool) -> Checkpoint:
    from mtpforge.checkpoint.hub import repository

    return repository.open_hub(match["name"], match["revision"], choice=match["choice"] or "", offline=offline)


def open_scales(named: Named, config: Mapping[str, object], *, offline: bool = False) -> Checkpoint:
    """The checkpoint that holds activation scales: as `open_checkpoint`, or one *.safetensors file of scales alone.

    config: of the model that the file is about, as it has none of its own.
    """
    from mtpforge.checkpoint import folder

    if isinstance(named, str | os.PathLike):
        text = os.fspath(named)
        path = _path(text)
        if text.endswith(_SCALES) and _exists(path) and path.is_file():
            return folder.open_file(path, config, label=text)
    return open_checkpoint(named, offline=offline)


def _path(text: str) -> Path:
    return Path(os.path.expanduser(text)) if text.startswith("~") else Path(text)  # noqa: PTH111  # no error for ~nobody


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long for the file system, a null byte
        return False


def _hub_name(text: str) -> re.Match[str] | None:
    """Name and revision, where the hub could have such a repository."""
    match = _HUB_NAME.fullmatch(text.rstrip("/"))
    if match is None or "--" in match["name"] or ".." in match["name"] or match["name"].endswith(_FILES):
        return None
    return match


def refuse_below_a_folder(text: str) -> None:
    """MtpforgeError for a name like a hub id whose first part is a folder here: the path is what was meant."""
    first, slash, rest = text.rstrip("/").partition("/")
    if not slash or {"@", ":"} & {*rest} or not _exists(Path(first)) or not Path(first).is_dir():
        return
    near: list[str] = []
    with contextlib.suppress(OSError):
        near = difflib.get_close_matches(rest, [place.name for place in Path(first).iterdir()], 1)
    meant = [f"did you mean `{shown(f'{first}/{near[0]}')}`?"] if near else []
    if match := _hub_name(text):
        meant.append(f"a repository of that name on the hub is `{match['name']}@main`")
    why = f"`{shown(first)}` is a folder here and holds no `{shown(rest)}`; the hub was not asked"
    raise _absent(text, why, " ".join(meant))


def _meant(text: str) -> str:
    if found := re.search(r"huggingface\.co/([\w.-]+/[\w.-]+)", text):
        return f"; did you mean `{shown(found[1])}`?"
    return "; add the organisation in front" if text and "/" not in text else ""


def _absent(text: str, why: str, fix: str = "") -> MtpforgeError:
    return MtpforgeError(
        f"`{shown(text)}` is no checkpoint",
        where=shown(text),
        why=why,
        fix=fix or "give a folder with a config.json, or a hub id such as `zai-org/GLM-5.2-FP8`",
    )
