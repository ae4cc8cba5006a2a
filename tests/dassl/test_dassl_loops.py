"""Loops over labelled and unlabelled batches, and the default trainer with its network."""

import os
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY, SimpleTrainer, TrainerX, TrainerXU, build_trainer
from dassl.modeling import BACKBONE_REGISTRY, HEAD_REGISTRY, Backbone
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import load_checkpoint, set_random_seed
from tests.dassl.tiny_run import TinyNet


@TRAINER_REGISTRY.register()
class PairTrainer(TrainerXU):
    """Notes the images of its pairs of batches."""

    def build_model(self):
        self.model = TinyNet(self.num_classes)
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("tiny", self.model, self.optim, self.sched)
        self.seen = []

    def forward_backward(self, batch_x, batch_u):
        image_x, label, image_u = self.parse_batch_train(batch_x, batch_u)
        self.seen.append((batch_x["index"].tolist(), batch_u["index"].tolist()))
        probability = self.model(image_u).softmax(-1)
        loss = F.cross_entropy(self.model(image_x), label)
        loss_u = -(probability * probability.log()).sum(-1).mean()
        self.model_backward_and_update(loss + 0.1 * loss_u)
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss_x": loss.item(), "loss_u": loss_u.item()}


@pytest.mark.parametrize(
    ("count", "batches", "passes_u"), [("train_x", 4, 2), ("train_u", 2, 1), ("smaller_one", 2, 1)]
)
def test_pairs_of_batches(cfg, count, batches, passes_u):
    cfg.TRAINER.NAME = "PairTrainer"
    cfg.DATASET.ALL_AS_UNLABELED = True
    cfg.TRAIN.COUNT_ITER = count
    cfg.OPTIM.MAX_EPOCH = 1
    trainer = build_trainer(cfg)
    trainer.train()
    assert len(trainer.seen) == trainer.num_batches == batches
    labelled = [index for pair in trainer.seen for index in pair[0]]
    assert len(set(labelled)) == len(labelled) == 4 * batches
    unlabelled = [index for pair in trainer.seen for index in pair[1]]
    assert len(unlabelled) == 4 * batches
    assert set(unlabelled) <= set(range(9))
    assert trainer.train_loader_u.passes == passes_u
    assert {"loss_x", "loss_u"} <= trainer.history[0].keys()


def test_pairs_need_unlabelled_images_and_a_known_count(cfg):
    cfg.TRAINER.NAME = "PairTrainer"
    with pytest.raises(ValueError, match=r"no unlabelled images \(train_u\)"):
        build_trainer(cfg).train()
    cfg.DATASET.ALL_AS_UNLABELED = True
    cfg.TRAIN.COUNT_ITER = "train_y"
    cfg.OUTPUT_DIR += "2"
    with pytest.raises(ValueError, match="train_y"):
        build_trainer(cfg).train()


def test_pairs_are_resumed_exactly(cfg, monkeypatch):
    cfg.TRAINER.NAME = "PairTrainer"
    cfg.DATASET.ALL_AS_UNLABELED = True

    def run(output, stop=None):
        cfg.OUTPUT_DIR = output
        set_random_seed(1)
        trainer = build_trainer(cfg)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) if stop else nullcontext():
            if stop:
                patch.setattr(PairTrainer, "before_epoch", lambda self: _interrupt(self.epoch == stop))
            trainer.train()
        return trainer

    output = cfg.OUTPUT_DIR
    whole = run(output + "1")
    run(output + "2", stop=1)
    resumed = run(output + "2")
    assert resumed.seen == whole.seen[4:]
    assert torch.equal(resumed.model.fc.weight, whole.model.fc.weight)


def _interrupt(now):
    if now:
        raise KeyboardInterrupt


class MeanColour(Backbone):
    """Mean and standard deviation of each channel."""

    def __init__(self):
        super().__init__()
        self._out_features = 6

    def forward(self, x):
        return torch.cat([x.mean(dim=(2, 3)), x.std(dim=(2, 3))], dim=1)


@BACKBONE_REGISTRY.register()
def mean_colour(pretrained=True, **kwargs):
    return MeanColour()


@HEAD_REGISTRY.register()
def mlp(in_features, hidden_layers, **kwargs):
    (width,) = hidden_layers
    head = nn.Sequential(nn.Linear(in_features, width), nn.BatchNorm1d(width), nn.ReLU())
    head.out_features = width
    return head


@TRAINER_REGISTRY.register()
class PlainTrainer(TrainerX):
    """Cross-entropy on the engine's own network."""

    def forward_backward(self, batch):
        image, label, domain = self.parse_batch_train(batch)
        assert domain.shape == label.shape
        loss = F.cross_entropy(self.model(image), label)
        self.model_backward_and_update(loss)
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}


def plain_cfg(cfg):
    cfg.TRAINER.NAME = "PlainTrainer"
    cfg.MODEL.BACKBONE.NAME = "mean_colour"
    cfg.MODEL.HEAD.NAME = "mlp"
    cfg.MODEL.HEAD.HIDDEN_LAYERS = (5,)
    return cfg


def test_the_default_model_is_a_simple_net(cfg, capsys):
    trainer = build_trainer(plain_cfg(cfg))
    assert isinstance(trainer, SimpleTrainer)
    trainer.train()
    printed = capsys.readouterr().out
    for line in ("Building model", "Backbone: mean_colour", "Head: mlp", "# params: 63"):
        assert line in printed
    saved = load_checkpoint(os.path.join(cfg.OUTPUT_DIR, "model", "model.pth.tar-3"))
    assert "classifier.weight" in saved["state_dict"]


def test_initial_weights(cfg):
    trainer = build_trainer(plain_cfg(cfg))
    trainer.train()
    cfg.MODEL.INIT_WEIGHTS = os.path.join(cfg.OUTPUT_DIR, "model", "model.pth.tar-3")
    torch.manual_seed(9)
    other = build_trainer(cfg)
    assert torch.equal(other.model.classifier.weight, trainer.model.classifier.weight)


def test_unknown_trainer_names_the_nearest(cfg):
    cfg.TRAINER.NAME = "PlainTrainr"
    with pytest.raises(ValueError, match=r"TRAINER registry.*do you mean \[PlainTrainer\]"):
        build_trainer(cfg)
