"""in_order(): work on several threads whose results are taken one after the other: their number changes no bit."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def in_order(work: Callable[[Item], Made], items: Iterable[Item], workers: int = 1) -> Iterator[Made]:
    """`work` of each item, in the order of the items; at most `workers` are worked on or waiting to be taken.

    Inference alone, torch on one thread in each: how sums are split among several would change their last bits.
    """
    import torch

    def alone(item: Item) -> Made:
        with torch.inference_mode():
            return work(item)

    def here(item: Item) -> Made:
        torch.set_num_threads(1)
        try:
            return alone(item)
        finally:
            torch.set_num_threads(before)

    before = torch.get_num_threads()
    if workers == 1:
        yield from map(here, items)
        return
    pool = ThreadPoolExecutor(workers, "mtpforge", torch.set_num_threads, (1,))
    ahead: deque[Future[Made]] = deque()
    try:
        for item in items:
            ahead.append(pool.submit(alone, item))
            if len(ahead) == workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)
