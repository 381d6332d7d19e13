"""A loopback hub for every test that asks for one."""

from __future__ import annotations

import pytest
from faults.hub_server import serving


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serving(tmp_path, monkeypatch) as server:
        yield server
