"""Trouble on the way to the hub that passes, or stays: recovered, or given up after bounded tries."""

from __future__ import annotations

import email.utils
import hashlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque

import pytest
from faults.hub_reading import REPO, contents, layer_of, opened, refusal
from faults.hub_server import Fault, environment

from mtpforge.checkpoint.folder import open_folder
from mtpforge.checkpoint.hub import fetching, retries, transfer
from mtpforge.checkpoint.hub.repository import open_hub
from mtpforge.errors import MtpforgeError

RECOVERED = [
    Fault("status", status=500, times=3),
    Fault("status", status=503, times=2),
    Fault("status", status=429, headers={"Retry-After": "0"}, times=3),
    Fault("status", status=429, headers={"RateLimit": '"resolvers";r=0;t=0'}),
    Fault("status", status=503, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
    Fault("reset", times=3),
    Fault("short", times=3),
    Fault("long"),
    Fault("less"),
    Fault("resized"),
    Fault("whole", times=2),
    Fault("shifted"),
    Fault("compressed"),
]


@pytest.mark.parametrize("fault", RECOVERED, ids=lambda f: f"{f.kind}-{f.status}-{'-'.join(f.headers)}")
def test_trouble_that_passes_changes_no_byte(hub, tinyglm, fault):
    hub.faults = [Fault(**vars(fault))]
    remote, refs = opened(hub, tinyglm)
    remote.fetch(refs.values())
    assert hub.faults[0].times == 0
    assert contents(remote, refs) == contents(open_folder(tinyglm("bf16")), refs)


def test_a_broken_body_goes_on_where_it_ended(hub, tinyglm):
    hub.faults = [Fault("short", times=3)]
    remote, refs = opened(hub, tinyglm)
    promised = remote.missing_bytes(refs.values())
    remote.fetch(refs.values())
    assert hub.faults[0].times == 0
    assert hub.sent["range"] == promised
    assert contents(remote, refs) == contents(open_folder(tinyglm("bf16")), refs)


def test_a_server_that_asks_to_wait_is_obeyed(hub, tinyglm, monkeypatch):
    waits = []
    monkeypatch.setattr(threading.Event, "wait", record_waits(threading.Event.wait, waits))
    hub.faults = [Fault("status", status=429, headers={"Retry-After": "17"})]
    remote, refs = opened(hub, tinyglm)
    remote.fetch([min(refs.values(), key=lambda r: r.start)])
    assert waits == [17.0]


@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [
        ("120", 120),
        ("Sat, 21 Nov 2026 12:00:30 GMT", 30),
        ("Sat, 21 Nov 2026 11:00:00 GMT", 0),
        ("soon", None),
        ("", None),
    ],
)
def test_both_ways_to_say_how_long_to_wait_are_read(monkeypatch, retry_after, seconds):
    noon = email.utils.parsedate_to_datetime("Sat, 21 Nov 2026 12:00:00 GMT").timestamp()
    monkeypatch.setattr(retries.time, "time", lambda: noon)
    answer = retries.http.Response(429, headers={"Retry-After": retry_after})
    trouble = retries.busy(answer)
    assert trouble.seconds == seconds
    assert trouble.cause == "it answered 429 (too many requests)"


def record_waits(wait, waits):
    def recorded(self, timeout=None):
        if timeout is not None and timeout >= 17:  # no other wait of these tests is so long
            waits.append(timeout)
            return False
        return wait(self, timeout)

    return recorded


def test_a_server_that_asks_to_wait_too_long_is_left(hub, tinyglm):
    remote, refs = opened(hub, tinyglm)
    hub.faults = [Fault("status", status=429, headers={"Retry-After": "4000"}, times=99)]
    ref = min(refs.values(), key=lambda r: r.start)
    assert refusal(remote.fetch, [ref]) == (
        "error: the hub asks to wait 4000 s\n"
        f"where: {REPO}@{remote.revision}, {ref.file}\n"
        "cause: it answered 429 (too many requests)\n"
        " hint: run this again in 67 minutes: what was fetched is kept; with `HF_TOKEN` set the limits are higher"
    )


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (Fault("status", status=500, times=99), "it answered 500"),
        (Fault("whole", times=99), "it answered 200 with the whole file where a part was asked for"),
        (Fault("shifted", times=99), "it answered with other bytes than those asked for"),
        (Fault("long", times=99), "it announced another number of bytes than was asked for"),
        (Fault("less", times=99), "it announced another number of bytes than was asked for"),
        (Fault("resized", times=99), "the file now has {larger:,} bytes, it had {size:,}"),
        (Fault("compressed", times=99), "it answered with compressed bytes"),
        (Fault("reset", times=99), "the connection broke"),
        (Fault("short", times=99), "the connection broke"),
        (Fault("status", status=429, headers={"Retry-After": "0"}, times=99), "it answered 429 (too many requests)"),
        (Fault("retagged", times=99), "it serves another version of the file, `{other}` after `{etag}`"),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_trouble_that_stays_is_said_after_six_tries(hub, tinyglm, fault, cause):
    hub.faults = [Fault(**vars(fault))]
    remote, refs = opened(hub, tinyglm)
    ref = max(refs.values(), key=lambda r: r.stop - r.start)
    file = tinyglm("bf16") / ref.file
    size, etag = file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest()
    cause = cause.format(size=size, larger=size + 1, etag=etag, other=hashlib.sha256(etag.encode()).hexdigest())
    assert refusal(remote.fetch, [ref]) == (
        "error: the hub failed 6 times in a row\n"
        f"where: {REPO}@{remote.revision}, {ref.file}\n"
        f"cause: {cause}\n"
        " hint: run this again later: what was fetched is kept"
    )
    assert len([r for r in hub.requests if r.range]) == 6


def test_a_connection_that_trickles_is_given_up(hub, tinyglm, monkeypatch):
    monkeypatch.setattr(retries, "STALL_SECONDS", 0.05)
    hub.faults = [Fault("trickle", times=2)]
    remote, refs = opened(hub, tinyglm)
    refs = dict([max(refs.items(), key=lambda item: item[1].stop - item[1].start)])
    remote.fetch(refs.values())
    assert hub.faults[0].times == 0
    assert contents(remote, refs) == contents(open_folder(tinyglm("bf16")), refs)


def test_a_connection_that_always_trickles_is_said_after_six_tries(hub, tinyglm, monkeypatch):
    monkeypatch.setattr(retries, "STALL_SECONDS", 0.01)
    hub.faults = [Fault("trickle", times=99)]
    remote, refs = opened(hub, tinyglm)
    message = refusal(remote.fetch, [max(refs.values(), key=lambda r: r.stop - r.start)])
    assert message.startswith("error: the hub failed 6 times in a row\n")
    assert re.search(r"cause: only \d+ bytes came in 0 s\n", message)
    assert len([r for r in hub.requests if r.range]) == 6


def test_a_trickle_is_one_of_less_than_32_kib_in_30_seconds():
    slow, trickling = (retries.Pace(iter(range(1000)).__next__) for _ in range(2))  # each look at the clock: a second
    for _ in range(300):
        slow.count(1100)
    for _ in range(30):
        trickling.count(1000)
    with pytest.raises(retries.Trouble, match=r"only 31,000 bytes came in 31 s"):
        trickling.count(1000)
    with pytest.raises(retries.Trouble, match=r"bytes came in 31 s"):  # what came long ago counts no more
        deque(map(slow.count, [100] * 62), maxlen=0)


def test_a_server_that_falls_silent_is_asked_again(hub, tinyglm, monkeypatch):
    monkeypatch.setattr(transfer.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    hub.faults = [Fault("hang")]
    remote, refs = opened(hub, tinyglm)
    remote.fetch(refs.values())
    assert hub.is_hanging.is_set()
    assert contents(remote, refs) == contents(open_folder(tinyglm("bf16")), refs)


def test_a_failure_keeps_what_came_before_it(hub, tinyglm, monkeypatch):
    monkeypatch.setattr(fetching, "CONNECTIONS", 1)
    monkeypatch.setattr(fetching, "PART_BYTES", 100_000)
    remote, refs = opened(hub, tinyglm)
    promised = remote.missing_bytes(refs.values())
    hub.faults = [Fault("reset", skip=3), Fault("status", status=500, times=99)]
    refusal(remote.fetch, refs.values())
    left = remote.missing_bytes(refs.values())
    assert left <= promised - 250_000  # the first part is a tensor of 64 bytes; of the fourth, half came
    hub.faults = []
    hub.forget()
    remote.fetch(refs.values())
    assert hub.sent["range"] == left
    assert contents(remote, refs) == contents(open_folder(tinyglm("bf16")), refs)


CHILD = """
import sys
from mtpforge.checkpoint.hub import fetching
from mtpforge.checkpoint.hub.repository import open_hub
fetching.CONNECTIONS, fetching.PART_BYTES = 1, 100_000
remote = open_hub("org/tiny-GLM", None, offline=False)
remote.fetch(remote.locate(n for n in remote.names if n.startswith("model.layers.3.")).values())
print("complete")
"""


def test_a_killed_process_leaves_what_it_finished(hub, tinyglm, tmp_path):
    folder = tinyglm("bf16")
    hub.add(REPO, folder)
    refs = layer_of(open_folder(folder))
    n_headers = 2 * len({ref.file for ref in refs.values()})
    promised = sum(ref.stop - ref.start for ref in refs.values())
    hub.faults = [Fault("hang", skip=n_headers + 3)]  # three parts are finished, the fourth is under way
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD], env=environment(hub, tmp_path / "home"), stdout=subprocess.PIPE
    )
    try:
        assert hub.is_hanging.wait(60)
        os.kill(child.pid, signal.SIGKILL)
    finally:
        out, _ = child.communicate(timeout=60)
    assert out == b""
    assert child.returncode == -signal.SIGKILL
    hub.release.set()
    remote = open_hub(REPO, None, offline=False)
    hub.forget()
    found = layer_of(remote)
    assert hub.sent["range"] == 0  # headers are kept too
    left = remote.missing_bytes(found.values())
    assert left == promised - sum(part_sizes(refs)[:3])
    remote.fetch(found.values())
    assert hub.sent["range"] == left
    assert contents(remote, found) == contents(open_folder(folder), refs)


def part_sizes(refs):
    """Sizes of the requests, in order: adjacent tensors are one run, cut every 100,000 bytes."""
    runs = []
    for ref in sorted(refs.values(), key=lambda r: (r.file, r.start)):
        if runs and runs[-1][0] == ref.file and runs[-1][2] == ref.start:
            runs[-1][2] = ref.stop
        else:
            runs.append([ref.file, ref.start, ref.stop])
    return [min(100_000, stop - at) for _, start, stop in runs for at in range(start, stop, 100_000)]


def test_ctrl_c_keeps_what_came_and_ends_the_other_connections(hub, tinyglm, monkeypatch):
    monkeypatch.setattr(fetching, "PART_BYTES", 100_000)
    monkeypatch.setattr(transfer.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    monkeypatch.setattr(fetching, "CONNECTIONS", 2)
    remote, refs = opened(hub, tinyglm)
    promised = remote.missing_bytes(refs.values())
    hub.faults = [Fault("hang", skip=2, times=9)]

    def interrupt(progress):
        if hub.is_hanging.is_set():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        remote.fetch(refs.values(), interrupt)
    assert not [t for t in threading.enumerate() if t.name.startswith("mtpforge-fetch")]
    assert remote.missing_bytes(refs.values()) <= promised - 100_000  # two parts: one tensor of 64 bytes, one whole


def test_waiting_doubles_and_is_bounded(monkeypatch):
    monkeypatch.setattr(retries, "BACKOFF_SECONDS", 8.0)
    waits = []
    stop = threading.Event()
    monkeypatch.setattr(stop, "wait", waits.append)
    patient = retries.Patience("here", stop)
    for _ in range(5):
        patient.wait(retries.Trouble("it rains"), 0)
    for seconds, middle in zip(waits, (8, 16, 30, 30, 30), strict=True):
        assert 0.75 * middle <= seconds <= 1.25 * middle
    patient.wait(retries.Trouble("it rains"), retries.PROGRESS_BYTES)  # bytes came: the count starts again
    for _ in range(4):
        patient.wait(retries.Trouble("it rains"), 0)
    with pytest.raises(MtpforgeError, match="the hub failed 6 times in a row"):
        patient.wait(retries.Trouble("it rains"), 0)
