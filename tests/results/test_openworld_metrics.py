from itertools import product

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from results.evaluate import accuracy, auroc, harmonic_mean, openworld_auc


def scores_with_ties(generator, count, levels):
    return generator.integers(0, levels, count) / levels


def brute_force_auroc(positive, negative):
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    return sum(pairs) / len(pairs)


def brute_force_openworld_auc(base, base_ok, new, new_ok):
    pairs = product(zip(base, base_ok, strict=True), zip(new, new_ok, strict=True))
    won = [b_ok and b > n and n_ok for (b, b_ok), (n, n_ok) in pairs]
    return sum(won) / len(won)


@pytest.mark.parametrize("levels", [1, 3, 1000])
@pytest.mark.parametrize(("n_pos", "n_neg"), [(1, 1), (7, 30), (41, 12)])
def test_auroc_equals_brute_force_and_scikit_learn(levels, n_pos, n_neg):
    generator = np.random.default_rng(levels)
    positive, negative = scores_with_ties(generator, n_pos, levels), scores_with_ties(generator, n_neg, levels)
    value = auroc(positive, negative)
    assert value == pytest.approx(brute_force_auroc(positive, negative), abs=1e-12)
    truth = np.concatenate([np.ones(n_pos), np.zeros(n_neg)])
    assert value == pytest.approx(roc_auc_score(truth, np.concatenate([positive, negative])), abs=1e-12)


@pytest.mark.parametrize("levels", [1, 3, 1000])
@pytest.mark.parametrize(("n_base", "n_new"), [(1, 1), (9, 25), (30, 14)])
def test_openworld_auc_equals_brute_force(levels, n_base, n_new):
    generator = np.random.default_rng(levels + 10)
    base, new = scores_with_ties(generator, n_base, levels), scores_with_ties(generator, n_new, levels)
    base_ok, new_ok = generator.random(n_base) < 0.7, generator.random(n_new) < 0.6
    expected = brute_force_openworld_auc(base, base_ok, new, new_ok)
    assert openworld_auc(base, base_ok, new, new_ok) == pytest.approx(expected, abs=1e-12)


def test_ties_count_half_in_auroc_and_nothing_in_openworld_auc():
    assert auroc([0.5], [0.5]) == 0.5
    assert openworld_auc([0.5], [True], [0.5], [True]) == 0.0


def test_openworld_auc_is_auroc_when_everything_is_classified_rightly_and_zero_when_nothing_is():
    base, new = [0.9, 0.4], [0.3, 0.6]
    assert openworld_auc(base, [1, 1], new, [1, 1]) == auroc(base, new) == 0.75
    assert openworld_auc(base, [0, 0], new, [1, 1]) == openworld_auc(base, [1, 1], new, [0, 0]) == 0.0


def test_openworld_auc_of_imagenet_size_is_exact():
    base, new = np.arange(25_000) * 2.0, np.arange(25_000) * 2.0 + 1.0
    flags = np.ones(25_000, dtype=bool)
    # base i beats the i new ones below it
    assert openworld_auc(base, flags, new, flags) == (25_000 * 24_999 / 2) / 25_000**2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_torch_tensors_of_any_float_type(dtype):
    assert auroc(torch.tensor([0.75, 0.5], dtype=dtype), torch.tensor([0.25, 0.5], dtype=dtype)) == 0.875


def test_accuracy_is_a_fraction():
    assert accuracy(torch.tensor([1, 2, 3, 0]), np.array([1, 2, 0, 0])) == 0.75


@pytest.mark.parametrize(("base", "new", "expected"), [(80, 60, 480 / 7), (0, 70, 0), (0, 0, 0), (0.5, 0.5, 0.5)])
def test_harmonic_mean(base, new, expected):
    assert harmonic_mean(base, new) == pytest.approx(expected)


@pytest.mark.parametrize("pair", [(-1, 50), (50, -1), (float("nan"), 1), (1, float("nan"))])
def test_harmonic_mean_refuses_what_has_none(pair):
    with pytest.raises(ValueError, match="non-negative"):
        harmonic_mean(*pair)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: auroc([], [1.0]), "scores_pos must be a non-empty vector"),
        (lambda: auroc([1.0], [[1.0]]), "scores_neg must be a non-empty vector, got shape"),
        (lambda: auroc([float("nan")], [1.0]), "scores_pos holds NaN"),
        (lambda: openworld_auc([1.0], [True, False], [1.0], [True]), "1 base_scores but 2 base_correct"),
        (lambda: openworld_auc([1.0], [True], [], []), "new_scores must be a non-empty vector"),
        (lambda: accuracy([1, 2], [1]), "2 predictions for 1 labels"),
        (lambda: accuracy([], []), "predictions must be a non-empty vector"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
