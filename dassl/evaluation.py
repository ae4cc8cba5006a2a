"""Evaluators: accuracy, macro F1, per-class accuracy and confusion matrix; and the top-k accuracy of a batch."""

from __future__ import annotations

import operator
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from yacs.config import CfgNode

from common.files import atomic_write
from dassl import keep_old_paths
from dassl.utils import Registry

EVALUATOR_REGISTRY = Registry("EVALUATOR")


def build_evaluator(cfg: CfgNode, **kwargs: Any) -> Any:
    """Build the evaluator `cfg.TEST.EVALUATOR`; `kwargs` go to its constructor."""
    evaluator = EVALUATOR_REGISTRY.get(cfg.TEST.EVALUATOR)
    if cfg.VERBOSE:
        print(f"Loading evaluator: {cfg.TEST.EVALUATOR}")
    return evaluator(cfg, **kwargs)


class EvaluatorBase:
    """What a trainer asks of an evaluator: `reset`, `process` each batch, `evaluate`."""

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg

    def reset(self) -> None:
        """Forget all batches."""
        raise NotImplementedError

    def process(self, mo: torch.Tensor, gt: torch.Tensor) -> None:
        """Take in the model output and the ground truth of a batch."""
        raise NotImplementedError

    def evaluate(self) -> dict[str, float]:
        """Return the named results of all batches; the first is the one that models are selected by."""
        raise NotImplementedError


@EVALUATOR_REGISTRY.register()
class Classification(EvaluatorBase):
    """Accuracy and macro F1; TEST.PER_CLASS_RESULT needs the class name per label, `lab2cname`."""

    def __init__(self, cfg: CfgNode, lab2cname: Mapping[int, str] | None = None, **kwargs: Any) -> None:
        super().__init__(cfg)
        if cfg.TEST.PER_CLASS_RESULT and lab2cname is None:
            raise ValueError("TEST.PER_CLASS_RESULT needs the class names (lab2cname), but none were given")
        self._lab2cname = lab2cname
        self.reset()

    def reset(self) -> None:
        self._correct = self._total = 0
        self._y_true: list[int] = []
        self._y_pred: list[int] = []

    def process(self, mo: torch.Tensor, gt: torch.Tensor) -> None:
        """Take in scores (batch, classes) and labels (batch,).

        FloatingPointError: an image's largest score is NaN or infinite; -inf may exclude a class.
        """
        best, pred = mo.max(1)
        finite, pred, true = torch.stack([torch.isfinite(best), pred, gt]).tolist()  # the one wait for a GPU
        if not all(finite):
            raise FloatingPointError("the model output is infinite or NaN")
        self._correct += sum(map(operator.eq, pred, true))
        self._total += len(true)
        self._y_true.extend(true)
        self._y_pred.extend(pred)

    def evaluate(self) -> dict[str, float]:
        """Print and return accuracy, error_rate and macro_f1 in percent, and perclass_accuracy where it is asked for.

        Macro F1 is the mean of 2 TP / (2 TP + FP + FN) over the classes that have images.
        """
        if self._total == 0:
            raise ValueError("nothing to evaluate: no image was processed")
        true, pred = np.asarray(self._y_true), np.asarray(self._y_pred)
        scores = []
        for label in np.unique(true):
            hits = np.sum((true == label) & (pred == label))
            scores.append(2 * hits / (np.sum(true == label) + np.sum(pred == label)))
        accuracy = 100.0 * self._correct / self._total
        macro_f1 = 100.0 * float(np.mean(scores))
        results: dict[str, float] = OrderedDict(accuracy=accuracy, error_rate=100.0 - accuracy, macro_f1=macro_f1)
        print(
            "=> result\n"
            f"* total: {self._total:,}\n"
            f"* correct: {self._correct:,}\n"
            f"* accuracy: {accuracy:.1f}%\n"
            f"* error: {results['error_rate']:.1f}%\n"
            f"* macro_f1: {macro_f1:.1f}%"
        )
        if self.cfg.TEST.PER_CLASS_RESULT:
            print("=> per-class result")
            rows = self.per_class_results()
            for label, row in rows.items():
                counts = f"total: {row['total']:,}\tcorrect: {row['correct']:,}\tacc: {row['accuracy']:.1f}%"
                print(f"* class: {label} ({row['classname']})\t{counts}")
            results["perclass_accuracy"] = mean = sum(row["accuracy"] for row in rows.values()) / len(rows)
            print(f"* average: {mean:.1f}%")
        if self.cfg.TEST.COMPUTE_CMAT:
            path = os.path.join(self.cfg.OUTPUT_DIR, "cmat.pt")
            with atomic_write(path) as file:
                torch.save(self.confusion_matrix(), file)
            print(f"Confusion matrix is saved to {path}")
        return results

    def per_class_results(self) -> dict[int, dict[str, Any]]:
        """Return, per label that occurs, its classname, total, correct and accuracy in percent."""
        y_true, y_pred = np.asarray(self._y_true), np.asarray(self._y_pred)
        results = {}
        for label in np.unique(y_true).tolist():
            rows = y_true == label
            total, correct = int(rows.sum()), int((y_pred[rows] == label).sum())
            names = {label: ""} if self._lab2cname is None else self._lab2cname
            if label not in names:
                raise ValueError(f"label {label} has no class name; the names cover {sorted(names)}")
            counts = {"total": total, "correct": correct, "accuracy": 100.0 * correct / total}
            results[label] = {"classname": names[label], **counts}
        return results

    def confusion_matrix(self) -> torch.Tensor:
        """Return the share of images of a class (row) that got each prediction (column).

        Rows and columns are the labels that occur as class or as prediction, in order; a class without images has a
        row of zeros.
        """
        y_true, y_pred = np.asarray(self._y_true), np.asarray(self._y_pred)
        labels = np.union1d(y_true, y_pred)
        counts = np.zeros((len(labels), len(labels)))
        np.add.at(counts, (np.searchsorted(labels, y_true), np.searchsorted(labels, y_pred)), 1)
        return torch.from_numpy(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))


def compute_accuracy(
    output: torch.Tensor | Sequence[torch.Tensor], target: torch.Tensor, topk: Sequence[int] = (1,)
) -> list[torch.Tensor]:
    """Return, per k, the percentage of samples whose label is among the k highest scores, a tensor of shape (1,).

    The output is scores (batch, classes), or a tuple that starts with them; the target is labels (batch,).
    """
    if isinstance(output, (tuple, list)):
        output = output[0]
    ranked = output.topk(max(topk), dim=1).indices  # (batch, max k)
    hits = ranked.eq(target.view(-1, 1)).float()
    return [hits[:, :k].sum().view(1) * (100.0 / target.size(0)) for k in topk]


keep_old_paths(__name__, "dassl.evaluation.build", "dassl.evaluation.evaluator")
