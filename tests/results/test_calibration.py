"""Calibration metrics and detection of new classes, against torchmetrics and scikit-learn."""

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_curve

from dassl.config import get_cfg_default
from results.calibration import calibration, fit_temperature
from results.evaluate import OOD_METRICS, OOD_SCORES, OpenWorld, aupr, auroc, fpr95, softmax_scores
from tests.results.test_openworld_evaluator import NAMES, batch, evaluate


def metrics_of(logits, labels, bins=15):
    confidence, nll, brier, _ = softmax_scores(logits, labels).numpy().T
    return calibration(confidence, (logits.argmax(dim=1) == labels).numpy(), nll, brier, bins)


@pytest.fixture(scope="module")
def torchmetrics_error():
    """torchmetrics' calibration error, which takes seconds to import."""
    from torchmetrics.functional.classification import multiclass_calibration_error

    return multiclass_calibration_error


@pytest.mark.parametrize("bins", [1, 10, 15])
@pytest.mark.parametrize("classes", [2, 5])
def test_equal_width_bins_equal_torchmetrics(bins, classes, torchmetrics_error):
    logits, labels = batch(200, classes)
    metrics = metrics_of(2 * logits, labels, bins)
    for name, norm in (("ece", "l1"), ("mce", "max")):
        expected = torchmetrics_error((2 * logits).double(), labels, classes, n_bins=bins, norm=norm)
        assert metrics[name] == pytest.approx(100 * float(expected), abs=1e-4)
    table = metrics["bins"]
    assert [len(column) for column in table.values()] == [bins] * 3
    assert sum(table["count"]) == 200
    assert sum(table["correct"]) == int((logits.argmax(dim=1) == labels).sum())
    assert [value is None for value in table["confidence"]] == [count == 0 for count in table["count"]]


def test_adaptive_bins_hold_equally_many_images():
    logits, labels = batch(150)
    confidence = softmax(logits.double().numpy(), axis=1).max(axis=1)
    right = (logits.argmax(dim=1) == labels).numpy()
    order = np.argsort(confidence)
    expected = np.mean([abs(right[rows].mean() - confidence[rows].mean()) for rows in order.reshape(15, 10)])
    assert metrics_of(logits, labels)["adaptive_ece"] == pytest.approx(100 * expected)


@pytest.mark.parametrize("classes", [3, 5])
def test_nll_and_brier_equal_scikit_learns(classes):
    logits, labels = batch(80, classes)
    probabilities, metrics = softmax(logits.double().numpy(), axis=1), metrics_of(logits, labels)
    assert metrics["nll"] == pytest.approx(log_loss(labels, probabilities, labels=range(classes)))
    one_hot = np.eye(classes)[labels]
    assert metrics["brier"] == pytest.approx(np.square(probabilities - one_hot).sum(axis=1).mean())
    by_class = [brier_score_loss(one_hot[:, k], probabilities[:, k]) for k in range(classes)]
    assert metrics["brier"] == pytest.approx(sum(by_class))


def test_one_class_is_always_right():
    logits, labels = torch.randn(7, 1), torch.zeros(7, dtype=torch.long)
    metrics = metrics_of(logits, labels)
    assert [metrics[name] for name in ("ece", "adaptive_ece", "mce", "nll", "brier")] == [0.0] * 5
    assert softmax_scores(logits, labels)[:, 3].tolist() == [1.0] * 7  # margin


def test_certain_and_right_has_no_error_and_certain_and_wrong_has_all_of_it():
    logits, labels = 1000 * torch.eye(4), torch.arange(4)
    assert metrics_of(logits, labels)["ece"] == 0
    wrong = metrics_of(logits, (labels + 1) % 4)
    assert [wrong[name] for name in ("ece", "adaptive_ece", "mce", "brier")] == [100, 100, 100, 2]


def test_ties_do_not_depend_on_the_order_of_the_images():
    confidence, right = np.full(45, 0.75), np.arange(45) < 30
    backwards = [calibration(confidence, flags, confidence, confidence) for flags in (right, right[::-1])]
    assert backwards[0] == backwards[1]
    assert backwards[0]["adaptive_ece"] == pytest.approx(backwards[0]["ece"]) == pytest.approx(100 * (0.75 - 2 / 3))


def test_an_excluded_class_leaves_no_nll():
    logits = torch.tensor([[1.0, -torch.inf], [1.0, 2.0]])
    metrics = metrics_of(logits, torch.tensor([1, 1]))
    assert metrics["nll"] is None
    assert metrics["brier"] == pytest.approx((2 + 2 / (1 + np.e) ** 2) / 2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (([], [], [], []), "confidence must be a vector"),
        (([0.5], [True, False], [1.0], [1.0]), "correct must be a vector"),
        (([np.nan], [True], [1.0], [1.0]), "confidence holds NaN"),
    ],
)
def test_what_has_no_calibration_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        calibration(*values)


@pytest.mark.parametrize("factor", [0.3, 1.0, 40.0])
def test_the_temperature_has_the_least_nll(factor):
    logits, labels = batch(120)
    temperature = fit_temperature(factor * logits.numpy(), labels.numpy())
    assert temperature == pytest.approx(factor * fit_temperature(logits.numpy(), labels.numpy()), rel=1e-4)
    at = lambda t: metrics_of(factor * logits / t, labels)["nll"]  # noqa: E731
    assert at(temperature) < min(at(0.98 * temperature), at(1.02 * temperature))


@pytest.mark.parametrize("labels", [[0, 1, 2], [1, 2, 0]])
def test_no_temperature_fits_where_all_is_right_or_wrong(labels):
    assert fit_temperature(np.eye(3), np.array(labels)) is None


@pytest.mark.parametrize("levels", [1, 3, 1000])
@pytest.mark.parametrize(("n_pos", "n_neg"), [(1, 1), (7, 30), (41, 12), (100, 100)])
def test_fpr95_and_aupr_equal_scikit_learns(levels, n_pos, n_neg):
    generator = np.random.default_rng(levels)
    positive, negative = (generator.integers(0, levels, count) / levels for count in (n_pos, n_neg))
    truth, scores = np.repeat([1, 0], [n_pos, n_neg]), np.concatenate([positive, negative])
    false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert fpr95(positive, negative) == pytest.approx(false[np.argmax(true >= 0.95)])
    assert aupr(positive, negative) == pytest.approx(average_precision_score(truth, scores))


@pytest.mark.parametrize("metric", [fpr95, aupr])
def test_a_score_that_is_nan_ranks_nothing(metric):
    with pytest.raises(ValueError, match="scores_neg holds NaN"):
        metric([1.0], [float("nan")])


@pytest.mark.parametrize("scale", [None, 10.0])
def test_scores_by_which_base_images_are_told_from_new_ones(scale):
    logits, labels = batch()
    evaluator = OpenWorld(get_cfg_default(), NAMES, num_base=3)
    evaluator.logit_scale = None if scale is None else torch.tensor(scale)
    results = evaluate(evaluator, logits, labels)
    base = logits.double().numpy()[:, :3]
    expected = {
        "union": softmax(logits.double().numpy(), axis=1)[:, :3].max(axis=1),
        "msp": softmax(base, axis=1).max(axis=1),
        "mcm": softmax(base / 10.0, axis=1).max(axis=1),
        "energy": np.log(np.exp(base).sum(axis=1)),
        "max_logit": base.max(axis=1),
    }
    found, is_base = evaluator.detection(), labels.numpy() < 3
    assert list(found) == [name for name in OOD_SCORES if scale or name != "mcm"]
    assert found["union"]["auroc"] == results["auroc"]
    for name, numbers in found.items():
        assert evaluator.scores[name].numpy() == pytest.approx(expected[name])
        sides = expected[name][is_base], expected[name][~is_base]
        by_hand = [100 * metric(*sides) for metric in (auroc, fpr95, aupr)]
        assert numbers == pytest.approx(dict(zip(OOD_METRICS, by_hand, strict=True)))
