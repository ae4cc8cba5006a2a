"""Which model a run ends with: last epoch, best validation, early stopping; and what ends it at once."""

import os

import pytest
import torch

from dassl.engine import TRAINER_REGISTRY, TrainerBase, build_trainer
from dassl.utils import load_checkpoint
from tests.dassl.tiny_run import TinyTrainer


@TRAINER_REGISTRY.register()
class ScriptedTrainer(TinyTrainer):
    """Takes its validation results from a list, and notes which splits it evaluates."""

    script = ()

    def test(self, split=None):
        self.splits = [*getattr(self, "splits", []), split or self.cfg.TEST.SPLIT]
        if split == "val":
            self.progress.record["val_result"] = self.script[self.epoch]
            return self.script[self.epoch]
        return super().test(split)


def trained(cfg, script, patience=0, epochs=None):
    cfg.TRAINER.NAME = "ScriptedTrainer"
    cfg.TEST.FINAL_MODEL = "best_val"
    cfg.TRAIN.PATIENCE = patience
    cfg.OPTIM.MAX_EPOCH = epochs or len(script)
    trainer = build_trainer(cfg)
    trainer.script = script
    trainer.train()
    return trainer


def files(cfg):
    return sorted(os.listdir(os.path.join(cfg.OUTPUT_DIR, "tiny")))


def test_the_best_validation_epoch_is_deployed(cfg, capsys):
    trainer = trained(cfg, [10.0, 30.0, 20.0, 30.0])
    printed = capsys.readouterr().out
    assert "Deploy the model with the best val performance" in printed
    assert "to tiny (epoch=2, val_result=30.0)" in printed, "the first of equals"
    assert trainer.best_result == 30.0
    assert trainer.splits == ["val"] * 4 + ["test"]
    assert files(cfg) == ["checkpoint", "model-best.pth.tar", "model.pth.tar-4"]
    best = load_checkpoint(os.path.join(cfg.OUTPUT_DIR, "tiny", "model-best.pth.tar"))
    assert torch.equal(trainer.model.fc.weight, best["state_dict"]["fc.weight"])
    assert [record["val_result"] for record in trainer.history] == [10.0, 30.0, 20.0, 30.0]


@pytest.mark.parametrize(
    ("script", "patience", "epochs_run"),
    [
        ([5, 4, 3, 2, 1, 0], 2, 3),
        ([1, 2, 1, 3, 3, 3, 3], 3, 7),
        ([1, 2, 3, 4], 1, 4),
        ([5, 4, 3, 2], 0, 4),
        ([5, 4, 6, 1, 1, 9], 2, 5),
    ],
)
def test_patience_really_stops(cfg, capsys, script, patience, epochs_run):
    trainer = trained(cfg, [float(result) for result in script], patience)
    assert len(trainer.history) == epochs_run
    assert f"model.pth.tar-{epochs_run}" in files(cfg), "the last checkpoint is written all the same"
    printed = capsys.readouterr().out
    stopped = epochs_run < len(script)
    assert ("Early stopping after epoch" in printed) == (stopped or (patience == 3))
    assert "Finish training" in printed
    assert trainer.splits[-1] == "test"


def test_a_run_that_stopped_early_is_not_trained_on(cfg, capsys):
    trained(cfg, [5.0, 4.0, 3.0, 2.0, 1.0], patience=2)
    again = trained(cfg, [9.0, 9.0, 9.0, 9.0, 9.0], patience=2)
    assert again.history == []
    assert "model.pth.tar-4" not in files(cfg)


def test_patience_survives_a_resume(cfg):
    class Stop(Exception):
        pass

    @TRAINER_REGISTRY.register(force=True)
    class StopsOnce(ScriptedTrainer):
        def before_epoch(self):
            if self.epoch == 2 and self.stop:
                raise Stop

    cfg.TRAINER.NAME = "StopsOnce"
    cfg.TEST.FINAL_MODEL = "best_val"
    cfg.TRAIN.PATIENCE = 2
    cfg.OPTIM.MAX_EPOCH = 6
    for stop in (True, False):
        trainer = build_trainer(cfg)
        trainer.stop, trainer.script = stop, [5.0, 4.0, 3.0, 2.0, 1.0, 0.0]
        if stop:
            with pytest.raises(Stop):
                trainer.train()
        else:
            trainer.train()
    assert [record["epoch"] for record in trainer.history] == [1, 2, 3]


def test_validation_never_uses_test_images(cfg):
    cfg.DATASET.VAL_PERCENT = 0.0
    trainer = build_trainer(cfg)
    assert trainer.val_loader is None
    with pytest.raises(ValueError, match="Tints has no images in the split val.*never uses test images"):
        trainer.test(split="val")
    for cfg.TEST.FINAL_MODEL, cfg.TEST.SPLIT in (("best_val", "test"), ("last_step", "val")):
        with pytest.raises(ValueError, match="no images in the split val"):
            build_trainer(cfg).train()
    assert not os.path.exists(cfg.OUTPUT_DIR)


@pytest.mark.parametrize(
    ("final_model", "no_test", "message"),
    [
        ("last_step", False, "needs TEST.FINAL_MODEL best_val"),
        ("best_val", True, "TEST.NO_TEST False"),
        ("best", False, "TEST.FINAL_MODEL is 'best': did you mean best_val"),
    ],
)
def test_settings_that_cannot_work(cfg, final_model, no_test, message):
    cfg.TRAIN.PATIENCE = 2
    cfg.TEST.FINAL_MODEL, cfg.TEST.NO_TEST = final_model, no_test
    with pytest.raises(ValueError, match=message):
        build_trainer(cfg).train()


def test_checkpoint_frequency(cfg):
    cfg.OPTIM.MAX_EPOCH = 5
    cfg.TRAIN.CHECKPOINT_FREQ = 2
    build_trainer(cfg).train()
    assert files(cfg) == ["checkpoint", *(f"model.pth.tar-{epoch}" for epoch in (2, 4, 5))]


def test_no_test(cfg, capsys):
    cfg.TEST.NO_TEST = True
    build_trainer(cfg).train()
    printed = capsys.readouterr().out
    assert "Evaluate on" not in printed
    assert "Deploy" not in printed


def test_evaluation_of_a_saved_model(cfg, capsys):
    trainer = build_trainer(cfg)
    trainer.train()
    other = build_trainer(cfg)
    other.load_model(cfg.OUTPUT_DIR, epoch=3)
    assert other.test() == trainer.last_results["accuracy"]
    cfg.TEST.SPLIT = "val"
    other.test()
    assert "Evaluate on the *val* set" in capsys.readouterr().out
    with pytest.raises(ValueError, match="must be val or test"):
        other.test(split="train")
    with pytest.raises(FileNotFoundError, match=r"model-best\.pth\.tar"):
        other.load_model(cfg.OUTPUT_DIR)
    other.load_model("")
    assert "load_model() is skipped" in capsys.readouterr().out


@pytest.mark.parametrize("way", ["loss", "summary"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_epoch_and_batch(cfg, way, value):
    @TRAINER_REGISTRY.register(force=True)
    class Diverging(TinyTrainer):
        def forward_backward(self, batch):
            summary = super().forward_backward(batch)
            if (self.epoch, self.batch_idx) == (1, 2):
                if way == "loss":
                    self.model_backward_and_update(self.model.fc.weight.sum() * value)
                summary["loss"] = value
            return summary

    cfg.TRAINER.NAME = "Diverging"
    with pytest.raises(FloatingPointError, match="epoch 2 of 3, batch 3 of 4"):
        build_trainer(cfg).train()


def test_extra_entries_of_checkpoints(cfg):
    @TRAINER_REGISTRY.register(force=True)
    class Telling(TinyTrainer):
        def checkpoint_extra(self, name):
            return {"classnames": self.dm.dataset.classnames, "model": name}

    cfg.TRAINER.NAME = "Telling"
    trainer = build_trainer(cfg)
    trainer.train()
    checkpoint = load_checkpoint(os.path.join(cfg.OUTPUT_DIR, "tiny", "model.pth.tar-3"))
    assert checkpoint["classnames"] == ["tint 0", "tint 1", "tint 2"]
    assert checkpoint["model"] == "tiny"
    assert {"state_dict", "epoch", "optimizer", "scheduler", "val_result"} <= checkpoint.keys()
    trainer.checkpoint_extra = lambda name: {"epoch": 3}
    with pytest.raises(ValueError, match=r"own entries \['epoch'\]"):
        trainer.save_model(0, cfg.OUTPUT_DIR)


def test_registering_models():
    trainer = TrainerBase()
    trainer.register_model("a", torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="already registered"):
        trainer.register_model("a")
    with pytest.raises(ValueError, match="no model named b"):
        trainer.get_model_names("b")
    assert trainer.get_model_names("a") == trainer.get_model_names() == ["a"]
    trainer.set_model_mode("eval")
    assert not trainer._models["a"].training
    with pytest.raises(KeyError, match="evaluate"):
        trainer.set_model_mode("evaluate")

    class Hasty(TrainerBase):
        def __init__(self):
            self.register_model("a")

    with pytest.raises(AttributeError, match="super"):
        Hasty()


def test_a_second_training_of_one_trainer_starts_anew(cfg):
    trainer = build_trainer(cfg)
    trainer.train()
    trainer.train()
    assert [record["epoch"] for record in trainer.history] == [1, 2, 3], "the finished run is resumed, not repeated"


def test_tensorboard_gets_losses_rate_and_results(cfg):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cfg.TEST.FINAL_MODEL = "best_val"
    build_trainer(cfg).train()
    events = EventAccumulator(os.path.join(cfg.OUTPUT_DIR, "tensorboard")).Reload()
    tags = set(events.Tags()["scalars"])
    assert {"train/loss", "train/acc", "train/lr", "val/accuracy", "test/macro_f1"} <= tags
    assert [event.step for event in events.Scalars("train/lr")] == list(range(12))


def test_fetching_the_next_batch_during_a_step_changes_nothing(cfg):
    """As trainers do whose steps run on a device; the last step's numbers are written meanwhile."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    @TRAINER_REGISTRY.register(force=True)
    class Prefetching(TinyTrainer):
        def forward_backward(self, batch):
            if cfg.TRAINER.NAME == "Prefetching":
                self.prefetch()
            return super().forward_backward(batch)

    curves = []
    for name, output in (("TinyTrainer", cfg.OUTPUT_DIR + "1"), ("Prefetching", cfg.OUTPUT_DIR + "2")):
        cfg.TRAINER.NAME, cfg.OUTPUT_DIR = name, output
        torch.manual_seed(1)
        trainer = build_trainer(cfg)
        trainer.train()
        assert trainer.prefetch is None
        events = EventAccumulator(os.path.join(output, "tensorboard")).Reload()
        curves.append([(event.step, event.value) for event in events.Scalars("train/loss")])
    assert curves[0] == curves[1]
    assert [step for step, _ in curves[0]] == list(range(12))
