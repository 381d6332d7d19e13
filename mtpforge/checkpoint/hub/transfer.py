"""Bytes of a hub repository over HTTP, asked for again while the trouble may pass.

    Remote.info(revision)        commit, file names and sizes      api/models/<repo>/revision/<revision>
    Remote.download(file)        a small file, whole               into the hub's cache, by the hub's own means
    Remote.stat(file)            size, etag, download link         HEAD <repo>/resolve/<commit>/<file>
    Remote.chunks(file, range)   exactly the bytes of the range    GET <download link>, Range: bytes=a-b

Endpoint, token, headers, session, timeouts and errors are huggingface_hub's own (2.4.0). Its `http_stream_backoff` is
not used: what breaks in the middle of a body cannot go on inside it, and it sleeps as long as a server asks.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urljoin, urlsplit

from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import (
    build_hf_headers,
    disable_progress_bars,
    enable_progress_bars,
    get_session,
    hf_raise_for_status,
)

from mtpforge.checkpoint.hub import refusals
from mtpforge.checkpoint.hub.cache import disk_errors
from mtpforge.checkpoint.hub.notes import LOG
from mtpforge.checkpoint.hub.ranges import Range
from mtpforge.checkpoint.hub.retries import BUSY, TRIES, Changed, Pace, Patience, Stopped, Trouble, broken, busy, http
from mtpforge.errors import shown

T = TypeVar("T")

_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_PARTIAL: Final = 206
_LINK_EXPIRED: Final = frozenset({401, 403, 404, 410})


@dataclass(frozen=True, slots=True)
class Info:
    """A revision as the hub describes it. files: size in bytes, None where the hub does not say."""

    commit: str
    files: dict[str, int | None]


@dataclass(frozen=True, slots=True)
class Stat:
    """A remote file: size, etag, and the link that serves its bytes (on the hub, or signed and elsewhere)."""

    n_bytes: int
    etag: str
    link: str


@dataclass(frozen=True, slots=True)
class Known:
    """What this process saw of a repository's files, so that it notices when one changes under its commit.

    stats: by file. served: the ETag that came with the bytes, by file and host: hosts of files have their own.
    """

    stats: dict[str, Stat] = field(default_factory=dict)
    served: dict[tuple[str, str], str] = field(default_factory=dict)


class Remote:
    """One repository of the hub, at a revision or commit. Setting `stop` ends its transfers.

    known: for sharing between several; filled as files are asked for.
    """

    def __init__(self, repo: str, revision: str, known: Known | None = None) -> None:
        self.repo, self.revision = repo, revision
        self.stop = threading.Event()
        self._known = known or Known()

    def info(self, instead: Info | None = None) -> Info:
        """The commit that the revision ("" for the default branch) names now, and the files in it.

        instead: the answer where the hub cannot be reached: one try is enough then.
        """

        def ask() -> Info:
            api = HfApi(endpoint=constants.ENDPOINT, library_name="mtpforge")
            timeout = constants.HF_HUB_ETAG_TIMEOUT
            try:
                found = api.model_info(self.repo, revision=self.revision or None, files_metadata=True, timeout=timeout)
            except UnicodeError:  # a ValueError too: the token
                raise
            except (ValueError, TypeError, KeyError):  # no JSON, or not of a model
                raise refusals.not_a_hub(self.repo, "its answer describes no model") from None
            if not _COMMIT.fullmatch(str(found.sha)):
                raise refusals.not_a_hub(self.repo, "it names no commit")
            return Info(str(found.sha), {s.rfilename: s.size for s in found.siblings or ()})

        return self.persist(ask, "", instead)

    def stat(self, file: str) -> Stat:
        """Size, etag and link of a file; the revision must be a commit. Raises Changed where they were others."""

        def ask() -> Stat:
            url = hf_hub_url(self.repo, file, revision=self.revision, endpoint=constants.ENDPOINT)
            found = get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT, headers=_headers(url))
            if found.commit_hash != self.revision or not found.etag or found.size is None:
                raise refusals.not_a_hub(self.where(file), "its answer lacks the commit, etag or size of the file")
            return Stat(int(found.size), str(found.etag), urljoin(url, str(found.location)))

        stat = self.persist(ask, file)
        before = self._known.stats.setdefault(file, stat)
        if (before.n_bytes, before.etag) != (stat.n_bytes, stat.etag):
            raise Changed(file, before.etag, stat.etag)
        self._known.stats[file] = stat
        return stat

    def download(self, file: str, *, again: bool = False) -> Path:
        """A small file, whole, in the hub's cache; the revision must be a commit. The hub's own retries apply.

        again: also where the hub's cache has it.
        """
        try:
            with disk_errors(Path(constants.HF_HUB_CACHE)), self._refusals(file), _cause_of_absence(), _quiet():
                path = hf_hub_download(
                    self.repo,
                    file,
                    revision=self.revision,
                    cache_dir=constants.HF_HUB_CACHE,
                    endpoint=constants.ENDPOINT,
                    library_name="mtpforge",
                    force_download=again,
                )
        except Trouble as trouble:
            give_up = refusals.unreachable if trouble.is_network else refusals.given_up
            raise give_up(self.where(file), trouble.cause, TRIES) from None
        return Path(path)

    def chunks(self, file: str, part: Range, *, again: bool = False) -> Generator[bytes]:
        """Exactly the bytes of `part`, in order; after a failure the next request goes on where the last one ended.

        again: to compare with what came before, so caches on the way are asked to ask the origin.
        """
        patience = Patience(self.where(file), self.stop)
        position = part.start
        while position < part.stop:
            began, stat = position, self._known.stats.get(file)
            if stat is None or not stat.link:
                stat = self.stat(file)
            try:
                with self._refusals(file):
                    for chunk in self._request(file, stat, Range(position, part.stop), again=again):
                        position += len(chunk)
                        yield chunk
            except Trouble as trouble:
                patience.wait(trouble, position - began)
                if not _is_ours(stat.link):
                    self._ask_again(file, stat)  # signed links expire

    def persist(self, ask: Callable[[], T], file: str, instead: T | None = None) -> T:
        """The answer to a question about a file ("" for the repository), asked again while the trouble may pass.

        instead: what to answer where there is no connection, as huggingface_hub's hf_hub_download takes its cache then.
        """
        patience = Patience(self.where(file), self.stop)
        while True:
            try:
                with self._refusals(file):
                    return ask()
            except Trouble as trouble:
                if instead is not None and trouble.is_network:
                    LOG.warning("the hub cannot be reached: %s is used as it was last seen", self.where(file))
                    return instead
                patience.wait(trouble, 0)

    @contextlib.contextmanager
    def _refusals(self, file: str) -> Iterator[None]:
        """Sort what the hub and its HTTP library raise: trouble that may pass, or an error in our words."""
        try:
            yield
        except hub_errors.OfflineModeIsEnabled:
            raise refusals.offline(shown(file) or self.repo, self.where(file), by_option=False) from None
        except hub_errors.FileMetadataError:
            raise refusals.not_a_hub(
                self.where(file), "its answer lacks the commit, etag or size of the file"
            ) from None
        except hub_errors.HfHubHTTPError as error:
            if error.response.status_code in BUSY:
                raise busy(error.response) from None
            raise refusals.refused(error, self.repo, revision=self.revision, file=file) from None
        except (http.UnsupportedProtocol, http.LocalProtocolError, http.InvalidURL, UnicodeError):
            raise refusals.not_asked(self.where(file)) from None
        except http.RequestError as error:
            raise broken(error) from None

    def where(self, file: str) -> str:
        """The file ("" for the repository) as errors name it."""
        at = f"{self.repo}@{shown(self.revision)}" if self.revision else self.repo
        return f"{at}, {shown(file)}" if file else at

    def _request(self, file: str, stat: Stat, part: Range, *, again: bool) -> Generator[bytes]:
        """One GET. Every byte that it yields belongs to `part`, in order from its start."""
        headers = {**_headers(stat.link), "Range": f"bytes={part.start}-{part.stop - 1}"}
        if again:
            headers["Cache-Control"] = "no-cache"
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        received, pace = 0, Pace()
        with get_session().stream("GET", stat.link, headers=headers, timeout=timeout) as response:
            _check(response, stat, part)
            self._check_version(response, file, stat)
            for chunk in response.iter_raw():
                if self.stop.is_set():
                    raise Stopped
                received += len(chunk)
                if received > part.n_bytes:
                    raise Trouble("it sends more bytes than it announced")
                yield chunk
                pace.count(len(chunk))
        if received < part.n_bytes:
            raise Trouble(f"the answer ended after {received:,} of {part.n_bytes:,} bytes")

    def _check_version(self, response: Any, file: str, stat: Stat) -> None:  # noqa: ANN401
        """Raise where the answer is of another version of the file than those before it.

        Hosts of files make their own ETags, compared with that host's first; one of the hub is compared with the hub's.
        """
        tag = response.headers.get("X-Linked-ETag") or response.headers.get("ETag") or ""
        given = tag.removeprefix("W/").strip('"')
        if not given:
            return
        if _is_ours(stat.link) and len(given) == len(stat.etag):  # a mirror may have its own kind too
            first = stat.etag
        else:
            first = self._known.served.setdefault((file, urlsplit(stat.link).netloc), given)
        if given != first:
            self._ask_again(file, stat)
            raise Trouble(f"it serves another version of the file, `{shown(given)}` after `{shown(first)}`")

    def _ask_again(self, file: str, stat: Stat) -> None:
        """Have the next request ask for a link first, and notice then whether the file has changed."""
        if self._known.stats.get(file) is stat:
            self._known.stats[file] = replace(stat, link="")


def _check(response: Any, stat: Stat, part: Range) -> None:  # noqa: ANN401  # httpx.Response or httpx2.Response
    """Raise unless the answer is exactly the range asked for."""
    status, headers = response.status_code, response.headers
    if status in BUSY:
        raise busy(response)
    if status in _LINK_EXPIRED and not _is_ours(stat.link):
        raise Trouble("the download link is no longer valid")
    hf_raise_for_status(response)
    if status != _PARTIAL:
        raise Trouble(f"it answered {status} with the whole file where a part was asked for")
    match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
    if match is None or (int(match[1]), int(match[2])) != (part.start, part.stop - 1):
        raise Trouble("it answered with other bytes than those asked for")
    if match[3] not in {"*", str(stat.n_bytes)}:
        raise Trouble(f"the file now has {int(match[3]):,} bytes, it had {stat.n_bytes:,}")
    if headers.get("Content-Encoding", "identity") != "identity":
        raise Trouble("it answered with compressed bytes")
    if headers.get("Content-Length", str(part.n_bytes)) != str(part.n_bytes):
        raise Trouble("it announced another number of bytes than was asked for")


def _headers(url: str) -> dict[str, str]:
    """Headers of the hub; the token goes to the hub alone, never to where it keeps its files."""
    token = None if _is_ours(url) else False
    headers: dict[str, str] = build_hf_headers(token=token, library_name="mtpforge")
    return {**headers, "Accept-Encoding": "identity"}  # lengths must be those of the file


def _is_ours(url: str) -> bool:
    ours, other = urlsplit(constants.ENDPOINT), urlsplit(url)
    return (ours.scheme, ours.netloc) == (other.scheme, other.netloc)


@contextlib.contextmanager
def _cause_of_absence() -> Iterator[None]:
    """`not in the cache` is what the hub says when the network fails: raise what happened instead."""
    try:
        yield
    except hub_errors.LocalEntryNotFoundError as error:
        raise error.__cause__ or Trouble("it did not deliver the file") from None
    except OSError as error:
        if type(error) is OSError and error.errno is None:  # a length that does not match, in words
            raise Trouble("it delivered another number of bytes than it announced") from None
        raise


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of the hub for small files, unless the environment decides about them."""
    bars = ("huggingface_hub.http_get", "huggingface_hub.xet_get")
    if constants.HF_HUB_DISABLE_PROGRESS_BARS is not None:
        yield
        return
    for bar in bars:
        disable_progress_bars(bar)
    try:
        yield
    finally:
        for bar in bars:
            enable_progress_bars(bar)
