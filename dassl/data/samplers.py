"""The order in which images are drawn.

With a seed, the order of an epoch depends on the seed and the number of the epoch only; without one, on the global
generators, as in Dassl.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import RandomSampler as TorchRandomSampler
from torch.utils.data import Sampler, SequentialSampler

from dassl.utils import derive_seed

from .datasets import Datum

AVAI_SAMPLERS = (
    *("RandomSampler", "SequentialSampler", "RandomDomainSampler", "SeqDomainSampler", "RandomClassSampler"),
)


class RandomSampler(TorchRandomSampler):
    """All images in random order.

    Args:
        data_source: the images.
        seed: seed of the order; None for the global generator of torch.
    """

    def __init__(self, data_source: Sequence[Any], seed: int | None = None) -> None:
        super().__init__(data_source, generator=None if seed is None else torch.Generator())
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Start the order of an epoch."""
        if self.seed is not None:
            self.generator.manual_seed(derive_seed("sampler", self.seed, epoch))


class _PlannedSampler(Sampler[int]):
    """Base of samplers that draw the order of a whole pass at once; its length is that of the pass to come."""

    def __init__(self, seed: int | None) -> None:
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Start the order of an epoch."""
        self._rng: Any = random if self.seed is None else random.Random(derive_seed("sampler", self.seed, epoch))
        self._plan: list[int] | None = None
        self._used = False

    def draw(self, rng: Any) -> list[int]:
        """Return the indices of one pass; `rng` has the methods of `random`."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[int]:
        if self._plan is None or self._used:
            self._plan = self.draw(self._rng)
        self._used = True
        return iter(self._plan)

    def __len__(self) -> int:
        if self._plan is None:
            self._plan = self.draw(self._rng)
        return len(self._plan)


class RandomDomainSampler(_PlannedSampler):
    """Batches of images from `n_domain` random domains, equally many of each.

    Args:
        data_source: the images.
        batch_size: images per batch, a multiple of `n_domain`.
        n_domain: domains per batch; None or below 1 for all.
        seed: seed of the order; None for the global generator of `random`.

    Raises:
        ValueError: if the batch cannot be split evenly, or a domain cannot fill its share of one batch.
    """

    def __init__(
        self, data_source: Sequence[Datum], batch_size: int, n_domain: int | None, seed: int | None = None
    ) -> None:
        self.data_source = data_source
        self.domain_dict: dict[int, list[int]] = defaultdict(list)
        for index, item in enumerate(data_source):
            self.domain_dict[item.domain].append(index)
        self.domains = self._order(list(self.domain_dict))
        self.n_domain = n_domain if n_domain is not None and n_domain > 0 else len(self.domains)
        self.batch_size = batch_size
        if self.n_domain > len(self.domains) or batch_size % self.n_domain:
            raise ValueError(
                f"a batch of {batch_size} cannot be filled evenly from {self.n_domain} domains; "
                f"the data set has {len(self.domains)}"
            )
        self.n_img_per_domain = batch_size // self.n_domain
        fewest = min(self.domain_dict, key=lambda domain: len(self.domain_dict[domain]))
        if len(self.domain_dict[fewest]) < self.n_img_per_domain:
            raise ValueError(
                f"domain {fewest} has {len(self.domain_dict[fewest])} images, but a batch takes {self.n_img_per_domain}"
            )
        super().__init__(seed)

    def _order(self, domains: list[int]) -> list[int]:
        return domains

    def _select(self, rng: Any) -> list[int]:
        return rng.sample(self.domains, self.n_domain)

    def draw(self, rng: Any) -> list[int]:
        """Return batches until a domain has too few images left."""
        left = {domain: list(indices) for domain, indices in self.domain_dict.items()}
        plan: list[int] = []
        while True:
            for domain in self._select(rng):
                chosen = rng.sample(left[domain], self.n_img_per_domain)
                plan += chosen
                taken = set(chosen)
                left[domain] = [index for index in left[domain] if index not in taken]
            if any(len(indices) < self.n_img_per_domain for indices in left.values()):
                return plan


class SeqDomainSampler(RandomDomainSampler):
    """Batches of images from all domains, in the order of the domains, equally many of each.

    Args:
        data_source: the images.
        batch_size: images per batch, a multiple of the number of domains.
        seed: seed of the order; None for the global generator of `random`.
    """

    def __init__(self, data_source: Sequence[Datum], batch_size: int, seed: int | None = None) -> None:
        super().__init__(data_source, batch_size, n_domain=None, seed=seed)

    def _order(self, domains: list[int]) -> list[int]:
        return sorted(domains)

    def _select(self, rng: Any) -> list[int]:
        return self.domains


class RandomClassSampler(_PlannedSampler):
    """Batches of `n_ins` images from each of `batch_size // n_ins` random classes.

    Args:
        data_source: the images.
        batch_size: images per batch.
        n_ins: images per class in a batch; smaller classes repeat theirs.
        seed: seed of the order; None for the global generator of `random`.

    Raises:
        ValueError: if a batch is smaller than `n_ins` or needs more classes than there are.
    """

    def __init__(self, data_source: Sequence[Datum], batch_size: int, n_ins: int, seed: int | None = None) -> None:
        if batch_size < n_ins:
            raise ValueError(f"batch_size={batch_size} must be no less than n_ins={n_ins}")
        self.data_source = data_source
        self.batch_size = batch_size
        self.n_ins = n_ins
        self.ncls_per_batch = batch_size // n_ins
        self.index_dic: dict[int, list[int]] = defaultdict(list)
        for index, item in enumerate(data_source):
            self.index_dic[item.label].append(index)
        self.labels = list(self.index_dic)
        if len(self.labels) < self.ncls_per_batch:
            raise ValueError(
                f"a batch takes {self.ncls_per_batch} classes (batch size {batch_size}, {n_ins} images each), "
                f"but the data set has {len(self.labels)}"
            )
        super().__init__(seed)

    def _chunks(self, rng: Any) -> dict[int, list[list[int]]]:
        """Return the images of each class in random order, in groups of `n_ins`; the rest is left out."""
        chunks = {}
        for label in self.labels:
            indices = list(self.index_dic[label])
            if len(indices) < self.n_ins:
                indices = rng.choices(indices, k=self.n_ins)
            rng.shuffle(indices)
            full = len(indices) // self.n_ins
            chunks[label] = [indices[i * self.n_ins : (i + 1) * self.n_ins] for i in range(full)]
        return chunks

    def draw(self, rng: Any) -> list[int]:
        """Return batches until too few classes have images left."""
        chunks = self._chunks(rng)
        available = list(self.labels)
        plan: list[int] = []
        while len(available) >= self.ncls_per_batch:
            for label in rng.sample(available, self.ncls_per_batch):
                plan += chunks[label].pop(0)
                if not chunks[label]:
                    available.remove(label)
        return plan


def build_sampler(
    sampler_type: str,
    cfg: Any = None,
    data_source: Sequence[Datum] | None = None,
    batch_size: int = 32,
    n_domain: int = 0,
    n_ins: int = 16,
    stream: str = "x",
) -> Sampler[int]:
    """Build a sampler by name; with `cfg.SEED >= 0` its order depends on that seed, the stream and the epoch only.

    Args:
        sampler_type: name of the sampler.
        cfg: configuration; None for an order without seed.
        data_source: the images.
        batch_size: images per batch.
        n_domain: see `RandomDomainSampler`.
        n_ins: see `RandomClassSampler`.
        stream: keeps the orders of two loaders of one run apart.

    Raises:
        ValueError: if the name is unknown.
    """
    seed = derive_seed(stream, cfg.SEED) if cfg is not None and cfg.SEED >= 0 else None
    if sampler_type == "RandomSampler":
        return RandomSampler(data_source, seed=seed)
    if sampler_type == "SequentialSampler":
        return SequentialSampler(data_source)
    if sampler_type == "RandomDomainSampler":
        return RandomDomainSampler(data_source, batch_size, n_domain, seed=seed)
    if sampler_type == "SeqDomainSampler":
        return SeqDomainSampler(data_source, batch_size, seed=seed)
    if sampler_type == "RandomClassSampler":
        return RandomClassSampler(data_source, batch_size, n_ins, seed=seed)
    raise ValueError(f"unknown sampler type {sampler_type}; choose from {', '.join(AVAI_SAMPLERS)}")
