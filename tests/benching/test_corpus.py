"""Prompts that come with mtpforge: the same on every machine, and different from each other."""

from __future__ import annotations

import pytest

from mtpforge.benching import corpus


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
