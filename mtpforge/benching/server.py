"""An OpenAI-compatible server: its models, its metrics page, how it was started. Every failure is one paragraph.

The key is OPENAI_API_KEY's, sent to the addresses that the user names alone: no redirect is followed, no netrc is read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

from mtpforge import errors
from mtpforge.benching import answers, apart
from mtpforge.benching.asked import address
from mtpforge.engines import ENGINES
from mtpforge.errors import MtpforgeError, shown

if TYPE_CHECKING:
    import requests

_CONNECT: Final = 10.0  # seconds
SILENCE: Final = 600.0  # seconds without a byte: the first request of a server may compile for minutes
_LOOK: Final = 30.0  # seconds that models and metrics may take
_OK, _BAD, _UNAUTHORIZED, _FORBIDDEN, _MISSING, _REDIRECT = 200, 400, 401, 403, 404, 300
_KEY: Final = "OPENAI_API_KEY"


@dataclass(slots=True)
class Server:
    """One server. root: without `/v1`. Its connections are kept open until `close`."""

    root: str
    session: requests.Session = field(repr=False)

    def close(self) -> None:
        """Leave it."""
        self.session.close()

    def get(self, path: str) -> bytes | None:
        """What it answers to a GET, None where it has no such page. MtpforgeError where it does not answer in time."""
        return apart.within(_LOOK, partial(self._got, path), partial(self._late, path))

    def stream(self, path: str, body: Mapping[str, object]) -> requests.Response:
        """The begun answer to a POST, its lines still to come."""
        answer = self._asked("POST", path, body, SILENCE)
        if answer.status_code == _MISSING:
            answer.close()
            raise self.refusal(f"has no `{path}`", "the other endpoint may be there: `--endpoint completions`, or chat")
        return self._good(answer, path)

    def refusal(self, what: str, fix: str, why: str = "") -> MtpforgeError:
        """A sentence about this server."""
        return MtpforgeError(f"{self.root} {what}", why=why, fix=fix, code=errors.REMOTE)

    def _got(self, path: str) -> bytes | None:
        answer = self._asked("GET", path, None, _LOOK)
        with answer:
            if answer.status_code == _MISSING:
                return None
            try:
                return answers.body(self._good(answer, path))
            except answers.broken() as error:
                raise self.unreachable(f"broke `{path}` off", error) from error

    def _late(self, path: str) -> MtpforgeError:
        return self.refusal(f"did not answer `{path}` within {_LOOK:.0f} seconds", f"`curl {self.root}{path}`")

    def _asked(self, method: str, path: str, body: Mapping[str, object] | None, seconds: float) -> requests.Response:
        try:
            return self.session.request(
                *(method, self.root + path),
                json=body,
                stream=True,
                timeout=(_CONNECT, seconds),
                allow_redirects=False,
            )
        except answers.broken() as error:
            raise self.unreachable("does not answer", error) from error

    def unreachable(self, what: str, error: Exception) -> MtpforgeError:
        """A connection that failed, at its beginning or on the way."""
        return self.refusal(what, f"is the server up? `curl {self.root}/v1/models`", why=answers.reason(error))

    def _good(self, answer: requests.Response, path: str) -> requests.Response:
        """The answer, if it is one."""
        code = answer.status_code
        if code == _OK:
            return answer
        told = answers.told(answer) if code != _UNAUTHORIZED else ""
        answer.close()
        if code in (_UNAUTHORIZED, _FORBIDDEN):
            given = "the one in OPENAI_API_KEY is refused" if os.environ.get(_KEY) else f"`{_KEY}` is not set"
            raise self.refusal("wants a key", f"`export {_KEY}=...` with the key that it was started with", why=given)
        if code // 100 == _REDIRECT // 100:
            target = shown(answer.headers.get("Location", "elsewhere"))
            raise self.refusal(f"sends `{path}` on to {target}", "name the server itself: load is sent nowhere else")
        log = "the server's log says why"
        if code == _BAD and "chat" in path:
            log += "; a model without a chat template: `--endpoint completions`"
        raise self.refusal(f"answers `{path}` with {code}", log, why=told)


def connected(url: str) -> Server:
    """A server by its address; nothing is sent yet."""
    import requests

    session = requests.Session()
    key = os.environ.get(_KEY, "").strip()
    if not (key.isascii() and key.isprintable()):
        # requests would print it with its refusal
        raise MtpforgeError(
            f"the key in {_KEY} is none",
            why="it holds line breaks or letters that no header may have",
            fix=f"`export {_KEY}=...` with the key alone",
            code=errors.REMOTE,
        )

    def signed(request: requests.PreparedRequest) -> requests.PreparedRequest:
        if key:
            request.headers["Authorization"] = f"Bearer {key}"
        return request

    session.headers["Accept-Encoding"] = "identity"  # nothing that is small here and large once it is unpacked
    session.auth = signed  # also keeps requests from asking ~/.netrc
    session.mount("http://", _adapter())
    session.mount("https://", _adapter())
    return Server(address(url), session)


def _adapter() -> requests.adapters.HTTPAdapter:
    from requests.adapters import HTTPAdapter

    return HTTPAdapter(pool_connections=1, pool_maxsize=512, max_retries=0)


def model_of(server: Server, asked: str) -> tuple[str, str]:
    """The model to ask for, and the checkpoint that it names as its root. MtpforgeError where one has to be chosen."""
    served = _served(server)
    names = ", ".join(shown(name) for name in served)
    if asked:
        if asked not in served:
            raise server.refusal(
                f"serves no model `{shown(asked)}`", "`--model` with one of them", why=f"it has {names}"
            )
        return asked, served[asked]
    if len(served) > 1:
        first = shown(next(iter(served)))
        raise server.refusal(f"serves {len(served)} models", f"say which: `--model {first}`", why=f"they are {names}")
    return next(iter(served.items()))


def model_beside(server: Server, name: str, root: str) -> tuple[str, str]:
    """Of a second server the model that is likeliest that of the first: by its name, by its root, or the only one."""
    served = _served(server)
    if name in served:
        return name, served[name]
    return next(((other, path) for other, path in served.items() if root and path == root), next(iter(served.items())))


def _served(server: Server) -> dict[str, str]:
    """Models by name, with the checkpoint of each, "" where it is not told."""
    rows = _rows(server)
    if rows is None:
        raise server.refusal(
            "is no OpenAI-compatible server: it has no list at `/v1/models`",
            "name the root of the server, without the path of an endpoint",
        )
    served = {str(row.get("id")): str(row.get("root") or "") for row in rows if isinstance(row, Mapping)}
    if not served:
        raise server.refusal("serves no model", "wait until it has loaded one")
    return served


def _rows(server: Server) -> list[object] | None:
    """Of the list of models."""
    found = answers.document(server.get("/v1/models") or b"") or {}
    rows = found.get("data")
    return rows if isinstance(rows, list) else None


def metrics(server: Server) -> str:
    """The page of its metrics."""
    answer = server.get("/metrics")
    if answer is None:
        enable = "; ".join(each.counters.enable for each in ENGINES.values() if each.counters)
        raise server.refusal("has no metrics, so nobody counts what is accepted", enable, why="`/metrics` is not there")
    return answer.decode("utf-8", "replace")


def told(server: Server, path: str) -> Mapping[str, object] | None:
    """How it says that it was started; None where it does not say."""
    try:
        return answers.document(server.get(path) or b"")
    except MtpforgeError:
        return None
