"""LP++: the released code's steps and its choice of the epoch; the refusal of other classes."""

import types

import pytest
import torch
from torch.nn import functional as F

from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY
from tests.reference import load_record
from tests.trainers.small_runs import build, logits_of
from trainers.heads import validation_features
from trainers.lp_plus_plus import BlendedLinear, block_descent


@pytest.fixture(scope="module")
def record():
    return load_record("lp_plus_plus")


@pytest.fixture(scope="module")
def inputs(record):
    """Normalised training and validation features, labels of both, and text features."""
    features = {name: torch.tensor(record[name]) for name in ("features", "val_features", "text_features")}
    labels = {name: torch.tensor(record[name]) for name in ("labels", "val_labels")}
    return {name: F.normalize(tensor, dim=-1) for name, tensor in features.items()} | labels


def near(found, state):
    for name, tensor in zip(("weight", "bias", "alpha"), found, strict=True):
        expected = torch.tensor(state[name])
        torch.testing.assert_close(tensor, expected, atol=1e-4 * expected.abs().max().item(), rtol=0, msg=name)


def test_every_epoch_is_the_released_codes(record, inputs):
    """After the second step of alpha, too, which its summed gradient makes."""
    images, labels, text = (inputs[name] for name in ("features", "labels", "text_features"))
    states = list(block_descent(images, labels, text, record["epochs"]))
    near(states[-1], record["last"])
    near(states[record["chosen"]["epoch"] - 1], record["chosen"])
    assert states[0][2].tolist() == pytest.approx([record["initial_alpha"]] * 4)
    for (weight, bias, alpha), loss, accuracy in zip(
        states[:-1], record["losses"][1:], record["val_accuracies"], strict=False
    ):
        logits = images @ (weight + alpha[:, None] * text).t() + bias
        assert F.cross_entropy(logits, labels).item() == pytest.approx(loss, rel=1e-3, abs=1e-5)
        predicted = (inputs["val_features"] @ (weight + alpha[:, None] * text).t() + bias).argmax(dim=1)
        assert 100 * (predicted == inputs["val_labels"]).float().mean().item() == pytest.approx(accuracy, abs=1e-3)


@pytest.mark.parametrize("search", [True, False])
def test_the_epoch_is_the_last_of_the_best(search, record, inputs, monkeypatch):
    validation = inputs["val_features"], inputs["val_labels"]
    monkeypatch.setattr("trainers.lp_plus_plus.validation_features", lambda trainer: validation)
    trainer = object.__new__(TRAINER_REGISTRY.get("LPPlusPlus"))
    trainer.notes = {}
    trainer.cfg = get_cfg_default()
    (trainer.settings.EPOCHS, trainer.settings.SEARCH) = record["epochs"], search
    head = BlendedLinear(8, ["a", "b", "c", "d"])
    trainer.model = types.SimpleNamespace(head=head, text_features=lambda: inputs["text_features"])
    with torch.no_grad():
        trainer.fit(torch.tensor(record["features"])[None], inputs["labels"])
    near((head.weight, head.bias, head.alpha), record["chosen" if search else "last"])
    if search:
        assert trainer.notes["searched"] == {"epoch": 11, "val_accuracy": pytest.approx(max(record["val_accuracies"]))}


def test_only_validation_images_choose(tmp_path, monkeypatch):
    seen = []

    def spy(trainer):
        seen.append(len(trainer.val_loader.dataset))
        return validation_features(trainer)

    monkeypatch.setattr("trainers.lp_plus_plus.validation_features", spy)
    trainer = build("LPPlusPlus", tmp_path)
    trainer.test_loader = None
    trainer.train()
    assert seen == [len(trainer.dm.dataset.val)]
    again, images = build("LPPlusPlus"), torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(4))
    again.load_model(str(tmp_path))
    assert torch.equal(logits_of(again, images), logits_of(trainer, images))
    again.model.set_classes(again.train_classnames[3:1:-1])
    torch.testing.assert_close(logits_of(again, images), logits_of(trainer, images)[:, [3, 2]])
    with pytest.raises(ValueError, match=r"of 5 trained classes \('digit zero' ...\) does not know 'digit nine'"):
        again.model.set_classes(["digit one", "digit nine"])


def test_without_validation_images_it_says_what_to_set(tmp_path):
    trainer = build("LPPlusPlus", tmp_path / "searched")
    trainer.val_loader = None
    with pytest.raises(ValueError, match=r"LPPlusPlus chooses the epoch on .*set TRAINER.LPPLUSPLUS.SEARCH False"):
        trainer.train()
    trainer = build("LPPlusPlus", tmp_path / "last", **{"TRAINER.LPPLUSPLUS.SEARCH": False})
    trainer.val_loader = None
    trainer.train()
    assert trainer.history[0]["acc"] > 60
