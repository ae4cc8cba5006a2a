"""Linear probe: scikit-learn's solution, the search of CoOp's code, and the refusal of other classes."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from tests.trainers.small_runs import build, logits_of
from trainers.linear_probe import COARSE, logistic_regression


@pytest.fixture(scope="module")
def images():
    return torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(4))


def clusters(seed, per_class=6, n_classes=4, width=8):
    """Normalised features and labels of overlapping classes."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(n_classes, width, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(n_classes).repeat(per_class)
    noise = 1.5 * torch.randn(len(labels), width, generator=generator)
    return torch.nn.functional.normalize(centres[labels] + noise, dim=-1), labels


def sklearn_fit(features, labels, c):
    return LogisticRegression(solver="lbfgs", max_iter=1000, C=c).fit(features.double().numpy(), labels.numpy())


@pytest.mark.parametrize("c", [0.01, 1.0, 100.0])
def test_it_is_scikit_learns_logistic_regression(c):
    features, labels = clusters(1)
    weight, bias = logistic_regression(features, labels, 4, c, 1000)
    expected = sklearn_fit(features, labels, c)
    logits = features.double() @ weight.T + bias
    probabilities = torch.from_numpy(expected.predict_proba(features.double().numpy()))
    torch.testing.assert_close(logits.softmax(dim=1), probabilities, atol=1e-3, rtol=0)
    torch.testing.assert_close(weight, torch.from_numpy(expected.coef_), atol=1e-2 * weight.abs().max(), rtol=0)


def coops_choice(features, labels, val_features, val_labels, steps):
    """C of the last step as CoOp's lpclip finds it, told in other words."""

    def accuracy(c):
        return sklearn_fit(features, labels, c).score(val_features.double().numpy(), val_labels.numpy())

    best = COARSE[int(np.argmax([accuracy(c) for c in COARSE]))]
    low, high, chosen = best / 10, best * 10, best
    for _ in range(steps):
        middle = 10 ** ((np.log10(low) + np.log10(high)) / 2)
        if accuracy(low) < accuracy(high):
            chosen, low = high, middle
        else:
            chosen, high = low, middle
    return chosen


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_search_is_that_of_coops_code(seed, monkeypatch):
    (features, labels), validation = clusters(seed), clusters(seed + 10)
    trainer = build("LinearProbe", **{"TRAINER.LINEARPROBE.BINARY_STEPS": 4})
    monkeypatch.setattr("trainers.linear_probe.validation_features", lambda trainer: validation)
    trainer.train_classnames = ["a", "b", "c", "d"]
    trainer.model.prompt_learner.head = trainer.build_head(8, trainer.train_classnames, None)
    with torch.no_grad():
        trainer.fit(features[None], labels)
    assert trainer.notes["searched"]["C"] == pytest.approx(coops_choice(features, labels, *validation, 4))


def test_a_given_c_needs_no_validation_images(tmp_path, images):
    trainer = build("LinearProbe", tmp_path / "searched")
    trainer.val_loader = None
    with pytest.raises(ValueError, match=r"LinearProbe chooses C on validation images.*set TRAINER.LINEARPROBE.C"):
        trainer.train()
    trainer = build("LinearProbe", tmp_path / "given", **{"TRAINER.LINEARPROBE.C": 10.0})
    trainer.val_loader = None
    trainer.train()
    assert trainer.history[0]["acc"] > 60
    again = build("LinearProbe")
    again.load_model(str(tmp_path / "given"))
    assert torch.equal(logits_of(again, images), logits_of(trainer, images))


def test_other_classes_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"LinearProbe predicts the classes.*\(base\), not those of new, all: set TEST"
    ):
        build("LinearProbe", **{"TEST.CLASS_SPLITS": ("base", "new", "all")})
    trainer = build("LinearProbe", tmp_path)
    with pytest.raises(ValueError, match=r"of 5 trained classes \('digit zero' ...\) does not know 'digit nine'"):
        trainer.model.set_classes(["digit one", "digit nine"])
    trainer.train()
    with pytest.raises(ValueError, match=r"does not know 'digit five'.*or use a method that serves new ones"):
        build("LinearProbe", **{"DATASET.SUBSAMPLE_CLASSES": "new"}).load_model(str(tmp_path))


def test_a_part_of_the_trained_classes_is_predicted(tmp_path, images):
    trainer = build("LinearProbe", tmp_path, **{"DATASET.SUBSAMPLE_CLASSES": "all"})
    trainer.train()
    every = logits_of(trainer, images)
    trainer.set_class_split("new")
    torch.testing.assert_close(logits_of(trainer, images), every[:, 5:])
