"""The operations of a test image in results.json are those that the cost table counts."""

import pytest
import torch

from benchmarks.cost import operations
from results.evaluate import evaluate_class_splits
from results.features import forget_all
from tests.trainers.small_runs import build

BATCH = {"DATALOADER.TEST.BATCH_SIZE": 8, "TEST.FIT_TEMPERATURE": False}


@pytest.fixture(autouse=True)
def repository_folder(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    forget_all()


@pytest.mark.parametrize("kernels", ["native", "onednn"])
@pytest.mark.parametrize("case", ["CoOp", "CoCoOp", "BMIP"])
def test_the_first_batch_is_counted(case, kernels):
    trainer = build(case, **BATCH, **{"TRAIN.FROZEN_LINEAR": kernels})
    metrics = evaluate_class_splits(trainer, trainer.cfg, ("base", "new"))
    images = next(iter(trainer.test_loader))["img"]
    native = build(case, **BATCH, **{"TRAIN.FROZEN_LINEAR": "native"})
    native.set_model_mode("eval")
    native.model.prompt_learner.requires_grad_(False)
    with torch.no_grad(), native.model.evaluating():
        expected = operations(lambda: native.model(images)) / len(images) / 1e9
    assert metrics["base"]["image_gflop"] == pytest.approx(expected, rel=1e-3)
    # the features of the other images are not known yet
    assert metrics["new"]["image_gflop"] == pytest.approx(expected, rel=0.02)


def test_none_is_given_where_features_were_known():
    trainer = build("CoOp", **BATCH)
    again = evaluate_class_splits(trainer, trainer.cfg, ("base", "all"))["all"]
    assert "image_gflop" not in again
    assert "image_seconds" not in again
