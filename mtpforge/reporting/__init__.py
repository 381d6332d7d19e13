"""Results as one HTML page: what `--report` writes, and `mtpforge.write_page`."""

from __future__ import annotations
