"""How far confidences are to be trusted: calibration metrics of arrays with a value per image, and a temperature.

Confidence is the largest probability of an image's softmax, accuracy the share of right predictions. Errors are in
percent, the negative log-likelihood in nats, and the Brier score from 0 to 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.files import DAMAGED_ARCHIVE, atomic_write

PREDICTIONS_FILE = "predictions.npz"
BINS = 15
MOST_TEMPERATURE = 100.0  # and its inverse the least


def calibration(confidence: Any, correct: Any, nll: Any, brier: Any, bins: int = BINS) -> dict[str, Any]:
    """All metrics of one set of images, each argument of shape (images,).

    Args:
        confidence: largest probability; correct: whether its class is the label.
        nll: negative log-probability of the label, in nats; infinite where that class was excluded.
        brier: sum over the classes of (probability - [class is the label])^2 (Brier, Monthly Weather Review 1950).
        bins: how many, equal in width and, for the adaptive error, in images.

    Returns:
        ece, adaptive_ece, mce, nll (None where infinite), brier and bins, see :func:`reliability`.

    Raises:
        ValueError: there is no image, shapes differ, or a value is NaN.
    """
    values = {"confidence": confidence, "correct": correct, "nll": nll, "brier": brier}
    values = {name: np.asarray(value, dtype=np.float64) for name, value in values.items()}
    shape = values["confidence"].shape
    for name, value in values.items():
        if value.ndim != 1 or not value.size or value.shape != shape:
            raise ValueError(f"calibration: {name} must be a vector of {shape} values, got shape {value.shape}")
        if np.isnan(value).any():
            raise ValueError(f"calibration: {name} holds NaN: the model's outputs are broken")
    confidence, correct, nll, brier = values.values()
    table = reliability(confidence, correct, bins)
    gaps, shares = gaps_of(table)
    mean_nll = float(nll.mean())
    return {
        "ece": 100.0 * float(shares @ gaps),
        "adaptive_ece": 100.0 * adaptive_ece(confidence, correct, bins),
        "mce": 100.0 * float(gaps.max()),
        "nll": mean_nll if np.isfinite(mean_nll) else None,
        "brier": float(brier.mean()),
        "bins": table,
    }


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> dict[str, list[Any]]:
    """The bins of a reliability diagram, of equal width: bin m of M holds the confidences in ((m - 1) / M, m / M].

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 2, https://arxiv.org/abs/1706.04599

    Returns:
        By bin: count of images, how many of them correct, and their mean confidence from 0 to 1, None without any.
    """
    index = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence, side="left")
    count = np.bincount(index, minlength=bins)
    right = np.bincount(index, weights=correct, minlength=bins).round().astype(int)
    total = np.bincount(index, weights=confidence, minlength=bins)
    mean = [float(part / number) if number else None for part, number in zip(total, count, strict=True)]
    return {"count": count.tolist(), "correct": right.tolist(), "confidence": mean}


def gaps_of(table: dict[str, list[Any]]) -> tuple[np.ndarray, np.ndarray]:
    """``|accuracy - confidence|`` of the bins that hold images, and their shares of the images.

    Expected calibration error (ECE) is the mean gap by these shares, maximum calibration error (MCE) the largest gap
    (Guo et al., equations 3 and 5; Naeini et al., AAAI 2015).
    """
    filled = [bin for bin in zip(table["count"], table["correct"], table["confidence"], strict=True) if bin[0]]
    count, right, confidence = np.array(filled, dtype=np.float64).T
    return np.abs(right / count - confidence), count / count.sum()


def adaptive_ece(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """ECE with bins that hold equally many images (up to one), as a fraction.

    Nixon et al., "Measuring Calibration in Deep Learning", CVPR workshops 2019, https://arxiv.org/abs/1904.01685, where
    the adaptive bins are of every class's probability; here, as in ECE, they are of the confidence alone. Images of
    equal confidence count with their mean accuracy, so that the order of the images does not matter.
    """
    _, tied = np.unique(confidence, return_inverse=True)
    correct = (np.bincount(tied, weights=correct) / np.bincount(tied))[tied]
    order = np.argsort(confidence, kind="stable")
    gaps = confidence[order] - correct[order]
    return float(sum(abs(part.sum()) for part in np.array_split(gaps, bins))) / len(gaps)


def fit_temperature(logits: Any, labels: Sequence[int]) -> float | None:
    """The temperature T of least negative log-likelihood of ``softmax(logits / T)``.

    Guo et al., ICML 2017, section 4.2. The likelihood is convex in 1 / T, with one minimum or none: where every image
    is predicted rightly, the sharper the better, and where right classes score no better than others, the flatter.

    Args:
        logits: shape (images, classes), finite or -inf; labels: shape (images,).

    Returns:
        None where there is no minimum, or none from 1 / `MOST_TEMPERATURE` to `MOST_TEMPERATURE`.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    own = logits[np.arange(len(labels)), labels]

    def mean_nll(log_temperature: float) -> float:
        inverse = np.exp(-log_temperature)
        return float((logsumexp(logits * inverse, axis=1) - own * inverse).mean())

    if (own >= logits.max(axis=1)).all() or own.mean() <= logits.mean() or not np.isfinite(mean_nll(0.0)):
        return None
    end = float(np.log(MOST_TEMPERATURE))
    found = minimize_scalar(mean_nll, bounds=(-end, end), method="bounded", options={"xatol": 1e-6}).x
    return None if abs(found) > 0.99 * end else float(np.exp(found))


# ---- predictions.npz of a run ----


def save_predictions(path: Path, splits: Mapping[str, Mapping[str, Any]]) -> None:
    """Write predictions.npz in one step: `<split>_<name>` of each class split, (images,), in the test's order.

    Names are label and prediction (class numbers of the split, int16 or int32), confidence, nll and brier (float32),
    margin (float16); and, of `all` after training on base, the scores of `results.evaluate.OOD_SCORES` (float32).
    """
    arrays = {}
    for split, parts in splits.items():
        parts = {name: np.asarray(values) for name, values in parts.items()}
        number = "int16" if max(parts["label"].max(), parts["prediction"].max()) < 2**15 else "int32"
        kinds = {"label": number, "prediction": number, "margin": "float16"}
        arrays |= {f"{split}_{name}": values.astype(kinds.get(name, "float32")) for name, values in parts.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        np.savez_compressed(file, **arrays)


def read_predictions(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """The arrays of predictions.npz by class split and name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or lacks what calibration is computed from.
    """
    splits: dict[str, dict[str, np.ndarray]] = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            for key in file.files:
                split, _, name = key.partition("_")
                splits.setdefault(split, {})[name] = file[key]
    except FileNotFoundError:
        raise
    except DAMAGED_ARCHIVE as error:
        raise ValueError(f"{path} cannot be read ({error}): run the test again") from error
    for split, parts in splits.items():
        if lacking := {"label", "prediction", "confidence", "nll", "brier"} - parts.keys():
            raise ValueError(f"{path}: class split {split!r} lacks {', '.join(sorted(lacking))}: run the test again")
    return splits
