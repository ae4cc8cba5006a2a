"""A loader whose order follows from the epoch, and which can begin within one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from dassl.utils import derive_seed

from .device_transform import OnDevice


class EpochDataLoader(DataLoader):
    """A loader that tells its sampler and data set which epoch it is and draws nothing from the global generators.

    With `persistent_workers` its processes live on between passes, which one pass at a time can read from; starting
    them takes longer than a few-shot epoch does on a GPU. `release_workers` ends them.

    Args:
        seed: seed of its generator; None for torch's global one.
        on_device: does the rest of a batch's transform where it is wanted, when it is asked for; None: nothing is left.
        kwargs: of `torch.utils.data.DataLoader`.
    """

    def __init__(self, *args: Any, seed: int | None = None, on_device: OnDevice | None = None, **kwargs: Any) -> None:
        super().__init__(*args, generator=None if seed is None else torch.Generator(), **kwargs)
        self.seed, self.on_device = seed, on_device
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Start an epoch."""
        self.epoch, self.passes, self._finished = epoch, 0, 0
        if self.seed is not None:
            self.generator.manual_seed(derive_seed("loader", self.seed, epoch))
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def skip_batches(self, number: int) -> None:
        """Begin the epoch after its first `number` batches, which may be more than one pass; their images stay unread.

        Call it after `set_epoch`.
        """
        self._finished = number

    def __iter__(self) -> Iterator[Any]:
        batches = self._rest_of_epoch() if self._finished else self._next_pass()
        return batches if self.on_device is None else map(self.on_device, batches)

    def _next_pass(self) -> Iterator[Any]:
        self._count_pass()
        return super().__iter__()

    def _count_pass(self) -> None:
        # Without set_epoch(), as in a loop of one's own, passes are told apart by counting them.
        if hasattr(self.dataset, "set_pass"):
            self.dataset.set_pass(self.epoch, self.passes)
        self.passes += 1

    def release_workers(self) -> None:
        """End the processes that live on between passes; the next pass starts others."""
        self._iterator = None

    def _rest_of_epoch(self) -> Iterator[Any]:
        """Return what is left of the pass that the skipped batches end in."""
        left, self._finished = self._finished, 0
        batches = list(self.batch_sampler)
        while left > len(batches):
            left -= len(batches)
            self.passes += 1
            batches = list(self.batch_sampler)
        self._count_pass()
        rest = DataLoader(
            self.dataset,
            batch_sampler=batches[left:],
            num_workers=self.num_workers,
            collate_fn=self.collate_fn,
            pin_memory=self.pin_memory,
            worker_init_fn=self.worker_init_fn,
            generator=self.generator,
        )
        return iter(rest)
