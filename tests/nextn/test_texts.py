"""Windows of a text, against the tokenizer's own library."""

from __future__ import annotations

import os

import pytest
from tokenizers import Tokenizer

from mtpforge.errors import MtpforgeError
from mtpforge.nextn import texts

MOST = 1 << 20


@pytest.fixture(scope="module")
def tokens(tinyglm):
    """Token ids of the evaluation text, by the tokenizer's own library."""
    text = (tinyglm("bf16").parent / "eval.txt").read_text().split("\f")[0]
    return Tokenizer.from_file(str(tinyglm("bf16") / "tokenizer.json")).encode(text, add_special_tokens=False).ids


@pytest.fixture
def text(tmp_path):
    def save(content):
        (tmp_path / "text.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path / "text.txt"

    return save


def test_windows_are_the_text_in_order(tinyglm, text, tokens):
    whole = (tinyglm("bf16").parent / "eval.txt").read_text().split("\f")[0]
    found = texts.windows(text(whole), tinyglm("bf16"), 100, MOST, 512)
    assert [token for window in found for token in window] == tokens[: sum(map(len, found))]
    assert len(tokens) - sum(map(len, found)) < texts.SHORTEST
    assert {len(window) for window in found[:-1]} == {100}


def test_no_window_spans_two_documents(tinyglm, text):
    encode = Tokenizer.from_file(str(tinyglm("bf16") / "tokenizer.json")).encode
    first, second = "the cat sat on the mat", "a dog ran over the hill"
    found = texts.windows(text(f"{first}\f{second}"), tinyglm("bf16"), 1000, MOST, 512)
    assert found == [encode(first).ids, encode(second).ids]


@pytest.mark.parametrize("most", [2, 7, 10, 11, 12, 25])
def test_no_more_tokens_than_asked_for(tinyglm, text, most):
    found = texts.windows(text("the cat sat on the mat. " * 40), tinyglm("bf16"), 10, most, 512)
    assert most - texts.SHORTEST < sum(map(len, found)) <= most
    assert all(texts.SHORTEST <= len(window) <= 10 for window in found)


@pytest.mark.slow
def test_long_text_is_read_no_further_than_needed(tinyglm, text):
    path = text(b"the cat sat. " * 100_000 + b"\xff")
    assert len(texts.windows(path, tinyglm("bf16"), 50, 100, 512)) == 2
    with pytest.raises(MtpforgeError, match="the text is not UTF-8") as error:
        texts.windows(path, tinyglm("bf16"), 50, 1 << 30, 512)
    assert error.value.why == "invalid start byte near byte 1,300,000"


@pytest.mark.parametrize("content", ["", "\f\f", " "])
def test_text_without_a_sequence_is_refused(tinyglm, text, content):
    with pytest.raises(MtpforgeError, match="the text is too short"):
        texts.windows(text(content), tinyglm("bf16"), 10, MOST, 512)


def test_zero_bytes_are_refused_with_their_place(tinyglm, text):
    path = text("the cät".encode() + "sat".encode("utf-16-le"))
    for look in (texts.refuse_unusable, lambda path: texts.windows(path, tinyglm("bf16"), 10, MOST, 512)):
        with pytest.raises(MtpforgeError, match="the text is not plain text") as error:
            look(path)
        assert error.value.why == "byte 9 is zero"


def test_only_the_beginning_of_a_long_text_is_looked_at(text):
    piece = b"the cat sat. " * 161_320  # two reads, and more
    texts.refuse_unusable(text(piece + b"\xff"))
    with pytest.raises(MtpforgeError, match="the text is not UTF-8"):
        texts.refuse_unusable(text(b"the cat sat" + b"\xff" + piece))
    texts.refuse_unusable(text(b" " * (3 << 20) + b"the cat"))


def test_a_pipe_is_left_to_who_reads_it(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    texts.refuse_unusable(tmp_path / "pipe")  # opening it would wait for a writer


def test_tokenizer_of_another_model_is_refused(tinyglm, text, tmp_path):
    with pytest.raises(MtpforgeError, match="the vocabulary has 40"):
        texts.windows(text("the cat sat on the mat"), tinyglm("bf16"), 10, MOST, 40)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(MtpforgeError, match="the target's tokenizer cannot be used"):
        texts.windows(text("the cat"), tmp_path, 10, MOST, 512)
    with pytest.raises(MtpforgeError, match="the target's tokenizer cannot be used"):
        texts.windows(text("the cat"), tmp_path / "nowhere", 10, MOST, 512)
