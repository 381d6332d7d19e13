"""Memory that was freed goes back: distributions over GLM-5.2's vocabulary, by two threads, many drafts."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import torch
from mtpforge.judging.distances import distances

class Head:
    n_tokens = 154_880
    weight = torch.randn(n_tokens, 8)

    def logits(self, states, workers):
        return list(torch.split(torch.cat(states) @ self.weight.t(), [len(each) for each in states]))

states = torch.randn(96, 8)
distances(Head(), states, [states + 0.01 for _ in range(24)], workers=2)
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_peak_is_what_is_held_at_a_time():
    """Logits of 512 MiB twice, and what two threads hold; 2.6 GB where freed heaps stayed with a small tensor each."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2_000_000
