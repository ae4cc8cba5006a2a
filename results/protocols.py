"""Which class splits a trained model is tested on, and the loop that tests it on each in one process.

Owns the configuration key `TEST.CLASS_SPLITS`, e.g. ("base", "new", "all"); empty means the classes trained on.
The printed lines are those of `trainer.test()`, so a log reads as Dassl's, one result block per class split.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dassl.config import cfg_default
from dassl.engine import build_trainer
from dassl.evaluation import EvaluatorBase, build_evaluator
from results.features import collecting, save_features
from results.metrics import accuracy
from results.openworld import OPEN_WORLD_METRICS, OpenWorld, num_base_classes
from results.reuse import testing_on_features

CLASS_SPLITS = ("base", "new", "all")
# A confusion matrix of more classes would fill results.json and no plot could show it.
MOST_CLASSES_CONFUSED = 100

cfg_default.TEST.CLASS_SPLITS = ()
# Protocol that a run belongs to, for the tables; empty: what its class splits amount to.
cfg_default.TEST.PROTOCOL = ""
# Registered name of the data set that the weights were trained on, in protocols that test on others; empty: this one.
cfg_default.TEST.SOURCE_DATASET = ""
# Name of the setting in the tables, where it is not the config file's: an ablation's, or one with a file per data set.
cfg_default.TEST.SETTING = ""


def check_class_splits(splits: Sequence[str]) -> tuple[str, ...]:
    """Return `splits` as a tuple, once every name is known and none comes twice.

    Raises:
        ValueError: not a sequence of names, an unknown name, or a repeated one.
    """
    choices = ", ".join(CLASS_SPLITS)
    if isinstance(splits, str) or not all(isinstance(name, str) for name in splits):
        raise ValueError(f"TEST.CLASS_SPLITS must be a tuple of names out of {choices}, got {splits!r}")
    unknown = [name for name in splits if name not in CLASS_SPLITS]
    if unknown:
        raise ValueError(
            f"unknown class split {unknown[0]!r} in TEST.CLASS_SPLITS {tuple(splits)}; choose from {choices}"
        )
    repeated = [name for name, count in Counter(splits).items() if count > 1]
    if repeated:
        raise ValueError(f"class split {repeated[0]!r} comes more than once in TEST.CLASS_SPLITS {tuple(splits)}")
    return tuple(splits)


def train_classes_of(cfg: Any) -> str:
    """The classes that a run trains on: `DATASET.SUBSAMPLE_CLASSES`, or "all" where a config has no such key."""
    return cfg.DATASET.get("SUBSAMPLE_CLASSES", "all")


def class_splits_of(cfg: Any) -> tuple[str, ...]:
    """The class splits that a run is tested on: `TEST.CLASS_SPLITS`, by default the classes it trains on.

    Raises:
        ValueError: see `check_class_splits`.
    """
    return check_class_splits(cfg.TEST.CLASS_SPLITS) or (train_classes_of(cfg),)


def evaluate_class_splits(
    trainer: Any, cfg: Any, splits: Sequence[str], *, model_dir: str = "", load_epoch: int | None = None
) -> dict[str, dict[str, Any]]:
    """Test a trained model on each class split and return the numbers.

    A trainer with a method `set_class_split(split)` is switched from split to split, and back to its training classes
    at the end. Any other Dassl trainer is built anew for each split that it was not trained on and loads the trained
    weights, as CoOp's scripts do in a second process.

    Args:
        trainer: the trainer, holding the weights to test.
        cfg: its configuration.
        splits: names out of `CLASS_SPLITS`.
        model_dir: for a trainer without `set_class_split`: the folder to load the weights from; default the run's own,
            that is `cfg.OUTPUT_DIR`, with the epoch that training ended at, or the best one where `TEST.FINAL_MODEL` is
            "best_val".
        load_epoch: with `model_dir`: which epoch to load; default the best one, as in Dassl.

    Returns:
        For each split: accuracy, error_rate and macro_f1 in percent, num_images, num_classes, per_class, seconds; with
        up to `MOST_CLASSES_CONFUSED` classes confusion, counts by true class and prediction; and for `all` after
        training on `base` also open_world. With `TEST.SAVE_FEATURES` the features lie in features.npz.

    Raises:
        ValueError: a split name is wrong, or base-to-new open-world metrics are not defined on this data.
    """
    splits, trained_on = check_class_splits(splits), train_classes_of(cfg)
    switchable = hasattr(trainer, "set_class_split")
    metrics, current = {}, None
    features: dict[str, Any] = {}
    try:
        for split in splits:
            subject = trainer
            if switchable:
                current = split
                trainer.set_class_split(split)
            elif split != trained_on:
                subject = _rebuilt_trainer(cfg, split, *_weights_of(trainer, cfg, model_dir, load_epoch))
            open_world = split == "all" and trained_on == "base"
            metrics[split] = _evaluate(subject, cfg, split, open_world=open_world, features=features)
    finally:
        if current not in (None, trained_on):
            trainer.set_class_split(trained_on)
    if features:
        save_features(cfg.OUTPUT_DIR, features)
    return metrics


def _weights_of(trainer: Any, cfg: Any, model_dir: str, load_epoch: int | None) -> tuple[str, int | None]:
    """The folder and epoch that `load_model` finds the trainer's weights under."""
    if model_dir:
        return model_dir, load_epoch
    # a resumed run that had nothing left to train never enters an epoch: its start tells where it stands
    last = max(trainer.epoch + 1, trainer.start_epoch)
    return cfg.OUTPUT_DIR, None if cfg.TEST.FINAL_MODEL == "best_val" else last


def _rebuilt_trainer(cfg: Any, split: str, model_dir: str, load_epoch: int | None) -> Any:
    """A fresh trainer on another class split with the trained weights (class-dependent tensors cannot be loaded)."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASET.SUBSAMPLE_CLASSES = split
    cfg.freeze()
    trainer = build_trainer(cfg)
    trainer.load_model(model_dir, epoch=load_epoch)
    return trainer


def _evaluate(trainer: Any, cfg: Any, split: str, *, open_world: bool, features: dict[str, Any]) -> dict[str, Any]:
    """Test on one class split; its features are put into `features` where they are wanted."""
    num_classes = len(trainer.lab2cname)
    recorder = _Recorder(_evaluator_for(trainer, cfg, split, open_world), split)
    print(f"Evaluate class split *{split}* ({num_classes} classes)")
    own_evaluator, trainer.evaluator = trainer.evaluator, recorder
    start = time.perf_counter()
    try:
        with collecting(trainer, cfg.TEST.SAVE_FEATURES) as collector, testing_on_features(trainer, cfg):
            trainer.test()
    except FloatingPointError as error:
        raise FloatingPointError(f"class split {split}: {error}") from error
    finally:
        trainer.evaluator = own_evaluator
    seconds = time.perf_counter() - start
    if collector is not None:
        features[split] = collector.arrays(recorder.labels, trainer.lab2cname)
    return {
        **recorder.metrics(trainer.lab2cname),
        "num_classes": num_classes,
        "seconds": seconds,
        **({"open_world": recorder.open_world(num_base_classes(num_classes))} if open_world else {}),
    }


def _evaluator_for(trainer: Any, cfg: Any, split: str, open_world: bool) -> EvaluatorBase:
    """An evaluator for the class names of this split; the trainer's own one knows the training classes."""
    if cfg.TEST.COMPUTE_CMAT:
        # every split has its confusion matrix: they may not overwrite one another
        cfg = cfg.clone()
        cfg.defrost()
        cfg.OUTPUT_DIR = str(Path(cfg.OUTPUT_DIR) / split)
        cfg.freeze()
        Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    if open_world:
        if cfg.TEST.EVALUATOR not in ("Classification", "OpenWorld"):
            print(f"Class split *{split}* is measured by OpenWorld in place of {cfg.TEST.EVALUATOR}")
        return OpenWorld(cfg, lab2cname=trainer.lab2cname, num_base=num_base_classes(len(trainer.lab2cname)))
    return build_evaluator(cfg, lab2cname=trainer.lab2cname)


class _Recorder(EvaluatorBase):
    """Passes everything to another evaluator, keeping its results and every prediction."""

    def __init__(self, evaluator: EvaluatorBase, split: str) -> None:
        super().__init__(evaluator.cfg)
        self._evaluator, self._split = evaluator, split
        self._labels: list[torch.Tensor] = []
        self._predictions: list[torch.Tensor] = []
        self._results: Mapping[str, float] = {}

    def reset(self) -> None:
        self._evaluator.reset()
        self._labels, self._predictions, self._results = [], [], {}

    def process(self, mo: torch.Tensor, gt: torch.Tensor) -> None:
        self._evaluator.process(mo, gt)
        self._labels.append(gt.detach().cpu())
        self._predictions.append(mo.detach().argmax(dim=1).cpu())

    def evaluate(self) -> OrderedDict[str, float]:
        if not self._labels:
            raise ValueError(f"class split {self._split!r} has no image to test on")
        self._results = self._evaluator.evaluate()
        # the keys become TensorBoard tags: without the split's name, the splits would draw one curve over another
        return OrderedDict((f"{self._split}/{name}", value) for name, value in self._results.items())

    @property
    def labels(self) -> torch.Tensor:
        """The labels of all images, in the order in which they came."""
        return torch.cat(self._labels)

    def metrics(self, lab2cname: Mapping[int, str]) -> dict[str, Any]:
        labels, predictions = self.labels, torch.cat(self._predictions)
        confused = len(lab2cname) <= MOST_CLASSES_CONFUSED
        named = {name: float(value) for name, value in self._results.items() if name not in OPEN_WORLD_METRICS}
        return {
            "accuracy": 100.0 * accuracy(predictions, labels),
            **named,
            "num_images": labels.numel(),
            "per_class": _per_class(labels, predictions, lab2cname),
            **({"confusion": _confusion(labels, predictions, len(lab2cname))} if confused else {}),
        }

    def open_world(self, num_base: int) -> dict[str, float]:
        return {**{name: self._results[name] for name in OPEN_WORLD_METRICS}, "num_base_classes": num_base}


def _confusion(labels: torch.Tensor, predictions: torch.Tensor, num_classes: int) -> list[list[int]]:
    """Counts by true class (row) and prediction (column)."""
    counts = torch.bincount(labels * num_classes + predictions, minlength=num_classes**2)
    return counts.view(num_classes, num_classes).tolist()


def _per_class(
    labels: torch.Tensor, predictions: torch.Tensor, lab2cname: Mapping[int, str]
) -> dict[str, dict[str, Any]]:
    totals = Counter(labels.tolist())
    corrects = Counter(labels[labels == predictions].tolist())
    name_counts = Counter(lab2cname.values())
    result = {}
    for label, name in sorted(lab2cname.items()):
        # some label lists name two classes alike; neither may hide the other
        key = name if name_counts[name] == 1 else f"{name} (label {label})"
        total, correct = totals[label], corrects[label]
        result[key] = {"total": total, "correct": correct, "accuracy": 100.0 * correct / total if total else None}
    return result
