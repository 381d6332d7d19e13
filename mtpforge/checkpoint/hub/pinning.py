"""Which commit a revision is, and which files that commit holds: asked of the hub, or remembered."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Final

from huggingface_hub import constants, try_to_load_from_cache

from mtpforge.checkpoint.hub import cache, refusals
from mtpforge.checkpoint.hub.transfer import Info, Remote
from mtpforge.errors import shown

_LISTING: Final = ".repository.json"
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_MAIN: Final = "main"


def pin(repo: str, revision: str | None, *, offline: bool) -> Info:
    """The commit of a revision (None: the default branch) and its files. A full commit seen before is not asked for."""
    if _COMMIT.fullmatch(revision or "") and (known := _listed(repo, str(revision))):
        return known
    remembered = _remembered(repo, revision)
    if offline or constants.HF_HUB_OFFLINE:
        if remembered is None:
            label = f"{repo}@{shown(revision)}" if revision else repo
            raise refusals.offline(f"`{label}`", label, by_option=offline)
        return remembered
    info = Remote(repo, revision or "").info(remembered)
    if info is remembered:
        return info
    cache.replace_text(cache.commit_folder(repo, info.commit) / _LISTING, json.dumps({"files": info.files}))
    cache.replace_text(cache.ref_file(repo, revision or _MAIN), info.commit)
    return info


def whole(repo: str, commit: str, file: str) -> Path | None:
    """A file that the hub's cache holds whole."""
    found = try_to_load_from_cache(repo, file, cache_dir=constants.HF_HUB_CACHE, revision=commit)
    return Path(found) if isinstance(found, str) else None


def _listed(repo: str, commit: str) -> Info | None:
    """The files of a commit as they were seen before; None when they were not."""
    path = cache.commit_folder(repo, commit) / _LISTING
    try:
        files = json.loads(path.read_bytes())["files"]
        return Info(commit, {str(name): None if size is None else int(size) for name, size in files.items()})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _remembered(repo: str, revision: str | None) -> Info | None:
    """A revision as it was last seen, by us or by the hub's own tools; None where it was not."""
    folder = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    refs = (cache.ref_file(repo, revision or _MAIN), folder / "refs" / (revision or _MAIN))
    seen = [(ref.stat().st_mtime_ns, ref.read_text().strip()) for ref in refs if ref.is_file()]
    commit = max(seen)[1] if seen else revision or ""
    snapshot = folder / "snapshots" / commit
    if _COMMIT.fullmatch(commit) is not None:
        if (listed := _listed(repo, commit)) is not None:
            return listed
        if snapshot.is_dir():
            found = (path for path in snapshot.rglob("*") if path.is_file())
            return Info(commit, {path.relative_to(snapshot).as_posix(): path.stat().st_size for path in found})
    return None
