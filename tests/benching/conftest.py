"""One command line in this process, and no key of whoever runs the tests."""

from __future__ import annotations

import pytest
from cli.conftest import run  # noqa: F401 -- a fixture


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
