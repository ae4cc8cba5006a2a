"""Samplers: their order."""

import random

import pytest
import torch

from dassl.config import get_cfg_default
from dassl.data.samplers import RandomSampler, build_sampler
from dassl.utils import set_random_seed

ITEMS = list(range(36))


def test_a_seeded_order_depends_on_seed_and_epoch_only():
    cfg = get_cfg_default()

    def order(epoch, seed=4):
        cfg.SEED = seed
        random.random(), torch.rand(1)
        sampler = build_sampler("RandomSampler", cfg, ITEMS)
        sampler.set_epoch(epoch)
        drawn = list(sampler)
        assert len(drawn) == len(sampler)
        return drawn

    cfg.SEED = 4
    state = random.getstate(), torch.get_rng_state()
    build_sampler("RandomSampler", cfg, ITEMS)
    assert random.getstate() == state[0]
    assert torch.equal(torch.get_rng_state(), state[1])
    assert order(0) == order(0)
    assert order(0) != order(1)
    assert order(0) != order(0, seed=5)


def test_an_order_without_seed_follows_the_global_generators():
    def order(seed):
        set_random_seed(seed)
        return list(build_sampler("RandomSampler", get_cfg_default(), ITEMS))

    assert order(1) == order(1)
    assert order(1) != order(2)


@pytest.mark.parametrize("seed", [None, 3])
def test_passes_over_one_sampler_differ(seed):
    sampler = RandomSampler(ITEMS, seed=seed)
    assert list(sampler) != list(sampler)


def test_sequential():
    assert list(build_sampler("SequentialSampler", get_cfg_default(), ITEMS)) == list(range(36))


def test_an_unknown_sampler():
    with pytest.raises(ValueError, match="choose from RandomSampler"):
        build_sampler("Random", get_cfg_default(), ITEMS)
