"""Samplers: the make-up of their batches, and their order."""

import random
from collections import Counter
from dataclasses import dataclass

import pytest
import torch

from dassl.config import get_cfg_default
from dassl.data.samplers import (
    RandomClassSampler,
    RandomDomainSampler,
    RandomSampler,
    SeqDomainSampler,
    build_sampler,
)
from dassl.utils import set_random_seed


@dataclass
class Item:
    label: int
    domain: int


ITEMS = [Item(label=i % 4, domain=(i * 7) % 3) for i in range(36)]


def batches(indices, size):
    indices = list(indices)
    return [indices[i : i + size] for i in range(0, len(indices), size)]


def test_random_domain_batches_are_balanced():
    sampler = RandomDomainSampler(ITEMS, batch_size=6, n_domain=2, seed=1)
    drawn = batches(sampler, 6)
    assert len(drawn) >= 4
    for batch in drawn:
        assert sorted(Counter(ITEMS[i].domain for i in batch).values()) == [3, 3]
    assert len({frozenset(ITEMS[i].domain for i in batch) for batch in drawn}) > 1
    flat = [i for batch in drawn for i in batch]
    assert len(set(flat)) == len(flat)


def test_sequential_domain_batches_hold_all_domains_in_order():
    for batch in batches(SeqDomainSampler(ITEMS, batch_size=6, seed=1), 6):
        assert [ITEMS[i].domain for i in batch] == [0, 0, 1, 1, 2, 2]


def test_all_domains_when_their_number_is_not_given():
    assert RandomDomainSampler(ITEMS, batch_size=6, n_domain=0).n_domain == 3


def test_random_class_batches_are_balanced():
    for batch in batches(RandomClassSampler(ITEMS, batch_size=6, n_ins=3, seed=1), 6):
        assert sorted(Counter(ITEMS[i].label for i in batch).values()) == [3, 3]


def test_small_classes_repeat_their_images():
    items = [Item(label=0, domain=0)] + [Item(label=1, domain=0)] * 4
    drawn = list(RandomClassSampler(items, batch_size=8, n_ins=4, seed=1))
    assert Counter(items[i].label for i in drawn) == {0: 4, 1: 4}


@pytest.mark.parametrize("name", ["RandomSampler", "RandomDomainSampler", "SeqDomainSampler", "RandomClassSampler"])
def test_a_seeded_order_depends_on_seed_and_epoch_only(name):
    cfg = get_cfg_default()
    cfg.SEED = 4

    def order(epoch, seed=4):
        cfg.SEED = seed
        random.random(), torch.rand(1)
        sampler = build_sampler(name, cfg, ITEMS, batch_size=6, n_domain=2, n_ins=2)
        sampler.set_epoch(epoch)
        length = len(sampler)
        drawn = list(sampler)
        assert len(drawn) == length, "the length is that of the pass to come"
        return drawn

    state = random.getstate(), torch.get_rng_state()
    build_sampler(name, cfg, ITEMS, batch_size=6, n_domain=2, n_ins=2)
    assert random.getstate() == state[0]
    assert torch.equal(torch.get_rng_state(), state[1])
    assert order(0) == order(0)
    assert order(0) != order(1)
    assert order(0) != order(0, seed=5)


@pytest.mark.parametrize("name", ["RandomSampler", "RandomDomainSampler", "SeqDomainSampler", "RandomClassSampler"])
def test_an_order_without_seed_follows_the_global_generators(name):
    def order(seed):
        set_random_seed(seed)
        return list(build_sampler(name, get_cfg_default(), ITEMS, batch_size=6, n_domain=2, n_ins=2))

    assert order(1) == order(1)
    assert order(1) != order(2)


@pytest.mark.parametrize("seed", [None, 3])
def test_passes_over_one_sampler_differ(seed):
    for sampler in (RandomSampler(ITEMS, seed=seed), RandomClassSampler(ITEMS, 6, 3, seed=seed)):
        assert list(sampler) != list(sampler)


def test_sequential():
    assert list(build_sampler("SequentialSampler", get_cfg_default(), ITEMS)) == list(range(36))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomDomainSampler(ITEMS, 7, 3), "evenly from 3 domains"),
        (lambda: RandomDomainSampler(ITEMS, 8, 4), "has 3"),
        (lambda: RandomDomainSampler(ITEMS, 60, 3), "has 12 images, but a batch takes 20"),
        (lambda: RandomClassSampler(ITEMS, 2, 3), "no less than"),
        (lambda: RandomClassSampler(ITEMS, 10, 2), "takes 5 classes"),
        (lambda: build_sampler("Random", get_cfg_default(), ITEMS), "choose from RandomSampler"),
    ],
)
def test_what_cannot_be_sampled(make, message):
    with pytest.raises(ValueError, match=message):
        make()
