"""CLAP: the released code's multipliers, loss and gradient; one number a class, from training images alone."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.reference import load_record
from tests.trainers.small_runs import build, first_batch, logits_of, stir
from trainers.clap import ClassAdaptive, zero_shot_confidence
from trainers.taskres import Residual, TaskResCLIP


class OnFeatures(TaskResCLIP):
    """Classifier of features alone, without a CLIP."""

    def __init__(self, text, scale):
        nn.Module.__init__(self)
        self.text, self.logit_scale, self.places, self.scale = text, torch.tensor(scale).log(), None, 1.0
        self.prompt_learner = nn.Module()
        self.prompt_learner.head = Residual(text.shape[1], [str(c) for c in range(len(text))])

    def text_features(self, prompts=None):
        return self.text

    def outputs(self, images):
        return self.compare(images, self.text)


def test_multipliers_loss_and_gradient_are_the_released_ones():
    """Its weights are ours plus the text features, so that the gradients are the same."""
    record = load_record("clap")
    text, labels = torch.tensor(record["text_features"]), torch.tensor(record["labels"])
    model, images = OnFeatures(text, 10.0), F.normalize(torch.tensor(record["features"]), dim=-1)
    multipliers = zero_shot_confidence(model, images, labels)
    torch.testing.assert_close(multipliers, torch.tensor(record["multipliers"]), atol=1e-5, rtol=0)
    with torch.no_grad():
        model.head.residual.copy_(torch.tensor(record["prototypes"]) - text)
    loss = ClassAdaptive(multipliers)(model, images, labels)
    torch.testing.assert_close(loss.output.logits.detach(), torch.tensor(record["logits"]), atol=1e-4, rtol=0)
    assert loss.terms["loss_ce"].item() == pytest.approx(record["loss_ce"], rel=1e-4)
    assert loss.terms["loss_text"].item() == pytest.approx(record["loss_constraint"], rel=1e-4)
    assert loss.total.item() == pytest.approx(record["loss"], rel=1e-4)
    (gradient,) = torch.autograd.grad(loss.total, [model.head.residual])
    torch.testing.assert_close(gradient, torch.tensor(record["gradient"]), atol=1e-5, rtol=1e-4)


def test_multipliers_are_of_the_training_images_and_of_zero_shot_clip(tmp_path):
    """Whatever is trained already, as in a run that goes on."""
    found = []
    for name in ("first", "second"):
        trainer = build("CLAP", tmp_path / name, **{"OPTIM.MAX_EPOCH": 1, "TRAINER.CLAP.VIEWS": 2})
        trainer.val_loader = None
        if name == "second":
            stir(trainer)
        trainer.train()
        found.append(trainer.objective.multipliers)
    assert torch.equal(*found)
    assert ((found[0] > 0) & (found[0] < 1)).all()
    assert found[0].std() > 0


def test_without_the_constraint_it_is_cross_entropy(tmp_path):
    trainer = build("CLAP", tmp_path, **{"TRAINER.CLAP.CONSTRAINT": False})
    stir(trainer)
    images, labels = trainer.parse_batch_train(first_batch(trainer))
    loss = trainer.objective(trainer.model, images, labels)
    assert loss.total.item() == pytest.approx(F.cross_entropy(loss.output.logits, labels).item())


def test_new_classes_keep_their_text_features():
    trainer, zero_shot = build("CLAP"), build("ZeroshotCLIP")
    stir(trainer)
    images = torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(4))
    for each in (trainer, zero_shot):
        each.set_class_split("all")
    logits, alone = logits_of(trainer, images), logits_of(zero_shot, images)
    torch.testing.assert_close(logits[:, 5:], alone[:, 5:], atol=1e-4, rtol=0)
    assert not torch.allclose(logits[:, :5], alone[:, :5], atol=0.1)
