"""Prompts that come with mtpforge: the same on every machine, and different from each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtpforge.benching import asked as asked_for
from mtpforge.benching import corpus, slices
from mtpforge.errors import MtpforgeError

PAGE = Path(__file__).parents[2] / "docs" / "bench.md"


def test_classes_are_the_files_of_the_folder():
    assert corpus.classes() == ("agentic", "chat", "code", "prose")


@pytest.mark.parametrize("content", ["agentic", "chat", "code", "prose"])
def test_prompts_of_a_class_are_different_until_they_are_through(content):
    found = corpus.prompts(content, 40)
    assert len({prompt.text for prompt in found}) == 36
    assert [prompt.seed for prompt in found] == [0] * 36 + [1] * 4
    assert found[36].text == found[0].text
    assert corpus.prompts(content, 8) == found[:8]
    assert not any("{passage}" in prompt.text for prompt in found)


def test_page_tells_how_many_prompts_were_asked_before():
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    asked, told = set[str](), []
    for concurrency in asked_for.CONCURRENCY:
        some = corpus.prompts("code", asked_for.Asked(url="").prompts_at(concurrency))
        texts = {prompt.text for prompt in some}
        told.append((concurrency, len(some), len(texts), len(texts & asked), len(texts - asked)))
        asked |= texts
    assert told == [(1, 8, 8, 0, 8), (4, 32, 32, 8, 24), (16, 128, 36, 32, 4)]
    one, four, sixteen = told
    assert f"{one[0]} at a time asks {one[1]} prompts; " in page
    assert f"{four[0]} at a time asks {four[1]}, of which it was asked {four[3]} before; " in page
    assert (
        f"{sixteen[0]} at a time asks {sixteen[1]} of {sixteen[2]} texts, of which {sixteen[4]} are new, once." in page
    )


def test_page_tells_how_a_cell_is_cut():
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert [len(slices.cut("code", *each, asked_for.SLICES)) for each in ((16, 64), (16, 128), (1, 8))] == [2, 4, 4]
    assert "`--prompts 64` at 16 makes two." in page
    for concurrency, fewest in ((1, 2), (16, 64)):
        asked_for.refuse(asked_for.Asked(url="", concurrency=(concurrency,), prompts=fewest))
        with pytest.raises(MtpforgeError, match="an interval needs two slices"):
            asked_for.refuse(asked_for.Asked(url="", concurrency=(concurrency,), prompts=fewest - 1))
    assert "at least 2 at 1, half of the default above that" in page


def test_neighbours_share_neither_passage_nor_task():
    first, second = (prompt.text.split("\n\n", 1) for prompt in corpus.prompts("prose", 2))
    assert first[0] != second[0]
    assert first[1] != second[1]


def test_warming_up_has_a_seed_of_its_own():
    found = corpus.prompts("chat", 2)
    warm = corpus.warm(found, 5)
    assert [prompt.text for prompt in warm] == [found[n % 2].text for n in range(5)]
    assert {prompt.seed for prompt in warm} & {0, 1} == set()


def test_pieces_of_a_text_are_spread_over_it(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("a" * 1200 + "b" * 1200 + "c" * 600 + "\fdocument two\f")
    pieces = corpus.pieces(text)
    assert [piece[:1] + piece[-1:] for piece in pieces] == ["aa", "bb", "cc", "do"]
    assert [prompt.text[-1] for prompt in corpus.continued(pieces, 2)] == ["a", "c"]
