"""What a person sees: progress with time left, words on stderr, JSON lines on stdout, errors in one line."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from miscue.errors import InputError
from miscue.run import Tick

stderr = Console(stderr=True, highlight=False)

EXIT_INPUT, EXIT_SYSTEM, EXIT_INTERRUPT = 2, 3, 130


def say(text: str) -> None:
    """A line for people, on stderr."""
    stderr.print(text, markup=False, soft_wrap=True)


def emit(row: dict[str, Any]) -> None:
    """One JSON object on stdout."""
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


@contextmanager
def guarded(*, debug: bool) -> Iterator[None]:
    """Turn bad input and failures of the machine into one line and an exit code; `debug` lets them through."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *where, **more: say(f"miscue: note: {message}")
        if debug:
            yield
            return
        with failures():
            yield


@contextmanager
def failures() -> Iterator[None]:
    """Bad input and failures of the machine as one line and an exit code."""
    try:
        yield
    except InputError as error:
        fail(str(error), EXIT_INPUT)
    except KeyboardInterrupt:
        fail("interrupted; the same command goes on from the last checkpoint where there is one", EXIT_INTERRUPT)
    except OSError as error:
        words = "no space left on the device" if error.errno == errno.ENOSPC else error.strerror or str(error)
        fail(f"{words}{f': {error.filename}' if error.filename else ''}", EXIT_SYSTEM)
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        hint = "smaller images, a smaller network or, in training, a smaller --batch-size need less"
        fail(f"the device is out of memory; {hint}", EXIT_SYSTEM)


def fail(message: str, code: int) -> None:
    """Say what is wrong and leave."""
    say(f"miscue: {message}")
    raise typer.Exit(code)


def follow(ticks: Iterator[Tick], title: str, describe: Callable[[dict[str, Any]], str]) -> None:
    """Walk through `ticks`: a bar with time left on a terminal, else a plain line now and then.

    Every finished piece is a line of its own, worded by `describe`.
    """
    if stderr.is_terminal and os.environ.get("TERM") != "dumb":
        bar(ticks, title, describe)
    else:
        plain(ticks, title, describe)


def bar(ticks: Iterator[Tick], title: str, describe: Callable[[dict[str, Any]], str]) -> None:
    """The terminal's form of `follow`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr, transient=True) as progress:
        task = progress.add_task(title, total=None)
        for tick in ticks:
            progress.update(task, completed=tick.done, total=tick.total)
            if tick.fact is not None:
                progress.console.print(f"  {describe(tick.fact)}", markup=False)


def plain(ticks: Iterator[Tick], title: str, describe: Callable[[dict[str, Any]], str], *, every: float = 30) -> None:
    """The form of `follow` where there is no terminal: at most one line of progress in `every` seconds.

    The pace is that since the first tick, which may come from a checkpoint or carry more than one unit.
    """
    said, since, first = time.monotonic(), None, 0
    for tick in ticks:
        now = time.monotonic()
        if tick.fact is not None:
            say(f"{title}: {describe(tick.fact)}")
        if since is None:
            since, first = now, tick.done
        elif now - said >= every and tick.done > first:
            left = (now - since) * (tick.total - tick.done) / (tick.done - first)
            say(f"{title}: {100 * tick.done / tick.total:.0f} %, about {clock(left)} left")
            said = now


def clock(seconds: float) -> str:
    """Seconds in words: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
