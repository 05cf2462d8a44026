"""Single-threaded worker processes side by side. One that dies is replaced, and its job is tried once more."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext, SpawnContext
from queue import SimpleQueue
from types import TracebackType
from typing import Any, TypeVar

import torch

from miscue.memory import keep_freed_memory

T = TypeVar("T")
R = TypeVar("R")

_shared: Any = None


class LostWorkerError(RuntimeError):
    """A worker process died twice over the same job."""


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def starting() -> ForkServerContext | SpawnContext:
    """How processes are started: on Linux as copies of one that has imported what this one has, elsewhere anew.

    Imports take seconds, a copy milliseconds. Nobody copies this process itself, which has threads and may hold a GPU.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", *(name for name in sys.modules if name.startswith("miscue."))])
    resource_tracker.ensure_running()  # else `forkserver` would, which lets interrupts through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # an interrupted import would say so at length
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


class Workers:
    """`processes` processes of one thread each, alive between calls, who all know `shared`.

    Tensors in `shared` lie in shared memory: there is one copy of a data set, however many the workers. With one
    process, jobs run in this one. A script that uses more needs `if __name__ == "__main__":` around its main part,
    since each worker imports it.
    """

    def __init__(self, shared: Any, processes: int):
        self.shared = shared
        self.idle: SimpleQueue[ProcessPoolExecutor] = SimpleQueue()
        self.alive: list[ProcessPoolExecutor] = []
        self.over = False
        self.processes = processes if processes > 1 else 0
        for _ in range(self.processes):
            self.idle.put(self._worker())

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None and not issubclass(kind, Exception):
            self.end()
        while not self.idle.empty():
            self.idle.get().shutdown(cancel_futures=True)

    def end(self) -> None:
        """Kill the workers whatever they are at, as an interrupt does, which must not wait for them."""
        self.over = True
        for worker in list(self.alive):
            _kill(worker)

    def map(self, job: Callable[[Any, T], R], items: Sequence[T]) -> Iterator[tuple[int, R | LostWorkerError]]:
        """(position, job(shared, item)) of all items, in the order in which they are done.

        `job` is a function of a module. One whose worker dies twice gives a LostWorkerError; errors of its own are
        raised.
        """
        if not self.processes:
            yield from ((i, job(self.shared, item)) for i, item in enumerate(items))
            return
        with ThreadPoolExecutor(self.processes) as errands:
            errand = {errands.submit(self._run, job, item): i for i, item in enumerate(items)}
            try:
                for done in as_completed(errand):
                    yield errand[done], done.result()
            except KeyboardInterrupt:
                self.end()
                raise
            finally:
                for one in errand:
                    one.cancel()

    def _run(self, job: Callable[[Any, T], R], item: T) -> R | LostWorkerError:
        worker = self.idle.get()
        try:
            for _ in range(2):
                try:
                    found = worker.submit(_job, job, item)
                    if self.over:  # its process may have started after all were killed
                        _kill(worker)
                    return found.result()
                except BrokenProcessPool as error:
                    lost = LostWorkerError(f"a worker process died twice over the same job: {error}")
                    worker.shutdown()
                    self.alive.remove(worker)
                    worker = self._worker()
                    if self.over:
                        break
            return lost
        finally:
            self.idle.put(worker)

    def _worker(self) -> ProcessPoolExecutor:
        given = (dict(os.environ), self.shared)
        worker = ProcessPoolExecutor(1, mp_context=starting(), initializer=_begin, initargs=given)
        self.alive.append(worker)
        return worker


def _kill(worker: ProcessPoolExecutor) -> None:
    for process in list((worker._processes or {}).values()):
        process.kill()


def _begin(environment: dict[str, str], shared: Any) -> None:
    global _shared
    settle(environment)
    torch.set_num_threads(1)
    keep_freed_memory()
    _shared = shared


def settle(environment: dict[str, str]) -> None:
    """Take the environment of the process that started this worker, as it is now, and end with it.

    Killed, it cannot say so, and a worker would wait for ever.
    """
    if sys.platform == "linux":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # which came blocked from `starting`
    os.environ.clear()
    os.environ.update(environment)
    threading.Thread(target=_follow, daemon=True).start()


def _follow() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _job(job: Callable[[Any, T], R], item: T) -> R:
    return job(_shared, item)
