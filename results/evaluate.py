"""Tests a trained model on the class splits of a protocol, in one process; the metrics stand at the end.

Class splits follow CoOp: classes sorted by label, the first ceil(n / 2) are base. The printed lines are those of
`trainer.test()`, so a log reads as Dassl's, one result block per class split.
"""

from __future__ import annotations

import math
import time
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dassl.config import cfg_default
from dassl.engine import build_trainer
from dassl.evaluation import EVALUATOR_REGISTRY, Classification, EvaluatorBase, build_evaluator
from results.calibration import PREDICTIONS_FILE, calibration, fit_temperature, save_predictions
from results.features import FeatureCollector, loaders_on_features, save_features, training_features
from results.operations import Operations

CLASS_SPLITS = ("base", "new", "all")
OPEN_WORLD_METRICS = ("accuracy_all", "open_base", "open_new", "open_H", "auroc", "openworld_auc")
OOD_SCORES = ("union", "msp", "mcm", "energy", "max_logit")  # see ood_scores
SOFTMAX_SCORES = ("confidence", "nll", "brier", "margin")  # see softmax_scores
OOD_METRICS = ("auroc", "fpr95", "aupr")
MAX_CLASSES_CONFUSED = 100  # a larger confusion matrix would fill results.json, and no plot could show it

cfg_default.TEST.CLASS_SPLITS = ()  # for example ("base", "new", "all"); empty: the classes trained on
# Fit a temperature to the few-shot validation set, for the calibration at it: one pass over at most 4 images per class.
cfg_default.TEST.FIT_TEMPERATURE = True
# Keep every image's label, prediction, confidence and scores in predictions.npz: 18 bytes per image and class split.
cfg_default.TEST.SAVE_PREDICTIONS = True
# Protocol that a run belongs to, for the tables; empty: what its class splits amount to.
cfg_default.TEST.PROTOCOL = ""
# Registered name of the data set that the weights were trained on, in protocols that test on others; empty: this one.
cfg_default.TEST.SOURCE_DATASET = ""
# Name of the setting in the tables, where it is not the config file's: an ablation's, or one with a file per data set.
cfg_default.TEST.SETTING = ""
# Number of trials of which the settings were the best on validation images, for the tables; 0: they were not tuned.
cfg_default.TEST.TUNING_TRIALS = 0


def num_base_classes(num_classes: int) -> int:
    """Number of base classes among `num_classes`: the first ceil(n / 2) labels (CoOp's rule)."""
    return math.ceil(num_classes / 2)


def check_class_splits(splits: Sequence[str]) -> tuple[str, ...]:
    """Return `splits` as a tuple, once every name is known and none comes twice.

    Raises:
        ValueError: not a sequence of names, an unknown name, or a repeated one.
    """
    choices = ", ".join(CLASS_SPLITS)
    if isinstance(splits, str) or not all(isinstance(name, str) for name in splits):
        raise ValueError(f"TEST.CLASS_SPLITS must be a tuple of names out of {choices}, got {splits!r}")
    splits = tuple(splits)
    for name, count in Counter(splits).items():
        if name not in CLASS_SPLITS:
            raise ValueError(f"unknown class split {name!r} in TEST.CLASS_SPLITS {splits}; choose from {choices}")
        if count > 1:
            raise ValueError(f"class split {name!r} comes more than once in TEST.CLASS_SPLITS {splits}")
    return splits


def class_splits_of(cfg: Any) -> tuple[str, ...]:
    """The class splits that a run is tested on: `TEST.CLASS_SPLITS`, checked; by default the classes it trains on."""
    return check_class_splits(cfg.TEST.CLASS_SPLITS) or (cfg.DATASET.get("SUBSAMPLE_CLASSES", "all"),)


def evaluate_class_splits(
    trainer: Any,
    cfg: Any,
    splits: Sequence[str],
    *,
    model_dir: str = "",
    load_epoch: int | None = None,
    training_images: bool = False,
) -> dict[str, dict[str, Any]]:
    """Test a trained model on each class split and return the numbers.

    A trainer with a method `set_class_split(split)` is switched from split to split, and back to its training classes
    at the end. Any other Dassl trainer is built anew for each split that it was not trained on and loads the trained
    weights, as CoOp's scripts do in a second process (class-dependent tensors cannot be loaded).

    Args:
        trainer: holds the weights to test.
        cfg: its configuration.
        splits: names out of `CLASS_SPLITS`.
        model_dir: for a trainer without `set_class_split`: the folder to load the weights from; default
            `cfg.OUTPUT_DIR`, with the epoch that training ended at, or the best where `TEST.FINAL_MODEL` is "best_val".
        load_epoch: with `model_dir`: which epoch to load; default the best one, as in Dassl.
        training_images: with `TEST.SAVE_FEATURES`: keep the features of training and validation images, too.

    Returns:
        For each split: accuracy, error_rate and macro_f1 in percent, num_images, num_classes, per_class, calibration,
        seconds, and image_seconds and image_gflop by image unless features of some were known already; with up to
        `MAX_CLASSES_CONFUSED` classes confusion, counts by true class and prediction; and for `all`
        after training on `base` also open_world and ood, see :class:`OpenWorld`. calibration has what
        :func:`results.calibration.calibration` returns, and the same at the temperature of the few-shot validation set
        (`scaled`), or a note why there is none. With `TEST.SAVE_PREDICTIONS` every image's numbers lie in
        predictions.npz, see :func:`results.calibration.save_predictions`. With `TEST.SAVE_FEATURES` the features lie in
        features.npz.

    Raises:
        ValueError: a split name is wrong, or base-to-new open-world metrics are not defined on this data.
    """
    splits, trained_on = check_class_splits(splits), cfg.DATASET.get("SUBSAMPLE_CLASSES", "all")
    metrics, features, predictions, current = {}, {}, {}, trained_on
    temperature = _fit_on_validation(trainer, cfg)  # now, while the trainer has the classes it was trained on
    if cfg.TEST.SAVE_FEATURES and training_images:
        features |= training_features(trainer, cfg)
    try:
        for split in splits:
            tested = trainer
            if hasattr(trainer, "set_class_split"):
                current = split
                trainer.set_class_split(split)
            elif split != trained_on:
                if not model_dir and cfg.TEST.FINAL_MODEL != "best_val":
                    # a resumed run that had nothing left to train never enters an epoch: its start tells where it is
                    load_epoch = max(trainer.epoch + 1, trainer.start_epoch)
                tested = build_trainer(_changed(cfg, "DATASET.SUBSAMPLE_CLASSES", split))
                tested.load_model(model_dir or cfg.OUTPUT_DIR, epoch=load_epoch)
            open_world = split == "all" and trained_on == "base"
            found = _evaluate(tested, cfg, split, open_world, temperature)
            metrics[split], features[split], predictions[split] = found
    finally:
        if current != trained_on:
            trainer.set_class_split(trained_on)
    if cfg.TEST.SAVE_FEATURES:
        save_features(cfg.OUTPUT_DIR, features)
    if cfg.TEST.SAVE_PREDICTIONS and cfg.OUTPUT_DIR:
        save_predictions(Path(cfg.OUTPUT_DIR) / PREDICTIONS_FILE, predictions)
    return metrics


def _changed(cfg: Any, key: str, value: str) -> Any:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_list([key, value])
    cfg.freeze()
    return cfg


def _fit_on_validation(trainer: Any, cfg: Any) -> float | str:
    """The temperature that fits the few-shot validation set of the classes trained on, or why there is none.

    Never on other classes or data sets than those trained on: their labels are the test's.
    """
    trained_on = cfg.DATASET.get("SUBSAMPLE_CLASSES", "all")
    if not cfg.TEST.FIT_TEMPERATURE:
        return "not asked for"
    if cfg.TEST.SOURCE_DATASET or trained_on == "new":
        return "the validation set is not of the classes trained on"
    if cfg.DATASET.NUM_SHOTS < 1 or getattr(trainer, "val_loader", None) is None:
        return "no few-shot validation set"
    fitted = _Temperature(cfg)
    try:
        with trainer.swapped(evaluator=fitted, **loaders_on_features(trainer, cfg)):
            trainer.test("val")
    except FloatingPointError as error:  # the test decides whether the run ends here, and names its images
        print(f"No temperature is fitted: {error}")
        return f"validation: {error}"
    if fitted.temperature is None:
        return "none fits best: every validation image is right, or no better than chance"
    return fitted.temperature


def _evaluate(
    trainer: Any, cfg: Any, split: str, open_world: bool, temperature: float | str
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Test on one class split; returns its metrics, its features where they are wanted, and its predictions."""
    names: Mapping[int, str] = trainer.lab2cname
    num_base = num_base_classes(len(names))
    cfg_split = cfg
    if cfg.TEST.COMPUTE_CMAT:  # every split has its confusion matrix: they may not overwrite one another
        cfg_split = _changed(cfg, "OUTPUT_DIR", str(Path(cfg.OUTPUT_DIR) / split))
        Path(cfg_split.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    if open_world and cfg.TEST.EVALUATOR not in ("Classification", "OpenWorld"):
        print(f"Class split *{split}* is measured by OpenWorld in place of {cfg.TEST.EVALUATOR}")
    # of the class names of this split; the trainer's evaluator knows the training classes
    evaluator = OpenWorld(cfg_split, names, num_base) if open_world else build_evaluator(cfg_split, lab2cname=names)
    if open_world:
        evaluator.logit_scale = _logit_scale(trainer)
    temperatures = [1.0] if isinstance(temperature, str) else [1.0, temperature]
    recorder = _Recorder(evaluator, split, temperatures)
    parts: dict[str, Any] = {"evaluator": recorder}
    if cfg.TEST.SAVE_FEATURES:
        collector = FeatureCollector(trainer.model)
        parts["model_inference"] = collector.infer
        parts["parse_batch_test"] = collector.reading(trainer.parse_batch_test)
    print(f"Evaluate class split *{split}* ({len(names)} classes)")
    loaders, operations = loaders_on_features(trainer, cfg), Operations()
    if not cfg.TRAIN.get("COMPILE", False):  # what is compiled is one operator to the counter
        parts["model_inference"] = operations.of("predict", parts.get("model_inference", trainer.model_inference))
        if "test_loader" in loaders:
            loaders["test_loader"].operations = operations
    start = time.perf_counter()
    try:
        with trainer.swapped(**parts, **loaders):
            trainer.test()
    except FloatingPointError as error:
        raise FloatingPointError(f"class split {split}: {error}") from error
    seconds = time.perf_counter() - start

    labels, predictions = torch.cat(recorder.labels).cpu(), torch.cat(recorder.predictions).cpu()
    totals, corrects = Counter(labels.tolist()), Counter(labels[labels == predictions].tolist())
    name_counts, per_class = Counter(names.values()), {}
    for label, name in sorted(names.items()):
        total, correct = totals[label], corrects[label]
        # some label lists name two classes alike; neither may hide the other
        per_class[name if name_counts[name] == 1 else f"{name} (label {label})"] = {
            "total": total,
            "correct": correct,
            "accuracy": 100.0 * correct / total if total else None,
        }
    metrics = {
        "accuracy": 100.0 * accuracy(predictions, labels),
        **{name: float(value) for name, value in recorder.results.items() if name not in OPEN_WORLD_METRICS},
        "num_images": labels.numel(),
        "per_class": per_class,
    }
    right = (labels == predictions).numpy()
    scores = torch.cat(recorder.scores).cpu().numpy().transpose(1, 2, 0)  # (temperatures, 4, images)
    plain, *scaled = (calibration(confidence, right, nll, brier) for confidence, nll, brier, _ in scores)
    kept = {"label": labels, "prediction": predictions} | dict(zip(SOFTMAX_SCORES, scores[0], strict=True))
    of_validation = {"temperature": temperature, "scaled": scaled[0]} if scaled else {"no_temperature": temperature}
    metrics["calibration"] = plain | of_validation
    if len(names) <= MAX_CLASSES_CONFUSED:  # counts by true class (row) and prediction (column)
        counts = torch.bincount(labels * len(names) + predictions, minlength=len(names) ** 2)
        metrics["confusion"] = counts.view(len(names), len(names)).tolist()
    metrics |= {"num_classes": len(names), "seconds": seconds}
    if not ("test_loader" in loaders and loaders["test_loader"].num_known):
        metrics["image_seconds"] = seconds / labels.numel()
        if operations.by_work:
            metrics["image_gflop"] = operations.per_image / 1e9
    if open_world:
        numbers = {name: recorder.results[name] for name in OPEN_WORLD_METRICS}
        metrics["open_world"] = numbers | {"num_base_classes": num_base}
        metrics["ood"] = evaluator.detection()
        kept |= evaluator.scores
    return metrics, collector.arrays(labels, names) if cfg.TEST.SAVE_FEATURES else {}, kept


def _logit_scale(trainer: Any) -> Tensor | None:
    """What CLIP multiplies cosine similarities by, None where the trainer's model does not show it."""
    scale = getattr(getattr(trainer, "model", None), "logit_scale", None)
    return scale.detach().double().exp() if isinstance(scale, Tensor) else None


def softmax_scores(logits: Tensor, labels: Tensor) -> Tensor:
    """What calibration is computed from, (batch, 4), double, of logits (batch, n_cls) and labels (batch,).

    By image, in the order of `SOFTMAX_SCORES`: the largest probability, the label's negative log-likelihood in nats,
    the Brier score, and the margin (the largest probability less the next).
    """
    log_probabilities = logits.double().log_softmax(dim=1)
    probabilities, own = log_probabilities.exp(), labels[:, None]
    # a single class has nothing beside it
    top = torch.cat([probabilities, torch.zeros_like(probabilities[:, :1])], dim=1).topk(2, dim=1).values
    brier = probabilities.square().sum(dim=1) - 2 * probabilities.gather(1, own)[:, 0] + 1
    nll = -log_probabilities.gather(1, own)[:, 0]
    return torch.stack([top[:, 0], nll, brier, top[:, 0] - top[:, 1]], dim=1)


class _Temperature(EvaluatorBase):
    """Fits a temperature to the outputs it sees."""

    def reset(self) -> None:
        self.logits: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.temperature: float | None = None

    def process(self, mo: Tensor, gt: Tensor) -> None:
        self.logits.append(mo.detach().double())  # on the device: it is waited for at the end
        self.labels.append(gt.detach())

    def evaluate(self) -> OrderedDict[str, float]:
        logits = torch.cat(self.logits).cpu()
        if not logits.amax(dim=1).isfinite().all():
            raise FloatingPointError("the model output is infinite or NaN")
        self.temperature = fit_temperature(logits.numpy(), torch.cat(self.labels).cpu().numpy())
        said = "none fits best" if self.temperature is None else f"{self.temperature:.3f}"
        print(f"Temperature for calibration: {said}")
        return OrderedDict(temperature=self.temperature or 1.0)


class _Recorder(EvaluatorBase):
    """Passes everything to another evaluator, keeping its results and what is needed of every image.

    The latter are labels, predictions, and `softmax_scores` at each temperature, (batch, temperatures, 4).
    """

    def __init__(self, evaluator: EvaluatorBase, split: str, temperatures: Sequence[float]) -> None:
        super().__init__(evaluator.cfg)
        self.evaluator, self.split, self.temperatures = evaluator, split, temperatures
        self.reset()

    def reset(self) -> None:
        self.evaluator.reset()
        self.labels: list[Tensor] = []
        self.predictions: list[Tensor] = []
        self.scores: list[Tensor] = []
        self.results: Mapping[str, float] = {}

    def process(self, mo: Tensor, gt: Tensor) -> None:
        self.evaluator.process(mo, gt)
        logits, labels = mo.detach().double(), gt.detach()
        self.labels.append(labels)  # on the device: it is waited for at the end
        self.predictions.append(mo.detach().argmax(dim=1))
        self.scores.append(torch.stack([softmax_scores(logits / t, labels) for t in self.temperatures], dim=1))

    def evaluate(self) -> OrderedDict[str, float]:
        if not self.labels:
            raise ValueError(f"class split {self.split!r} has no image to test on")
        self.results = self.evaluator.evaluate()
        # the keys become TensorBoard tags: without the split's name, the splits would draw one curve over another
        return OrderedDict((f"{self.split}/{name}", value) for name, value in self.results.items())


@EVALUATOR_REGISTRY.register()
class OpenWorld(Classification):
    """`Classification` that also reports open-world generalization: one softmax over base and new classes.

    Beside these results it has `detection()`: how well scores tell base images from those of new classes.

    Args:
        cfg: the run's configuration.
        lab2cname: label -> class name.
        num_base: labels below this number are base classes, the others new; may be set later as an attribute, before
            the first batch. None means that the classes form a closed set: the evaluator behaves as `Classification`.
    """

    def __init__(
        self, cfg: Any, lab2cname: Mapping[int, str] | None = None, num_base: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(cfg, lab2cname=lab2cname, **kwargs)
        self.num_base = num_base
        self.logit_scale: Tensor | None = None  # what the logits are cosine similarities times; None: no MCM
        self._batches: list[tuple[Tensor, ...]] = []
        self.scores: dict[str, Tensor] = {}  # of OOD_SCORES, after evaluate(): (images,) each, on the CPU
        self._base: Tensor | None = None  # whether each image is of a base class

    def reset(self) -> None:
        super().reset()
        self._batches, self.scores, self._base = [], {}, None

    def process(self, mo: Tensor, gt: Tensor) -> None:
        """Take one batch: logits (batch, n_cls) over base and new classes (ValueError: of one), and labels (batch,)."""
        super().process(mo, gt)
        num_base = self.num_base
        if num_base is None:
            return
        if num_base < 1:
            raise ValueError(f"the open-world metrics need at least one base class, got num_base={num_base}")
        if mo.shape[1] <= num_base:
            raise ValueError(
                f"open-world evaluation needs base and new classes: {mo.shape[1]} classes, {num_base} of them base, "
                "leaves no new class"
            )
        # double, because probabilities near one tie in float32 and a tie does not count in OpenworldAUC
        logits = mo.detach().double()
        scores = ood_scores(logits, num_base, self.logit_scale)
        within_base = logits[:, :num_base].argmax(dim=1)
        within_new = logits[:, num_base:].argmax(dim=1) + num_base
        self._batches.append((gt.detach(), logits.argmax(dim=1), scores, within_base, within_new))

    def evaluate(self) -> OrderedDict[str, float]:
        """Print and return Dassl's results, then the open-world ones, in percent.

        Raises:
            ValueError: the images seen are of one group only, or the logits hold NaN.
        """
        results = super().evaluate()
        if self.num_base is None:
            return results
        if not self._batches:
            raise ValueError("open-world evaluation saw no image since num_base was set")
        labels, predicted, scores, within_base, within_new = (
            torch.cat(parts).cpu() for parts in zip(*self._batches, strict=True)
        )
        self.scores = {name: column for name, column in zip(OOD_SCORES, scores.t(), strict=True) if self._has(name)}
        score, base, new = self.scores["union"], labels < self.num_base, labels >= self.num_base
        if not base.any() or not new.any():
            raise ValueError(
                "open-world evaluation needs images of base and of new classes, "
                f"got {int(base.sum())} base and {int(new.sum())} new"
            )
        open_base, open_new = accuracy(predicted[base], labels[base]), accuracy(predicted[new], labels[new])
        right_base, right_new = (within_base == labels)[base], (within_new == labels)[new]
        values = (
            *(accuracy(predicted, labels), open_base, open_new, harmonic_mean(open_base, open_new)),
            auroc(score[base], score[new]),
            openworld_auc(score[base], right_base, score[new], right_new),
        )
        open_world = {name: 100.0 * value for name, value in zip(OPEN_WORLD_METRICS, values, strict=True)}
        print("=> open-world result")
        print("\n".join(f"* {name}: {value:.1f}%" for name, value in open_world.items()))
        results.update(open_world)
        self._base = base
        return results

    def _has(self, name: str) -> bool:
        return name != "mcm" or self.logit_scale is not None

    def detection(self) -> dict[str, dict[str, float]]:
        """AUROC, FPR95 and AUPR in percent by score of `OOD_SCORES`, base images being the positive ones.

        Known after `evaluate()`.
        """
        found = {}
        for name, score in self.scores.items():
            base, new = score[self._base], score[~self._base]
            values = auroc(base, new), fpr95(base, new), aupr(base, new)
            found[name] = {metric: 100.0 * value for metric, value in zip(OOD_METRICS, values, strict=True)}
        return found


def ood_scores(logits: Tensor, num_base: int, logit_scale: Tensor | float | None) -> Tensor:
    """Scores by which base images are told from those of new classes, (batch, 5), double; larger means more like base.

    In the order of `OOD_SCORES`, of logits (batch, n_cls) over base and new classes:

    - union: the largest base-class probability, softmax over all classes; r(x) of OpenworldAUC, and the open-world
      table's AUROC. The other scores know no new class name:
    - msp: the largest probability, softmax over the base classes (Hendrycks and Gimpel, ICLR 2017).
    - mcm: the same of cosine similarities, temperature 1 (Ming et al., "Delving into Out-of-Distribution Detection
      with Vision-Language Representations", NeurIPS 2022, https://arxiv.org/abs/2211.13445). Cosine similarities are
      the logits over ``logit_scale``; where that is None, NaN.
    - energy: log-sum-exp of the base logits, temperature 1 (Liu et al., "Energy-based Out-of-distribution Detection",
      NeurIPS 2020, https://arxiv.org/abs/2010.03759; its negative energy).
    - max_logit: the largest base logit (Hendrycks et al., ICML 2022, https://arxiv.org/abs/1911.11132).
    """
    logits = logits.double()
    base = logits[:, :num_base]
    union = logits.softmax(dim=1)[:, :num_base].amax(dim=1)
    msp, energy, largest = base.softmax(dim=1).amax(dim=1), base.logsumexp(dim=1), base.amax(dim=1)
    mcm = (base / (math.nan if logit_scale is None else logit_scale)).softmax(dim=1).amax(dim=1)
    return torch.stack([union, msp, mcm, energy, largest], dim=1)


# Metrics of tensors, arrays or lists, as fractions in [0, 1]; the rank statistics cost O(n log n), so that ImageNet's
# 50,000 test images are no obstacle. Each raises ValueError for a side that is empty, no vector, or holds NaN.


def accuracy(predictions: Any, labels: Any) -> float:
    """Fraction of predicted class indices, shape (n,), that equal their label, shape (n,)."""
    predictions, labels = _vector(predictions, "predictions"), _vector(labels, "labels")
    if predictions.shape != labels.shape:
        raise ValueError(f"accuracy: {len(predictions)} predictions for {len(labels)} labels")
    return int((predictions == labels).sum()) / len(labels)


def harmonic_mean(base: float, new: float) -> float:
    """H = 2 * base * new / (base + new), in the unit of its arguments; 0 when both are 0, and no negative ones."""
    if not (base >= 0 and new >= 0):
        raise ValueError(f"harmonic_mean needs two non-negative numbers, got {base} and {new}")
    return 2.0 * base * new / (base + new) if base + new > 0 else 0.0


def auroc(scores_pos: Any, scores_neg: Any) -> float:
    """Area under the ROC curve: P(positive score above negative), a tie counting one half.

    The scores have shapes (n_pos,) and (n_neg,); larger means more positive.
    """
    positive, negative = _scores(scores_pos, "scores_pos"), _scores(scores_neg, "scores_neg").sort().values
    wins_twice = sum(int(torch.searchsorted(negative, positive, side=side).sum()) for side in ("left", "right"))
    return wins_twice / (2 * len(positive) * len(negative))


def fpr95(scores_pos: Any, scores_neg: Any) -> float:
    """Share of negatives that score at least as high as the threshold which 95 % of the positives reach.

    The threshold is the largest score that at least 95 % of the positives, (n_pos,), are not below; the negatives,
    (n_neg,), that tie with it count as wrong. Hendrycks and Gimpel, ICLR 2017; Liang et al. ("ODIN"), ICLR 2018.
    """
    positive, negative = (
        _scores(scores_pos, "scores_pos").sort(descending=True).values,
        _scores(scores_neg, "scores_neg"),
    )
    threshold = positive[-(-95 * len(positive) // 100) - 1]
    return int((negative >= threshold).sum()) / len(negative)


def aupr(scores_pos: Any, scores_neg: Any) -> float:
    """Area under the precision-recall curve as average precision, in steps: sum over thresholds of (R_n - R_n-1) P_n.

    The scores have shapes (n_pos,) and (n_neg,); equal ones share a threshold, as in scikit-learn.
    """
    positive, negative = (_scores(side, f"scores_{name}") for side, name in ((scores_pos, "pos"), (scores_neg, "neg")))
    thresholds, hits = positive.unique(return_counts=True)
    # positives, then negatives, that are not below each threshold
    found = hits.flip(0).cumsum(0).flip(0)
    wrong = len(negative) - torch.searchsorted(negative.sort().values, thresholds, side="left")
    return float((hits * (found / (found + wrong).double())).sum()) / len(positive)


def openworld_auc(base_scores: Any, base_correct: Any, new_scores: Any, new_correct: Any) -> float:
    """OpenworldAUC: detection and both classifications must succeed for a pair to count.

    E over pairs (x_b, x_n) of [x_b right among base] * [r(x_b) > r(x_n)] * [x_n right among new], with r(x) the
    largest base-class probability over the union of classes. The inequality is strict, as in the paper's definition: a
    tie tells nothing apart and does not count. The authors' program (huacong/OpenworldAUC) goes through scikit-learn's
    ROC AUC, where a tie counts one half, as it does in :func:`auroc`.

    Hua et al., "OpenworldAUC: Towards Unified Evaluation and Optimization for Open-world Prompt Tuning",
    ICML 2025, https://arxiv.org/abs/2505.05180

    Args:
        base_scores: r(x_b) of the base-class images, shape (n_base,); new_scores: r(x_n) of the new-class images.
        base_correct: whether each is right among the base classes, bool, shape (n_base,); new_correct likewise.
    """
    right = []
    for side, scores, correct in (("base", base_scores, base_correct), ("new", new_scores, new_correct)):
        scores, flags = _scores(scores, f"{side}_scores"), _vector(correct, f"{side}_correct").bool()
        if flags.shape != scores.shape:
            raise ValueError(f"openworld_auc: {len(scores)} {side}_scores but {len(flags)} {side}_correct")
        right.append(scores[flags])
    right_base, right_new = right
    pairs_won = int(torch.searchsorted(right_new.sort().values, right_base, side="left").sum())
    return pairs_won / (len(base_scores) * len(new_scores))


def _scores(values: Any, name: str) -> Tensor:
    scores = _vector(values, name).double()
    if scores.isnan().any():
        raise ValueError(f"{name} holds NaN: the model's outputs are broken, so no ranking exists")
    return scores


def _vector(values: Any, name: str) -> Tensor:
    vector = torch.as_tensor(values).detach().cpu()
    if vector.dim() != 1 or not len(vector):
        raise ValueError(f"{name} must be a non-empty vector, got shape {tuple(vector.shape)}")
    return vector
