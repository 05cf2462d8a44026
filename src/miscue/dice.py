"""Named random streams: every random choice has a name, so that adding one never shifts another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Dice:
    """A seed and a path of names. Equal dice give equal streams, on any machine and in any order of use."""

    seed: int = 0
    path: tuple[str, ...] = ()

    def named(self, *names: str | int) -> Dice:
        """The dice of a sub-task, e.g. ``dice.named("trial", 3, "order")``."""
        return Dice(self.seed, (*self.path, *map(str, names)))

    def integer(self) -> int:
        """A 63-bit integer that depends on seed and path alone."""
        text = "\x1f".join((str(self.seed), *self.path)).encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1

    def generator(self) -> torch.Generator:
        """A fresh CPU generator at the start of this stream."""
        return torch.Generator().manual_seed(self.integer())

    @contextmanager
    def rolled(self) -> Iterator[None]:
        """Run a block under this stream: layers' initialisers draw from torch's own on the CPU, which is restored."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.integer())
            yield
