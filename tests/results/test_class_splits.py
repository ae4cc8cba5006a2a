from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY, SimpleTrainer, TrainerBase
from dassl.evaluation import EVALUATOR_REGISTRY, Classification, build_evaluator
from results import evaluate
from results.calibration import calibration, fit_temperature, read_predictions
from results.evaluate import (
    OPEN_WORLD_METRICS,
    OpenWorld,
    auroc,
    check_class_splits,
    class_splits_of,
    evaluate_class_splits,
)

NAMES = ["ant", "bee", "cat", "dog", "elk"]
SPLIT_LABELS = {"all": range(5), "base": range(3), "new": range(3, 5)}


def all_logits():
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(5).repeat(8)
    return torch.randn(40, 5, generator=generator) + 2 * torch.eye(5)[labels], labels


class ToyTrainer(SimpleTrainer):
    """Dassl's own test loop over stored logits; knows nothing until it is trained or loads weights."""

    names = NAMES
    loads = []

    def __init__(self, cfg):
        TrainerBase.__init__(self)
        self.cfg = cfg
        self.epoch = self.start_epoch = 0
        self.val_loader = None
        self.knows = False
        self.use_split(cfg.DATASET.SUBSAMPLE_CLASSES)
        self.evaluator = build_evaluator(cfg, lab2cname=self.lab2cname)

    def use_split(self, split):
        kept = list(SPLIT_LABELS[split])
        logits, labels = all_logits()
        rows = torch.tensor([label in kept for label in labels.tolist()])
        logits, labels = logits[rows][:, kept], labels[rows] - kept[0]
        self.lab2cname = {index: self.names[label] for index, label in enumerate(kept)}
        self.num_classes = len(kept)
        batches = zip(logits.split(7), labels.split(7), strict=True)
        self.test_loader = [{"img": img, "label": label} for img, label in batches]

    def load_model(self, directory, epoch=None):
        self.loads.append((self.cfg.DATASET.SUBSAMPLE_CLASSES, directory, epoch))
        self.knows = True

    def parse_batch_test(self, batch):
        return batch["img"], batch["label"]

    def model_inference(self, input):
        return input if self.knows else torch.zeros_like(input)


class SwitchingTrainer(ToyTrainer):
    def __init__(self, cfg):
        super().__init__(cfg)
        self.switches = []

    def set_class_split(self, split):
        self.switches.append(split)
        self.use_split(split)


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg_default()
    cfg.DATASET.SUBSAMPLE_CLASSES = "base"
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    cfg.TRAINER.NAME = "ToyTrainer"
    cfg.OPTIM.MAX_EPOCH = 5
    TRAINER_REGISTRY.register(ToyTrainer, force=True)
    ToyTrainer.loads = []
    cfg.freeze()
    return cfg


def changed(cfg, **keys):
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_list([part for key, value in keys.items() for part in (key.replace("__", "."), value)])
    cfg.freeze()
    return cfg


def trained(kind, cfg):
    trainer = kind(cfg)
    trainer.knows = True
    trainer.epoch = 4
    return trainer


def expected_accuracy(split):
    kept = list(SPLIT_LABELS[split])
    logits, labels = all_logits()
    rows = [index for index, label in enumerate(labels.tolist()) if label in kept]
    right = [kept[int(logits[index, kept].argmax())] == int(labels[index]) for index in rows]
    return 100 * sum(right) / len(right)


@pytest.mark.parametrize("kind", [ToyTrainer, SwitchingTrainer])
def test_every_split_is_measured_among_its_own_classes(kind, cfg, capsys):
    metrics = evaluate_class_splits(trained(kind, cfg), cfg, ("base", "new", "all"))
    assert list(metrics) == ["base", "new", "all"]
    for split, values in metrics.items():
        assert values["accuracy"] == pytest.approx(expected_accuracy(split))
        assert values["error_rate"] == pytest.approx(100 - values["accuracy"])
        assert 0 < values["macro_f1"] <= 100
        assert values["num_images"] == 8 * len(SPLIT_LABELS[split])
        assert values["num_classes"] == len(SPLIT_LABELS[split])
        assert values["seconds"] > 0
        assert list(values["per_class"]) == [NAMES[label] for label in SPLIT_LABELS[split]]
        per_class = values["per_class"].values()
        assert sum(row["correct"] for row in per_class) == round(values["accuracy"] * values["num_images"] / 100)
        assert all(row["total"] == 8 and row["accuracy"] == 12.5 * row["correct"] for row in per_class)
        confusion = torch.tensor(values["confusion"])
        assert confusion.sum(dim=1).tolist() == [8] * len(SPLIT_LABELS[split])
        assert confusion.diagonal().tolist() == [row["correct"] for row in per_class]
    lines = capsys.readouterr().out
    assert lines.count("=> result\n") == 3
    assert "Evaluate class split *new* (2 classes)\nEvaluate on the *test* set" in lines


@pytest.mark.parametrize("kind", [ToyTrainer, SwitchingTrainer])
def test_open_world_metrics_of_a_base_trained_run_only(kind, cfg):
    metrics = evaluate_class_splits(trained(kind, cfg), cfg, ("base", "all"))
    assert "open_world" not in metrics["base"]
    assert set(metrics["all"]["open_world"]) == {*OPEN_WORLD_METRICS, "num_base_classes"}
    assert metrics["all"]["open_world"]["num_base_classes"] == 3
    assert metrics["all"]["open_world"]["accuracy_all"] == pytest.approx(metrics["all"]["accuracy"])
    assert set(metrics["all"]).isdisjoint(OPEN_WORLD_METRICS)
    cfg = changed(cfg, DATASET__SUBSAMPLE_CLASSES="all")
    assert "open_world" not in evaluate_class_splits(trained(kind, cfg), cfg, ("all",))["all"]


def test_calibration_of_every_split_without_a_validation_set(cfg):
    metrics = evaluate_class_splits(trained(SwitchingTrainer, cfg), cfg, ("base", "all"))
    for split, values in metrics.items():
        found = values["calibration"]
        bins = found["bins"]
        assert sum(bins["count"]) == values["num_images"]
        assert 100 * sum(bins["correct"]) / values["num_images"] == pytest.approx(values["accuracy"])
        kept = list(SPLIT_LABELS[split])
        logits, labels = all_logits()
        rows = [index for index, label in enumerate(labels.tolist()) if label in kept]
        nll = torch.nn.functional.cross_entropy(logits[rows][:, kept].double(), labels[rows])
        assert found["nll"] == pytest.approx(float(nll))
        assert found["no_temperature"] == "no few-shot validation set"
        assert "scaled" not in found
    assert list(metrics["all"]["ood"]) == ["union", "msp", "energy", "max_logit"]  # the toy has no logit scale
    assert metrics["all"]["ood"]["union"]["auroc"] == metrics["all"]["open_world"]["auroc"]
    assert "ood" not in metrics["base"]


@pytest.mark.parametrize("kind", [ToyTrainer, SwitchingTrainer])
def test_the_temperature_is_fitted_once_on_the_classes_trained_on(kind, cfg, capsys):
    cfg = changed(cfg, DATASET__NUM_SHOTS=4)
    trainer = trained(kind, cfg)
    trainer.val_loader = [{"img": 10 * batch["img"], "label": batch["label"]} for batch in trainer.test_loader]
    metrics = evaluate_class_splits(trainer, cfg, ("base", "new"))
    logits = torch.cat([batch["img"] for batch in trainer.val_loader])
    labels = torch.cat([batch["label"] for batch in trainer.val_loader])
    expected = fit_temperature(logits.numpy(), labels.numpy())
    for values in metrics.values():
        assert values["calibration"]["temperature"] == pytest.approx(expected)
        assert values["calibration"]["scaled"]["nll"] != values["calibration"]["nll"]
    scaled = torch.nn.functional.cross_entropy(logits.double() / 10 / expected, labels)
    assert metrics["base"]["calibration"]["scaled"]["nll"] == pytest.approx(float(scaled))
    assert capsys.readouterr().out.count("Temperature for calibration: ") == 1


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"DATASET__NUM_SHOTS": 0}, "no few-shot validation set"),
        ({"TEST__SOURCE_DATASET": "ImageNet"}, "not of the classes trained on"),
        ({"DATASET__SUBSAMPLE_CLASSES": "new"}, "not of the classes trained on"),
    ],
)
def test_no_temperature_from_labels_that_are_the_tests(cfg, settings, reason):
    cfg = changed(cfg, **{"DATASET__NUM_SHOTS": 4, **settings})
    trainer = trained(SwitchingTrainer, cfg)
    trainer.val_loader = trainer.test_loader
    metrics = evaluate_class_splits(trainer, cfg, ("new",))
    assert reason in metrics["new"]["calibration"]["no_temperature"]
    assert "scaled" not in metrics["new"]["calibration"]


def test_a_validation_set_with_outputs_that_are_no_numbers_fits_no_temperature(cfg, capsys):
    cfg = changed(cfg, DATASET__NUM_SHOTS=4)
    trainer = trained(SwitchingTrainer, cfg)
    trainer.val_loader = [batch | {"img": batch["img"] * float("nan")} for batch in trainer.test_loader]
    metrics = evaluate_class_splits(trainer, cfg, ("base",))
    said = "the model output is infinite or NaN"
    assert metrics["base"]["calibration"]["no_temperature"] == f"validation: {said}"
    assert f"No temperature is fitted: {said}" in capsys.readouterr().out


def test_every_images_numbers_are_kept_unless_they_are_not_wanted(cfg):
    metrics = evaluate_class_splits(trained(SwitchingTrainer, cfg), cfg, ("base", "all"))
    splits = read_predictions(Path(cfg.OUTPUT_DIR) / "predictions.npz")
    names = ["label", "prediction", "confidence", "nll", "brier", "margin"]
    assert {split: list(parts) for split, parts in splits.items()} == {
        "base": names,
        "all": [*names, "union", "msp", "energy", "max_logit"],
    }
    for split, parts in splits.items():
        right = parts["label"] == parts["prediction"]
        found = calibration(parts["confidence"], right, parts["nll"], parts["brier"])
        for name in ("ece", "adaptive_ece", "mce", "nll", "brier"):
            assert found[name] == pytest.approx(metrics[split]["calibration"][name], abs=1e-4)
    base = splits["all"]["label"] < 3
    assert 100 * auroc(splits["all"]["msp"][base], splits["all"]["msp"][~base]) == pytest.approx(
        metrics["all"]["ood"]["msp"]["auroc"]
    )
    assert sum(array.itemsize for array in splits["base"].values()) == 18
    (Path(cfg.OUTPUT_DIR) / "predictions.npz").unlink()
    cfg = changed(cfg, TEST__SAVE_PREDICTIONS=False)
    evaluate_class_splits(trained(SwitchingTrainer, cfg), cfg, ("base",))
    assert not (Path(cfg.OUTPUT_DIR) / "predictions.npz").exists()


def test_no_confusion_matrix_of_many_classes(cfg, monkeypatch):
    monkeypatch.setattr(evaluate, "MAX_CLASSES_CONFUSED", 4)
    metrics = evaluate_class_splits(trained(ToyTrainer, cfg), cfg, ("base", "all"))
    assert ["confusion" in metrics[split] for split in ("base", "all")] == [True, False]


def test_features_of_every_split_are_saved_when_asked_for(cfg):
    class Model:
        """Logits are the features against unit vectors."""

        def __init__(self, trainer):
            self.trainer = trainer

        def outputs(self, images):
            logits = ToyTrainer.model_inference(self.trainer, images)
            return SimpleNamespace(logits=logits, image_features=logits, text_features=torch.eye(logits.shape[1]))

    evaluate_class_splits(trained(SwitchingTrainer, cfg), cfg, ("base",))
    assert not (Path(cfg.OUTPUT_DIR) / "features.npz").exists()
    cfg = changed(cfg, TEST__SAVE_FEATURES=True)
    trainer = trained(SwitchingTrainer, cfg)
    trainer.model = Model(trainer)
    metrics = evaluate_class_splits(trainer, cfg, ("base", "new"))
    with np.load(Path(cfg.OUTPUT_DIR) / "features.npz") as file:
        for split in ("base", "new"):
            right = file[f"{split}_images"].argmax(axis=1) == file[f"{split}_labels"]
            assert 100 * right.mean() == pytest.approx(metrics[split]["accuracy"])
            assert file[f"{split}_classnames"].tolist() == [NAMES[label] for label in SPLIT_LABELS[split]]


def test_a_switching_trainer_is_put_back(cfg):
    trainer = trained(SwitchingTrainer, cfg)
    own_evaluator = trainer.evaluator
    evaluate_class_splits(trainer, cfg, ("new", "all"))
    assert trainer.switches == ["new", "all", "base"]
    assert trainer.evaluator is own_evaluator
    assert ToyTrainer.loads == []


def test_a_switching_trainer_is_put_back_after_an_error(cfg):
    trainer = trained(SwitchingTrainer, cfg)
    own_evaluator = trainer.evaluator
    trainer.model_inference = lambda input: torch.full_like(input, float("nan"))
    with pytest.raises(FloatingPointError, match="NaN"):
        evaluate_class_splits(trainer, cfg, ("new", "all"))
    assert trainer.switches == ["new", "base"]
    assert trainer.evaluator is own_evaluator


def test_a_plain_dassl_trainer_is_rebuilt_with_the_weights_just_trained(cfg):
    evaluate_class_splits(trained(ToyTrainer, cfg), cfg, ("base", "new", "all"))
    assert ToyTrainer.loads == [("new", cfg.OUTPUT_DIR, 5), ("all", cfg.OUTPUT_DIR, 5)]
    assert cfg.DATASET.SUBSAMPLE_CLASSES == "base"


def test_the_weights_of_a_run_that_stopped_early_or_had_nothing_left_to_train(cfg):
    trainer = trained(ToyTrainer, cfg)
    trainer.epoch = 2
    evaluate_class_splits(trainer, cfg, ("new",))
    trainer.epoch, trainer.start_epoch = 0, 5
    evaluate_class_splits(trainer, cfg, ("new",))
    assert [epoch for _, _, epoch in ToyTrainer.loads] == [3, 5]


def test_the_best_weights_are_loaded_where_they_are_deployed(cfg):
    cfg = changed(cfg, TEST__FINAL_MODEL="best_val")
    evaluate_class_splits(trained(ToyTrainer, cfg), cfg, ("new",))
    assert ToyTrainer.loads == [("new", cfg.OUTPUT_DIR, None)]


@pytest.mark.parametrize("epoch", [None, 2])
def test_weights_from_another_folder(cfg, epoch):
    evaluate_class_splits(trained(ToyTrainer, cfg), cfg, ("new",), model_dir="elsewhere", load_epoch=epoch)
    assert ToyTrainer.loads == [("new", "elsewhere", epoch)]


def test_classes_with_one_name_are_kept_apart_and_empty_ones_have_no_accuracy(cfg):
    trainer = trained(SwitchingTrainer, cfg)
    trainer.names = ["ant", "cat", "cat", "dog", "elk"]
    use_split = trainer.use_split
    trainer.use_split = lambda split: (use_split(split), trainer.lab2cname.update({3: "fox"}))
    per_class = evaluate_class_splits(trainer, cfg, ("base",))["base"]["per_class"]
    assert list(per_class) == ["ant", "cat (label 1)", "cat (label 2)", "fox"]
    assert per_class["fox"] == {"total": 0, "correct": 0, "accuracy": None}


def test_confusion_matrices_of_splits_do_not_overwrite_one_another(cfg):
    cfg = changed(cfg, TEST__COMPUTE_CMAT=True)
    evaluate_class_splits(trained(SwitchingTrainer, cfg), cfg, ("base", "new"))
    for split, classes in [("base", 3), ("new", 2)]:
        matrix = torch.load(f"{cfg.OUTPUT_DIR}/{split}/cmat.pt", weights_only=True)
        assert tuple(matrix.shape) == (classes, classes)


def test_scalars_carry_the_name_of_the_split(cfg):
    trainer = trained(SwitchingTrainer, cfg)
    tags = []
    trainer.write_scalar = lambda tag, value, step=None: tags.append(tag)
    evaluate_class_splits(trainer, cfg, ("base", "new"))
    assert {"test/base/accuracy", "test/new/accuracy"} <= set(tags)
    assert "test/accuracy" not in tags


def test_an_evaluator_of_ones_own_is_used_except_for_the_open_world_split(cfg, capsys):
    class Odd(Classification):
        def evaluate(self):
            return {**super().evaluate(), "odd": 7.0}

    EVALUATOR_REGISTRY.register(Odd, force=True)
    cfg = changed(cfg, TEST__EVALUATOR="Odd")
    metrics = evaluate_class_splits(trained(SwitchingTrainer, cfg), cfg, ("base", "all"))
    assert metrics["base"]["odd"] == 7.0
    assert "odd" not in metrics["all"]
    assert "*all* is measured by OpenWorld in place of Odd" in capsys.readouterr().out


def test_the_open_world_evaluator_needs_no_configuration(cfg):
    assert cfg.TEST.EVALUATOR == "Classification"
    assert issubclass(OpenWorld, Classification)


def test_a_split_without_images_is_an_error(cfg):
    trainer = trained(SwitchingTrainer, cfg)
    trainer.set_class_split = lambda split: setattr(trainer, "test_loader", [])
    with pytest.raises(ValueError, match="class split 'new' has no image"):
        evaluate_class_splits(trainer, cfg, ("new",))


def test_the_config_key_and_its_default(cfg):
    assert get_cfg_default().TEST.CLASS_SPLITS == ()
    assert class_splits_of(cfg) == ("base",)
    assert class_splits_of(changed(cfg, TEST__CLASS_SPLITS=("new", "all"))) == ("new", "all")


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (
            ("base", "novel"),
            r"unknown class split 'novel' in TEST.CLASS_SPLITS .*; choose from base, new, all",
        ),
        ("base", "must be a tuple of names out of base, new, all, got 'base'"),
        ((1, 2), "must be a tuple of names"),
        (("new", "all", "new"), "class split 'new' comes more than once"),
    ],
)
def test_wrong_class_splits_are_named(splits, message):
    with pytest.raises(ValueError, match=message):
        check_class_splits(splits)


def test_wrong_splits_are_refused_before_anything_is_evaluated(cfg):
    trainer = trained(SwitchingTrainer, cfg)
    with pytest.raises(ValueError, match="unknown class split"):
        evaluate_class_splits(trainer, cfg, ("base", "novel"))
    assert trainer.switches == []
