"""What comes back from a server, read with bounds: whoever answers may send anything, for as long as it likes.

body      a whole answer of a bounded size
document  a JSON object, None where it is none
events    the JSON objects of a stream of server-sent events
reason    why a connection failed, from the bottom of a chain of wrappers
"""

from __future__ import annotations

import errno
import http.client
import json
import os
import ssl
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from mtpforge.errors import shown

if TYPE_CHECKING:
    import requests

_DATA: Final = b"data:"
_CLOSED: Final = "the connection was closed in the middle of it"
_WITHOUT: Final = "the connection was closed without an answer"
# What `reason` says where the other side closed: it may have ended.
_ENDS: Final = frozenset((_CLOSED, _WITHOUT, os.strerror(errno.ECONNRESET), os.strerror(errno.EPIPE)))
_PREMATURE: Final = "Response ended prematurely"  # urllib3's words, where it closes between two parts
_DONE: Final = b"[DONE]"
_PART: Final = 512  # bytes that are waited for at once, where they do not come in chunks of their own
_LARGEST: Final = 64 << 20  # bytes of an answer
_LINE: Final = 4 << 20  # bytes of an event
_TOLD: Final = 2000  # bytes of a refusal that are looked at


class NoEventsError(ValueError):
    """What came was no stream of events."""


class HalfError(ValueError):
    """A stream of events that ended before its end was told."""


def broken() -> tuple[type[Exception], ...]:
    """What a connection may raise that fails, or an answer that is not HTTP."""
    import requests
    from urllib3.exceptions import HTTPError

    return (requests.RequestException, HTTPError, http.client.HTTPException, OSError, ValueError)


def body(answer: requests.Response) -> bytes:
    """All of it. ValueError for more than any list of models or page of metrics has."""
    found = bytearray()
    for part in answer.iter_content(1 << 16):
        found += part
        if len(found) > _LARGEST:
            raise ValueError(f"more than {_LARGEST >> 20} MiB")
    return bytes(found)


def told(answer: requests.Response) -> str:
    """The beginning of a refusal's words, as far as they can be read."""
    found = bytearray()
    try:
        for part in answer.iter_content(_PART):
            found += part
            if len(found) >= _TOLD:
                break
    except broken():
        pass  # the code was told before its words broke off
    return shown(found[:_TOLD].decode("utf-8", "replace").strip())


def document(text: bytes) -> Mapping[str, object] | None:
    """A JSON object; None for anything else."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):  # brackets may be nested deeper than Python's stack
        return None
    return found if isinstance(found, dict) else None


def events(answer: requests.Response) -> Iterator[Mapping[str, object]]:
    """The JSON objects of a stream, in their order.

    NoEventsError where no line is an event, HalfError where `[DONE]` did not come, ValueError for an event that is no
    JSON object.
    """
    first, is_stream, is_done = b"", False, False
    for line in _lines(answer):
        first = first or line
        if not line.startswith(_DATA):
            continue
        is_stream = True
        text = line[len(_DATA) :].strip()
        if text == _DONE:
            is_done = True  # read on to the end, so that the connection can be used again
        elif text:
            found = document(text)
            if found is None:
                raise ValueError(f"an event is no JSON object: `{shown(text.decode('utf-8', 'replace'))}`")
            yield found
    if not is_stream:
        told = f"it begins with `{shown(first[:_TOLD].decode('utf-8', 'replace'))}`" if first else "it is empty"
        raise NoEventsError(told)
    if not is_done:
        raise HalfError("the connection ended before `data: [DONE]`")


def _lines(answer: requests.Response) -> Iterator[bytes]:
    """Lines without their ends. ValueError for one that is longer than any event."""
    rest = b""
    for part in _parts(answer):
        *whole, rest = (rest + part).split(b"\n")
        yield from (line.strip() for line in whole)
        if len(rest) > _LINE:
            raise ValueError(f"a line is longer than {_LINE >> 20} MiB")
    yield rest.strip()


def _parts(answer: requests.Response) -> Iterator[bytes]:
    """Bytes as they come: a token must not wait for the next one to be seen."""
    read1 = getattr(answer.raw, "read1", None)  # an older urllib3 has none
    if read1 is None or answer.raw.chunked:
        yield from answer.iter_content(_PART)  # never beyond the end of a chunk
    else:
        yield from iter(lambda: read1(1 << 16), b"")


def closed(why: str) -> bool:
    """Whether a reason is that the other side closed the connection."""
    return why in _ENDS


def reason(error: BaseException) -> str:
    """In words, on one line."""
    inner: BaseException | None = error
    seen: set[int] = set()
    while inner is not None and id(inner) not in seen:
        seen.add(id(inner))
        error = inner
        if isinstance(error, http.client.IncompleteRead):
            break  # below it lies how urllib3 noticed: a length that is no number
        inner = _wrapped(error)
    match error:
        case http.client.RemoteDisconnected():
            return _WITHOUT
        case http.client.BadStatusLine():
            return f"it does not speak HTTP: `{shown(error)}`"
        case http.client.IncompleteRead():
            length = getattr(error, "length", b"")  # of urllib3's InvalidChunkLength: the line that came
            if isinstance(length, bytes) and length.strip():
                return f"the length of a part is no number: `{shown(length.decode('utf-8', 'replace'))}`"
            return _CLOSED
        case ssl.SSLError(reason="WRONG_VERSION_NUMBER"):
            return "it does not speak TLS: its address may begin with `http://`"
        case TimeoutError():
            return "it was silent for too long"
        case OSError(strerror=str(words)):
            return shown(words)
    words = str(error) or type(error).__name__
    return _CLOSED if words == _PREMATURE else shown(words)


def _wrapped(error: BaseException) -> BaseException | None:
    """The exception inside of another one: requests and urllib3 keep it in any of these places."""
    context = None if error.__suppress_context__ else error.__context__
    found = (getattr(error, "reason", None), *error.args, error.__cause__, context)
    return next((each for each in found if isinstance(each, BaseException)), None)
