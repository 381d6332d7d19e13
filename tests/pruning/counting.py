"""A checkpoint that remembers which bytes were asked for.

from pruning.counting import CountingCheckpoint
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field


@dataclass
class CountingCheckpoint:
    real: object
    read_names: dict = field(default_factory=dict)  # tensor -> bytes read
    fetched: set = field(default_factory=set)
    lock: object = field(default_factory=threading.Lock)

    def __getattr__(self, name):
        return getattr(self.real, name)

    def fetch(self, refs, on_progress=None):
        refs = list(refs)
        self.fetched |= {ref.name for ref in refs}
        self.real.fetch(refs, on_progress)

    def read(self, ref, into):
        with self.lock:
            self.read_names[ref.name] = self.read_names.get(ref.name, 0) + ref.stop - ref.start
        self.real.read(ref, into)
