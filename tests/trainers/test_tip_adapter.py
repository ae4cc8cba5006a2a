"""Tip-Adapter: the released code's numbers, the search on validation images, the cache in checkpoints."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY
from results.evaluate import evaluate_class_splits
from tests.reference import load_record
from tests.trainers.small_runs import build, logits_of
from trainers.heads import validation_features
from trainers.tip_adapter import Cache, TipAdapterCLIP, grid

BOTH = ["TipAdapter", "TipAdapterF"]


@pytest.fixture(scope="module")
def images():
    return torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(4))


# Against the released functions, on random features


@pytest.fixture
def released(monkeypatch):
    """The record of the released code's run and our trainer with its features, without a CLIP."""
    record = load_record("tip_adapter")
    settings, labels = record["settings"], record["labels"]
    trainer = object.__new__(TRAINER_REGISTRY.get("TipAdapter"))
    trainer.notes = {}
    trainer.cfg, trainer.train_classnames = get_cfg_default(), ["a", "b", "c", "d"]
    (trainer.settings.MAX_BETA, trainer.settings.MAX_ALPHA) = map(float, settings["search_scale"])
    model = trainer.model = object.__new__(TipAdapterCLIP)
    nn.Module.__init__(model)
    model.logit_scale, model.places = torch.tensor(100.0).log(), None
    model.prompt_learner = nn.Module()
    head = Cache(8, trainer.train_classnames, len(labels), settings["init_alpha"], settings["init_beta"])
    model.prompt_learner.head = head
    text = torch.tensor(record["text_features"])
    model.text_features, model.set_classes = lambda: text, lambda names: None
    validation = F.normalize(torch.tensor(record["val_features"]), dim=-1), torch.tensor(record["val_labels"])
    monkeypatch.setattr("trainers.tip_adapter.validation_features", lambda trainer: validation)
    trainer.fill(torch.tensor(record["views"]), torch.tensor(labels))
    return record, trainer, text


def test_keys_logits_loss_and_gradient_are_the_released_ones(released):
    record, trainer, text = released
    head, labels = trainer.model.head, torch.tensor(record["labels"])
    torch.testing.assert_close(head.keys.detach(), torch.tensor(record["keys"]), atol=1e-6, rtol=0)
    images = F.normalize(torch.tensor(record["views"][0]), dim=-1)
    logits = trainer.model.compare(images, text).logits
    torch.testing.assert_close(logits.detach(), torch.tensor(record["logits"]), atol=1e-4, rtol=0)
    loss = F.cross_entropy(logits, labels)
    assert loss.item() == pytest.approx(record["loss"], rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, [head.keys])
    torch.testing.assert_close(gradient, torch.tensor(record["gradient"]), atol=1e-5, rtol=1e-4)


def test_the_search_finds_the_released_beta_and_alpha(released):
    record, trainer, _ = released
    trainer.search()
    beta, alpha = record["searched"]
    head = trainer.model.head
    assert (head.beta.item(), head.alpha.item()) == (pytest.approx(beta), pytest.approx(alpha))
    assert trainer.notes["searched"].keys() == {"alpha", "beta", "val_accuracy"}


def test_grid():
    assert grid(7.0, 200)[:2] == [0.1, pytest.approx(0.1345)]
    assert max(grid(7.0, 200)) < 7.0


# Runs


@pytest.mark.parametrize("case", BOTH)
def test_alpha_and_beta_are_searched_on_validation_images_only(case, tmp_path, monkeypatch):
    seen = []

    def spy(trainer):
        features, labels = validation_features(trainer)
        seen.append(len(labels))
        return features, labels

    monkeypatch.setattr("trainers.tip_adapter.validation_features", spy)
    trainer = build(case, tmp_path)
    trainer.test_loader = None
    trainer.train()
    assert seen == [len(trainer.dm.dataset.val)]


def test_validation_may_choose_the_epoch(tmp_path, monkeypatch):
    options = {"TEST.FINAL_MODEL": "best_val", "TEST.NO_TEST": False}
    trainer = build("TipAdapterF", tmp_path, **options)
    deployed, searched, search = [], [], trainer.search
    monkeypatch.setattr(trainer, "search", lambda: search() or searched.append(trainer.notes["searched"]))
    trainer.configure(final_evaluation=lambda: deployed.append(trainer.model.head.alpha.item()))
    trainer.train()
    assert max(epoch["val_result"] for epoch in trainer.history) == trainer.best_result
    best = torch.load(tmp_path / "prompt_learner" / "model-best.pth.tar", weights_only=True)["state_dict"]
    assert deployed == [best["head.alpha"].item()]
    accuracies = [found["val_accuracy"] for found in searched]
    chosen = accuracies.index(max(accuracies))
    assert searched[chosen] != searched[-1]
    assert trainer.notes["searched"] == pytest.approx(searched[chosen])


@pytest.mark.parametrize("case", BOTH)
def test_without_validation_images_it_says_what_to_set(case, tmp_path):
    trainer = build(case, tmp_path / "first")
    trainer.val_loader = None
    with pytest.raises(ValueError, match=rf"{case} chooses alpha and beta.*set TRAINER.TIPADAPTER.SEARCH False"):
        trainer.train()
    trainer = build(case, tmp_path / "second", **{"TRAINER.TIPADAPTER.SEARCH": False})
    trainer.val_loader = None
    trainer.train()
    assert (trainer.model.head.alpha.item(), trainer.model.head.beta.item()) == (pytest.approx(1.17), 1.0)


def test_a_run_is_one_epoch_and_resumes_as_finished(tmp_path, images):
    first = build("TipAdapter", tmp_path)
    first.configure(keeps_resume_checkpoint=True)
    first.train()
    assert [epoch["epoch"] for epoch in first.history] == [1]
    again = build("TipAdapter", tmp_path)
    again.fit = None  # would fail
    again.train()
    assert torch.equal(logits_of(first, images), logits_of(again, images))


@pytest.mark.parametrize("case", BOTH)
def test_classes_without_images_get_no_votes(case, tmp_path, images):
    trainer, zero_shot = build(case, tmp_path), build("ZeroshotCLIP")
    trainer.train()
    for split, places in (("new", [0, 1, 2, 3, 4]), ("all", [5, 6, 7, 8, 9])):
        for each in (trainer, zero_shot):
            each.set_class_split(split)
        logits, alone = logits_of(trainer, images), logits_of(zero_shot, images)
        torch.testing.assert_close(logits[:, places], alone[:, places], atol=1e-4, rtol=0)
    assert (logits[:, :5] > alone[:, :5]).all()
    assert trainer.logits_kind == "head of 5 of 10 classes"


@pytest.mark.parametrize("case", BOTH)
def test_a_cache_of_another_size_is_loaded(case, tmp_path, images):
    trained = build(case, tmp_path, **{"DATASET.SUBSAMPLE_CLASSES": "all", "DATASET.NUM_SHOTS": 3})
    trained.train()
    loaded = build(case)
    loaded.load_model(str(tmp_path))
    assert loaded.model.head.keys.shape == trained.model.head.keys.shape
    trained.set_class_split("base")
    assert torch.equal(logits_of(loaded, images), logits_of(trained, images))
    metrics = evaluate_class_splits(loaded, loaded.cfg, ("base", "new"))
    assert json.dumps(loaded.notes)
    assert metrics["base"]["num_images"] == 20


@pytest.mark.parametrize("case", BOTH)
def test_initial_weights_are_refused(case):
    with pytest.raises(ValueError, match=f"INIT_WEIGHTS is 'x'.*{case}.*leave it out"):
        build(case, **{"MODEL.INIT_WEIGHTS": "x"})
