"""windows(): the token ids of a text, cut into sequences, by the tokenizer.json of a checkpoint.

A form feed starts a new document; no window spans two. Nothing is put before or between them: windows lie anywhere in
running text, and only some would begin with the tokens that begin a prompt.
"""

from __future__ import annotations

import codecs
import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from mtpforge import errors
from mtpforge.errors import MtpforgeError, shown

TOKENIZER: Final = "tokenizer.json"
USUAL_LENGTH: Final = 2048  # index_topk of GLM-5.2: in a window of as many tokens each sees all before it
USUAL_TOKENS: Final = 32_768  # their activations of GLM-5.2 fit into the 1 GiB that a reader of the file holds
SHORTEST: Final = 2  # tokens of a sequence: each is scored with the one after it
_PIECE_BYTES: Final = 1 << 20
_MAX_TOKENIZER_BYTES: Final = 200_000_000  # GLM-5.2's has 20 million
_NEW_DOCUMENT: Final = "\f"


def refuse_unusable(text: Path) -> None:
    """MtpforgeError for a text that is not there, no text or empty, before anything else is loaded.

    Only the beginning of a long text is read, and nothing of what can be read but once: a pipe.
    """
    try:
        mode = text.stat().st_mode
    except OSError as error:
        raise _unreadable(text, error) from error
    if stat.S_ISDIR(mode) or not os.access(text, os.R_OK):
        number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EACCES
        raise _unreadable(text, OSError(number, os.strerror(number)))
    if not stat.S_ISREG(mode):
        return
    has_words = False
    for number, piece in enumerate(_decoded(text)):
        has_words = has_words or bool(piece.strip())
        if has_words and number:
            return
    if not has_words:
        raise _too_short(text, "the text is empty", "it holds nothing, or nothing but blanks")


def windows(text: Path, folder: Path, length: int, most: int, vocab_size: int) -> list[list[int]]:
    """Windows of `length` token ids, at most `most` tokens in all; the rest of a document is a shorter window.

    No more of the text is read than is needed. A text that is empty, no UTF-8 or too short, a missing or broken
    tokenizer and a token id that lies beyond `vocab_size` are MtpforgeErrors. No code of the checkpoint is run.
    """
    encode = _encoder(folder / TOKENIZER)
    found: list[list[int]] = []
    left, held = most, list[int]()
    for piece, begins in _pieces(text):
        if begins:
            left -= _cut(found, held, length, left, whole=False)
            held = []
        held += _checked(encode(piece), vocab_size, folder)
        left -= _cut(found, held, length, left, whole=True)
        if left < SHORTEST:
            break
    _cut(found, held, length, left, whole=False)
    if not found:
        raise _too_short(text, "the text is too short", f"a sequence has at least {SHORTEST} tokens")
    return found


def _cut(found: list[list[int]], held: list[int], length: int, left: int, *, whole: bool) -> int:
    """Move windows from the front of `held` to `found`; how many tokens went. whole: only those of full length."""
    moved = 0
    while held and moved < left:
        n = min(length, left - moved, len(held))
        if n < SHORTEST or (whole and len(held) < min(length, left - moved)):
            break
        found.append(held[:n])
        del held[:n]
        moved += n
    return moved


def _checked(ids: list[int], vocab_size: int, folder: Path) -> list[int]:
    if ids and max(ids) >= vocab_size:
        raise MtpforgeError(
            f"the tokenizer gives token id {max(ids):,}, the vocabulary has {vocab_size:,}",
            where=shown(folder / TOKENIZER),
            why="tokenizer and weights are of different models",
            fix="fetch tokenizer.json again from where the target was published",
        )
    return ids


def _encoder(file: Path) -> Callable[[str], list[int]]:
    from tokenizers import Tokenizer

    if file.is_file() and file.stat().st_size > _MAX_TOKENIZER_BYTES:
        raise _unusable(file, f"it is larger than {_MAX_TOKENIZER_BYTES:,} bytes")
    try:
        tokenizer = Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise _unusable(file, shown(error.strerror or error)) from error
    except Exception as error:  # the library raises no other class
        raise _unusable(file, shown(error)) from error

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    return encode


def _unusable(file: Path, why: str) -> MtpforgeError:
    return MtpforgeError(
        "the target's tokenizer cannot be used",
        where=shown(file),
        why=why,
        fix="fetch tokenizer.json again from where the target was published",
    )


def _pieces(text: Path) -> Iterator[tuple[str, bool]]:
    """The text in pieces, and whether each begins a document."""
    begins = True
    for decoded in _decoded(text):
        for number, part in enumerate(decoded.split(_NEW_DOCUMENT)):
            begins = begins or number > 0
            if part:
                yield part, begins
                begins = False


def _decoded(text: Path) -> Iterator[str]:
    decoder, done = codecs.getincrementaldecoder("utf-8")(), 0
    try:
        with text.open("rb") as file:
            while raw := file.read(_PIECE_BYTES):
                decoded = decoder.decode(raw)
                if "\0" in decoded:
                    raise _binary(text, done + raw.index(0))
                yield decoded
                done += len(raw)
            yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        why = f"{error.reason} near byte {done + error.start:,}"
        fix = f"save it as UTF-8; if it is Latin-1: `iconv -f LATIN1 -t UTF-8 {shown(text)} > utf8.txt`"
        raise MtpforgeError("the text is not UTF-8", where=shown(text), why=why, fix=fix) from error
    except OSError as error:
        raise _unreadable(text, error) from error


def _binary(text: Path, byte: int) -> MtpforgeError:
    """Zero bytes are UTF-8 by the letter, and what UTF-16 and weights are full of."""
    return MtpforgeError(
        "the text is not plain text",
        where=shown(text),
        why=f"byte {byte:,} is zero",
        fix=f"name a plain text file; if it is UTF-16: `iconv -f UTF-16 -t UTF-8 {shown(text)} > utf8.txt`",
    )


def _too_short(text: Path, what: str, why: str) -> MtpforgeError:
    return MtpforgeError(what, where=shown(text), why=why, fix="name a file with more text with `--text`")


def _unreadable(text: Path, error: OSError) -> MtpforgeError:
    why, fix = shown(error.strerror or error), "name a plain text file with `--text`"
    return MtpforgeError("the text cannot be read", where=shown(text), why=why, fix=fix, code=errors.INPUT)
