"""push(): a draft that verifies, with its model card, to a repository of the hub.

The transfer is huggingface_hub's: files that a try before has brought there are not sent again. Nothing is uploaded
that mtpforge did not write, and no token is read, kept or printed here.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from mtpforge import errors, manifest
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.checkpoint.hub.retries import http
from mtpforge.checkpoint.metadata import CARD
from mtpforge.durable import files as durable
from mtpforge.errors import MtpforgeError, shown
from mtpforge.publishing.card import is_ours
from mtpforge.report import OnProgress, Report
from mtpforge.verifying import verify

_FILES: Final = ("config.json", "generation_config.json", "hf_quant_config.json", manifest.FILE, CARD, "NOTICE")
_PATTERNS: Final = ("*.safetensors", "*.safetensors.index.json", "LICENSE*", "NOTICE*", "COPYING*")
_AGAIN: Final = "try again; what has arrived is not sent again"
_LOGIN: Final = "`hf auth login`, or set HF_TOKEN"
_REASONS: Final = {
    401: ("the hub wants to know who you are", _LOGIN),
    403: (
        "your token may not write there",
        "a token with write access to that name: https://huggingface.co/settings/tokens",
    ),
    404: ("there is no such user or organisation, or your token may not see it", "check ORG/NAME"),
    409: ("something else is changing that repository", "try again"),
    413: ("the hub takes no file of that size", "build again with `--max-shard-size 5GB`"),
    429: ("the hub asks to slow down", f"in some minutes {_AGAIN}"),
    507: ("the account has no storage left", "free some, or push to another name"),
}


@dataclass(frozen=True, slots=True)
class Upload:
    """What is sent: repository, file -> bytes, and whether it will be private where it is made by this.

    commit: address of the commit, "" for what would be sent.
    """

    repo: str
    files: dict[str, int]
    private: bool
    commit: str = ""

    @property
    def n_bytes(self) -> int:
        """All of it."""
        return sum(self.files.values())


def refuse_names(repo: str, where: str = "argument REPO") -> None:
    """MtpforgeError for a name that is none of a repository, or that the hub takes for none."""
    why = ""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        why = str(error).partition(":")[0]
    if why or repo.count("/") != 1 or not all(repo.split("/")):
        raise MtpforgeError(
            f"`{shown(repo)}` is no name of a repository",
            where=where,
            why=why,
            fix="`ORG/NAME`, your user or organisation first; letters, digits, `-`, `_` and `.`, 96 characters at most",
            code=errors.USAGE,
        )


def verified(draft: Checkpoint, target: Checkpoint | None, on_progress: OnProgress | None) -> Report:
    """What verify says of it. MtpforgeError where the target that it was made for is not known."""
    told = manifest.read(draft)
    if target is None:
        raise MtpforgeError(
            "a draft is published only where it verifies, and its target is not known here",
            where=draft.location,
            why=f"it was made for {told.target.partition('#')[0]}" if told.target else "it was made by a scheme",
            fix="`--target CKPT`, the checkpoint that it is for",
            code=errors.USAGE,
        )
    return verify(draft.location, target, engine=str(told.body["engine"]), on_progress=on_progress)


def decide(draft: Checkpoint, repo: str, *, private: bool, card: bytes | None) -> Upload:
    """What would be sent. card: README.md where the folder's is none or another, else None."""
    folder = Path(draft.location)
    found = {path for pattern in (*_FILES, *_PATTERNS) for path in folder.glob(pattern) if path.is_file()}
    files = {path.name: path.stat().st_size for path in found}
    if card is not None:
        files[CARD] = len(card)
    return Upload(repo, dict(sorted(files.items())), private)


def refuse_local_card(draft: Checkpoint, card: bytes | None, repo: str) -> None:
    """MtpforgeError for a README.md that names the draft's folder on this machine: whoever reads it has none."""
    folder = re.escape(draft.location.encode("utf-8", "surrogateescape"))
    if card is None or not re.search(rb"(?<![\w.-])" + folder, card):  # what a name stands before is the end of another
        return
    anew = shlex.join(["mtpforge", "card", shown(draft.label), "--name", repo, "--force"])
    raise MtpforgeError(
        f"{CARD} names a folder of this machine",
        where=shown(Path(draft.location) / CARD),
        why=f"it says {shown(draft.location)}, where nobody else finds the draft",
        fix=f"`{anew}` writes it again" if is_ours(card) else f"take the folder's name out of {CARD}",
    )


def refuse_unverified(report: Report) -> None:
    """MtpforgeError for a draft that does not verify."""
    failed = [check for check in report.checks if check.verdict == "failed"]
    if failed or not report.ok:
        raise MtpforgeError(
            "this draft does not verify: it is not published",
            why="; ".join(f"{check.name}: {check.detail}" for check in failed[:3]) or report.summary,
            fix=next((check.fix for check in failed if check.fix), "`mtpforge verify DRAFT --target CKPT` says more"),
            code=errors.ANSWER_NO,
        )


def send(draft: Checkpoint, upload: Upload, card: bytes | None) -> Upload:
    """Make the repository where there is none, and send the files; a card that was made is put beside the draft first.

    MtpforgeError, code REMOTE, where the hub does not take them.
    """
    if card is not None:
        durable.replace(Path(draft.location) / CARD, card)
    api = HfApi()
    with _refusals(upload.repo):
        api.create_repo(upload.repo, private=upload.private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=upload.repo,
            folder_path=draft.location,
            allow_patterns=[*upload.files],
            commit_message="MTP draft made with mtpforge",
        )
    return replace(upload, commit=str(commit.commit_url))


@contextmanager
def _refusals(repo: str) -> Iterator[None]:
    """The hub's answers in words; of its texts nothing is repeated but the request's number."""
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise _refused(repo, *_REASONS[401]) from error
    except (HfHubHTTPError, http.HTTPError, OSError, RuntimeError) as error:
        # What goes wrong with one object comes wrapped (huggingface_hub 2.4.0, _commit_api.py, _wrapped_lfs_upload).
        cause = error.__cause__ if type(error) is RuntimeError and error.__cause__ is not None else error
        if isinstance(cause, OSError) and cause.filename:
            why, fix = f"`{shown(str(cause.filename))}` cannot be read ({cause.strerror})", "make the file readable"
        elif isinstance(cause, PermissionError):  # hf_xet's word for a token that is refused
            why, fix = _REASONS[401]
        elif isinstance(cause, HfHubHTTPError):
            status = cause.response.status_code
            why, fix = _REASONS.get(status, (f"it answered {status}", _AGAIN))
        elif isinstance(cause, http.HTTPError | OSError):
            why, fix = f"no connection ({type(cause).__name__})", _AGAIN
        else:  # hf_xet raises nothing more telling
            why, fix = "the transfer broke off", _AGAIN
        raise _refused(repo, why, fix) from error


def _refused(repo: str, why: str, fix: str) -> MtpforgeError:
    return MtpforgeError(f"{shown(repo)} was not written", why=why, fix=fix, code=errors.REMOTE)
