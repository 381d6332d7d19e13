"""Runs `mtpforge build` on the demo's pair, each time in a process of its own, as standard input says:

    end OUT [OPTION...]            answers how it ended: an exit code, or the negative of a signal
    kill SECONDS OUT [OPTION...]   the same, with kill -9 after that time
    hold OUT [OPTION...]           answers the number of the process, which stands still in the middle of its work
    end-held, kill-held            lets that one go on, or kills it; answers how it ended

What a build prints lies in OUT.said. It forks, because importing torch takes longer than this build; nothing but
imports happens before.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from pathlib import Path

import mtpforge
from mtpforge import building, planning, verifying  # noqa: F401  # what a build would import first
from mtpforge.cli import main
from mtpforge.durable import effects
from mtpforge.writing import folder

DEMO = Path(mtpforge.__file__).parent / "_demo"
PAIR = ("--target", str(DEMO / "awq-int4"), "--source", str(DEMO / "nvfp4"))
BATCH_BYTES = 100_000  # a draft of 0.9 MB: some steps are in the journal when the process dies
HELD_AT = 100  # calls of `put`, of some 250


def build(out, *options):
    folder.BATCH_BYTES = BATCH_BYTES
    said = os.open(f"{out}.said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    try:
        status = main(["build", *PAIR, "-o", out, "--check", "off", *options])
    except SystemExit as end:
        status = end.code
    os._exit(int(status or 0))


def held(out, *options):
    real, count = effects.put, itertools.count()

    def put(*args):
        if next(count) == HELD_AT:
            os.kill(os.getpid(), signal.SIGSTOP)
        real(*args)

    effects.put = put
    build(out, *options)


def forked(work, words):
    pid = os.fork()
    if not pid:
        work(*words)
    return pid


def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed(pid, seconds):
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)  # nobody has asked how it ended, so the number is still its own
    return ended(pid)


def obey(line, holder):
    """What to answer, and the process that stands still from now on."""
    match line.split():
        case ["end", *words]:
            return ended(forked(build, words)), holder
        case ["kill", seconds, *words]:
            return killed(forked(build, words), float(seconds)), holder
        case ["hold", *words]:
            holder = forked(held, words)
            os.waitpid(holder, os.WUNTRACED)
            return holder, holder
        case ["end-held"]:
            os.kill(holder, signal.SIGCONT)
            return ended(holder), 0
        case ["kill-held"]:
            return killed(holder, 0), 0
    raise ValueError(line)


if __name__ == "__main__":
    holder = 0
    for line in sys.stdin:
        answer, holder = obey(line, holder)
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()
    if holder:
        killed(holder, 0)
