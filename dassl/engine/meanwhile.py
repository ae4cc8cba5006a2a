"""Host work that a device need not wait for: it is done while the device computes a step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any


class Meanwhile:
    """The batches of an epoch, and what else the host has to do before the next step.

    A trainer whose steps run on a device calls it between starting a step and waiting for its numbers: then the next
    batch is fetched and the last step's scalars are written while the device works. What nobody called it for is done
    in time all the same.

    Args:
        trainer: its `write_scalar` takes the scalars.
        batches: of the epoch.

    Attributes:
        is_called: whether the trainer calls it.
    """

    def __init__(self, trainer: Any, batches: Iterable[tuple[Any, ...]]) -> None:
        self.is_called = False
        self._trainer, self._batches = trainer, iter(batches)
        self._fetched: list[tuple[Any, ...] | None] = []
        self._scalars: list[tuple[str, float, int]] = []

    def __call__(self) -> None:
        """Write the last step's scalars and fetch the next batch."""
        self.is_called = True
        self.write()
        self._fetch()

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        while True:
            self._fetch()
            batch = self._fetched.pop()
            if batch is None:
                return
            yield batch

    def _fetch(self) -> None:
        if not self._fetched:
            self._fetched.append(next(self._batches, None))

    def write_later(self, tag: str, value: float, step: int) -> None:
        """Write a scalar during the next step, or at the next `write`."""
        self._scalars.append((tag, value, step))

    def write(self) -> None:
        """Write the scalars that wait."""
        for scalar in self._scalars:
            self._trainer.write_scalar(*scalar)
        self._scalars.clear()
