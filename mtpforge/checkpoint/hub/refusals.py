"""What goes wrong between here and the hub, in words. Every error here has exit code 4, but that of a disk: 5.

No message quotes a URL that a server named or the text of an HTTP library: download links are signed, and an illegal
header is quoted with the token in it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from huggingface_hub import constants, get_token
from huggingface_hub import errors as hub_errors

from mtpforge import errors
from mtpforge.errors import MtpforgeError, shown

_NOT_FOUND: Final = 404
_KEPT: Final = "what was fetched is kept"
_DROPPED: Final = "what cannot be trusted was dropped"
_WAY: Final = "try without the proxy or mirror in between (`HF_ENDPOINT`, HTTPS_PROXY), or from another network"


def refused(error: hub_errors.HfHubHTTPError, repo: str, *, revision: str, file: str = "") -> MtpforgeError:
    """What an answer of the hub means (huggingface_hub 2.4.0, utils/_http.py, hf_raise_for_status)."""
    where = f"{repo}@{shown(revision)}, {shown(file)}" if file else f"{repo}@{shown(revision)}" if revision else repo
    page = f"{constants.ENDPOINT}/{repo}"
    status = error.response.status_code
    if isinstance(error, hub_errors.GatedRepoError):
        return _gated(repo, where, page)
    if isinstance(error, hub_errors.RevisionNotFoundError):
        fix = f"take a branch, tag or commit from {page}/commits/main, or leave out `@{shown(revision)}`"
        return _remote(f"{repo} has no revision `{shown(revision)}`", where, "", fix)
    if isinstance(error, hub_errors.RemoteEntryNotFoundError):
        return no_file(repo, revision, file)
    if isinstance(error, hub_errors.RepositoryNotFoundError) or status == _NOT_FOUND:
        seen = "the token in use may not see it" if get_token() else "no token is set"
        fix = f"check the name at {page}; for a private repository set `HF_TOKEN` or run `hf auth login`"
        why = f"the name is wrong, or the repository is private and {seen}"
        return _remote(f"the hub has no model repository `{repo}`", where, why, fix)
    if status in {401, 403}:
        fix = "check the token with `hf auth whoami`, then set a valid `HF_TOKEN`, or unset it for a public repository"
        return _remote("the hub refuses the token in use", where, f"it answered {status}", fix)
    return _remote(f"the hub refuses to serve {repo}", where, f"it answered {status}", f"look at {page}")


def _gated(repo: str, where: str, page: str) -> MtpforgeError:
    if get_token():
        why, fix = "the account of the token in use has no access", f"ask for access at {page}, then run this again"
    else:
        why = "its files need a token of an account that has accepted the licence, and no token is set"
        fix = f"accept the licence at {page}, then set `HF_TOKEN` or run `hf auth login`"
    return _remote(f"{repo} is gated", where, why, fix)


def no_file(repo: str, revision: str, file: str) -> MtpforgeError:
    """A file that the commit does not hold."""
    fix = f"look at {constants.ENDPOINT}/{repo}/tree/{shown(revision)}"
    return _remote(f"{repo} has no file `{shown(file)}`", f"{repo}@{shown(revision)}", "", fix)


def offline(what: str, where: str, *, by_option: bool, damage: str = "") -> MtpforgeError:
    """Something that is not cached, or no longer whole there, while the network must not be used."""
    cause, fix = ("`--offline` was given", "leave out `--offline`")
    if not by_option:
        cause, fix = "HF_HUB_OFFLINE is set", "run `unset HF_HUB_OFFLINE`"
    if damage:
        cause = f"{damage}, and {cause}"
    return _remote(f"{what} is not cached", where, cause, f"{fix}, or run this once with a network")


def unreachable(where: str, cause: str, tries: int) -> MtpforgeError:
    """No connection at all."""
    fix = (
        f"check the network, proxies and `HF_ENDPOINT`, then run this again: {_KEPT}; `--offline` uses the cache alone"
    )
    return _remote(f"the hub cannot be reached, tried {tries} times", where, cause, fix)


def given_up(where: str, cause: str, tries: int) -> MtpforgeError:
    """Answers that stayed wrong."""
    return _remote(f"the hub failed {tries} times in a row", where, cause, f"run this again later: {_KEPT}")


def changed(where: str, before: str, now: str) -> MtpforgeError:
    """Another version of a file under the same commit, between two requests of this run."""
    why = f"a commit should not change, but its etag was `{shown(before)}` and is now `{shown(now)}`"
    return _remote(
        "a file changed on the hub while it was read", where, why, "run this again: it starts over with the new version"
    )


def other_header(path: Path) -> MtpforgeError:
    """A header that came damaged and could be parsed: known only after a second transfer."""
    why = "a second transfer brought other bytes, until two agreed"
    return _remote("the header of a file came damaged", shown(path), why, f"run this again: {_KEPT}")


def altered(where: str, expected: str, found: str) -> MtpforgeError:
    """A whole file that has another hash than the hub says, twice."""
    why = f"the hub says {shown(expected)}, what came twice has {found}"
    return _remote("a file does not have the hash that the hub names", where, why, f"{_WAY}; {_DROPPED}")


def disagreeing(where: str, n_bytes: int, transfers: int) -> MtpforgeError:
    """Bytes that differ in every transfer."""
    why = f"{n_bytes:,} bytes came differently in each of {transfers} transfers"
    return _remote("the connection changes the bytes that it carries", where, why, f"{_WAY}; {_DROPPED}")


def rotten(path: Path) -> MtpforgeError:
    """A cache that does not keep what was written to it a moment ago."""
    return MtpforgeError(
        "the disk of the download cache damages what is written to it",
        where=shown(path),
        why="bytes that were fetched again for their checksum read otherwise at once",
        fix="look after the disk, or set `MTPFORGE_CACHE` to a folder on another one",
        code=errors.MACHINE,
    )


def told_to_wait(where: str, cause: str, seconds: float) -> MtpforgeError:
    """The server wants a longer pause than a command should take."""
    fix = f"run this again in {seconds / 60:.0f} minutes: {_KEPT}"
    if not get_token():
        fix += "; with `HF_TOKEN` set the limits are higher"
    return _remote(f"the hub asks to wait {seconds:.0f} s", where, cause, fix)


def not_a_hub(where: str, why: str) -> MtpforgeError:
    """Answers that the hub would not give: a login page of a network, a mirror that is none."""
    fix = "check `HF_ENDPOINT`, proxies, and whether this network wants a login"
    return _remote(f"{shown(constants.ENDPOINT)} does not answer like the hub", where, why, fix)


def not_asked(where: str) -> MtpforgeError:
    """A request that the HTTP library will not send."""
    fix = "`HF_ENDPOINT` must begin with https:// or http://, `HF_TOKEN` must be one word of ASCII characters"
    return _remote("the request to the hub cannot be made", where, "the address or the token is malformed", fix)


def _remote(what: str, where: str, why: str, fix: str) -> MtpforgeError:
    return MtpforgeError(what, where=where, why=why, fix=fix, code=errors.REMOTE)
