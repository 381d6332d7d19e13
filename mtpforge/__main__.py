"""`python -m mtpforge`: the same as the `mtpforge` command."""

from __future__ import annotations

import sys

from mtpforge.cli import main

if __name__ == "__main__":
    sys.exit(main())
