"""The classification evaluator and the metrics, against scikit-learn and by hand."""

import os

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, f1_score

from dassl.config import get_cfg_default
from dassl.evaluation import EVALUATOR_REGISTRY, Classification, EvaluatorBase, build_evaluator
from dassl.metrics import compute_accuracy

NAMES = {label: f"class {label}" for label in range(6)}


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg_default()
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    return cfg


def filled(cfg, y_true, y_pred, num_classes=6):
    evaluator = build_evaluator(cfg, lab2cname=NAMES)
    scores = torch.nn.functional.one_hot(torch.tensor(y_pred), num_classes).float()
    for start in range(0, len(y_true), 7):
        evaluator.process(scores[start : start + 7], torch.tensor(y_true[start : start + 7]))
    return evaluator


@pytest.mark.parametrize("seed", range(4))
def test_results_equal_scikit_learns(cfg, seed):
    rng = np.random.default_rng(seed)
    y_true = rng.integers(0, 4, 50).tolist()
    y_pred = np.where(rng.random(50) < 0.5, y_true, rng.integers(0, 6, 50)).tolist()
    evaluator = filled(cfg, y_true, y_pred)
    results = evaluator.evaluate()
    assert list(results) == ["accuracy", "error_rate", "macro_f1"]
    assert results["accuracy"] == pytest.approx(100 * np.mean(np.equal(y_true, y_pred)))
    assert results["error_rate"] == pytest.approx(100 - results["accuracy"])
    expected = f1_score(y_true, y_pred, average="macro", labels=np.unique(y_true))
    assert results["macro_f1"] == pytest.approx(100 * expected)
    with np.errstate(all="ignore"):
        expected = np.nan_to_num(confusion_matrix(y_true, y_pred, normalize="true"))
    assert np.allclose(evaluator.confusion_matrix().numpy(), expected)


def test_printed_lines_are_dassls(cfg, capsys):
    cfg.TEST.PER_CLASS_RESULT = True
    cfg.TEST.COMPUTE_CMAT = True
    results = filled(cfg, [0] * 1200 + [2, 2, 2], [0] * 1200 + [2, 2, 1]).evaluate()
    assert capsys.readouterr().out.splitlines() == [
        "Loading evaluator: Classification",
        "=> result",
        "* total: 1,203",
        "* correct: 1,202",
        "* accuracy: 99.9%",
        "* error: 0.1%",
        "* macro_f1: 90.0%",
        "=> per-class result",
        "* class: 0 (class 0)\ttotal: 1,200\tcorrect: 1,200\tacc: 100.0%",
        "* class: 2 (class 2)\ttotal: 3\tcorrect: 2\tacc: 66.7%",
        "* average: 83.3%",
        f"Confusion matrix is saved to {os.path.join(cfg.OUTPUT_DIR, 'cmat.pt')}",
    ]
    assert list(results) == ["accuracy", "error_rate", "macro_f1", "perclass_accuracy"]
    assert results["perclass_accuracy"] == pytest.approx(250 / 3)
    cmat = torch.load(os.path.join(cfg.OUTPUT_DIR, "cmat.pt"), weights_only=True)
    assert cmat[2].tolist() == pytest.approx([0, 1 / 3, 2 / 3])


def test_per_class_results_need_no_option(cfg):
    evaluator = filled(cfg, [1, 1, 4], [1, 0, 4])
    assert evaluator.per_class_results() == {
        1: {"classname": "class 1", "total": 2, "correct": 1, "accuracy": 50.0},
        4: {"classname": "class 4", "total": 1, "correct": 1, "accuracy": 100.0},
    }


def test_reset(cfg):
    evaluator = filled(cfg, [0, 1], [1, 1])
    evaluator.reset()
    with pytest.raises(ValueError, match="no image was processed"):
        evaluator.evaluate()
    evaluator.process(torch.eye(6)[:1], torch.tensor([0]))
    assert evaluator.evaluate()["accuracy"] == 100.0


def test_bad_input(cfg):
    with pytest.raises(FloatingPointError, match="NaN"):
        filled(cfg, [0], [0]).process(torch.tensor([[float("nan"), 1.0]]), torch.tensor([0]))
    filled(cfg, [0], [0]).process(torch.tensor([[float("-inf"), 1.0]]), torch.tensor([0]))
    cfg.TEST.PER_CLASS_RESULT = True
    with pytest.raises(ValueError, match="class names"):
        Classification(cfg)
    evaluator = Classification(cfg, lab2cname={1: "one"})
    evaluator.process(torch.eye(2), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="label 0 has no class name"):
        evaluator.evaluate()


def test_evaluators_of_ones_own(cfg):
    @EVALUATOR_REGISTRY.register(force=True)
    class Counting(EvaluatorBase):
        def __init__(self, cfg, lab2cname=None, **kwargs):
            super().__init__(cfg)
            self.kwargs = kwargs

    cfg.TEST.EVALUATOR = "Counting"
    assert build_evaluator(cfg, lab2cname=NAMES, more=1).kwargs == {"more": 1}
    cfg.TEST.EVALUATOR = "Classificaton"
    with pytest.raises(ValueError, match=r"do you mean \[Classification\]"):
        build_evaluator(cfg)


def test_top_k_accuracy():
    scores = torch.tensor([[0.1, 0.5, 0.4], [0.7, 0.2, 0.1], [0.3, 0.3, 0.4], [0.2, 0.5, 0.3]])
    target = torch.tensor([2, 0, 0, 1])
    top1, top3 = compute_accuracy(scores, target, topk=(1, 3))
    assert (top1.item(), top3.item(), top1.shape) == (50.0, 100.0, (1,))
    assert compute_accuracy((scores, None), target)[0].item() == 50.0
    assert compute_accuracy(scores, target, topk=(2,))[0].item() >= 75.0
