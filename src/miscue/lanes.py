"""Several small jobs at once in one process: PyTorch leaves Python's lock while it computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def lanes(job: Callable[[T], R], over: Iterable[T]) -> list[R]:
    """`[job(one) for one in over]`, side by side on the threads that PyTorch would else give to each job in turn.

    For steps of small networks, jobs with one thread each are done sooner than one after the other with all threads.
    The jobs must not write to the same place.
    """
    jobs = list(over)
    threads = torch.get_num_threads()
    side_by_side = min(len(jobs), threads)
    if side_by_side < 2:
        return [job(one) for one in jobs]
    torch.set_num_threads(threads // side_by_side)
    try:
        with ThreadPoolExecutor(side_by_side) as pool:
            return list(pool.map(job, jobs))
    finally:
        torch.set_num_threads(threads)


def one_by_one(job: Callable[[T], R], over: Iterable[T]) -> list[R]:
    """`lanes` without the others: `[job(one) for one in over]`."""
    return [job(one) for one in over]
