"""Evaluation metrics as pure functions on numpy arrays or torch tensors.

Everything here returns fractions in [0, 1]; the evaluators multiply by 100, because Dassl prints percent.
Rank statistics cost O(n log n), so that ImageNet's 50,000 test images are no obstacle.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def accuracy(predictions: Any, labels: Any) -> float:
    """Fraction of predicted class indices, shape (n,), that equal their label, shape (n,).

    Raises:
        ValueError: the two differ in shape, or there is nothing to score.
    """
    predictions, labels = _vector(predictions, "predictions"), _vector(labels, "labels")
    if predictions.shape != labels.shape:
        raise ValueError(f"accuracy: {predictions.size} predictions for {labels.size} labels")
    return float(np.mean(predictions == labels))


def harmonic_mean(base: float, new: float) -> float:
    """H = 2 * base * new / (base + new), in the unit of its arguments; 0 when both are 0.

    Raises:
        ValueError: an argument is negative or not a number.
    """
    if not (base >= 0 and new >= 0):
        raise ValueError(f"harmonic_mean needs two non-negative numbers, got {base} and {new}")
    total = base + new
    return 2.0 * base * new / total if total > 0 else 0.0


def auroc(scores_pos: Any, scores_neg: Any) -> float:
    """Area under the ROC curve: P(positive score above negative), a tie counting one half.

    Args:
        scores_pos: scores of the positive samples, shape (n_pos,); larger means more positive.
        scores_neg: scores of the negative samples, shape (n_neg,).

    Raises:
        ValueError: one side is empty or holds NaN.
    """
    positive, negative = _scores(scores_pos, "scores_pos"), np.sort(_scores(scores_neg, "scores_neg"))
    below = np.searchsorted(negative, positive, side="left")
    below_or_equal = np.searchsorted(negative, positive, side="right")
    wins_twice = int(below.sum()) + int(below_or_equal.sum())
    return wins_twice / (2 * positive.size * negative.size)


def openworld_auc(base_scores: Any, base_correct: Any, new_scores: Any, new_correct: Any) -> float:
    """OpenworldAUC: detection and both classifications must succeed for a pair to count.

    E over pairs (x_b, x_n) of [x_b right among base] * [r(x_b) > r(x_n)] * [x_n right among new], with r(x) the
    largest base-class probability over the union of classes. The inequality is strict, as in the paper's definition: a
    tie tells nothing apart and does not count. The authors' program (huacong/OpenworldAUC) goes through scikit-learn's
    ROC AUC, where a tie counts one half, as it does in :func:`auroc`.

    Hua et al., "OpenworldAUC: Towards Unified Evaluation and Optimization for Open-world Prompt Tuning",
    ICML 2025, https://arxiv.org/abs/2505.05180

    Args:
        base_scores: r(x_b) of the base-class images, shape (n_base,).
        base_correct: whether each is right among the base classes, bool, shape (n_base,).
        new_scores: r(x_n) of the new-class images, shape (n_new,).
        new_correct: whether each is right among the new classes, bool, shape (n_new,).

    Raises:
        ValueError: a side is empty, holds NaN, or has not as many flags as scores.
    """
    right = []
    for side, scores, correct in (("base", base_scores, base_correct), ("new", new_scores, new_correct)):
        scores, flags = _scores(scores, f"{side}_scores"), _vector(correct, f"{side}_correct").astype(bool)
        if flags.shape != scores.shape:
            raise ValueError(f"openworld_auc: {scores.size} {side}_scores but {flags.size} {side}_correct")
        right.append(scores[flags])
    right_base, right_new = right
    pairs_won = int(np.searchsorted(np.sort(right_new), right_base, side="left").sum())
    return pairs_won / (len(base_scores) * len(new_scores))


def _scores(values: Any, name: str) -> np.ndarray:
    array = _vector(values, name).astype(np.float64)
    if np.isnan(array).any():
        raise ValueError(f"{name} holds NaN: the model's outputs are broken, so no ranking exists")
    return array


def _vector(values: Any, name: str) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = values.double() if values.is_floating_point() else values  # numpy knows no bfloat16
    array = np.asarray(values)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} must be a non-empty vector, got shape {array.shape}")
    return array
