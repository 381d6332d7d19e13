"""Folders to damage: one good checkpoint and one target a form, made once; a case rewrites what it needs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fuzz import tiny
from fuzz.bounds import TOKEN


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A target of which only config.json is there, by a name of tiny.BLOCKS. Read only."""
    home = tmp_path_factory.mktemp("targets")

    def folder(block: str) -> Path:
        path = home / block
        if not path.exists():
            path.mkdir()
            (path / "config.json").write_text(json.dumps(tiny.config(block)))
        return path

    return folder


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A source that holds the layer, by a name of tiny.FORMS. Read only."""
    home = tmp_path_factory.mktemp("sources")

    def folder(form: str) -> Path:
        return home / form if (home / form).exists() else tiny.folder(home / form, form)

    return folder


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret that no message may show."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
