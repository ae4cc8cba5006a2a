"""The training loop on generated images."""

import os

import pytest

from dassl.engine import build_trainer


def test_a_run_prints_dassls_lines_and_leaves_dassls_files(cfg, capsys):
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 1
    trainer = build_trainer(cfg)
    trainer.train()
    printed = capsys.readouterr().out
    for line in (
        "Loading trainer: TinyTrainer",
        "Loading dataset: Tints",
        "Loading evaluator: Classification",
        "No checkpoint found, train from scratch",
        "Initialize tensorboard (log_dir=",
        "epoch [1/3] batch [10/18] time ",
        "Checkpoint saved to ",
        "Finish training",
        "Deploy the last-epoch model",
        "Evaluate on the *test* set",
        "=> result\n* total: 12\n* correct: ",
        "Elapsed: ",
    ):
        assert line in printed
    assert "batch [9/18]" not in printed
    assert sorted(os.listdir(cfg.OUTPUT_DIR)) == ["tensorboard", "tiny"]
    assert sorted(os.listdir(os.path.join(cfg.OUTPUT_DIR, "tiny"))) == ["checkpoint", "model.pth.tar-3"]
    with open(os.path.join(cfg.OUTPUT_DIR, "tiny", "checkpoint")) as file:
        assert file.read() == "model.pth.tar-3\n"


def test_history_tells_every_epoch(cfg):
    trainer = build_trainer(cfg)
    trainer.train()
    assert [record["epoch"] for record in trainer.history] == [1, 2, 3]
    assert [record["lr"] for record in trainer.history] == pytest.approx([1e-5, 0.05, 0.0375])
    assert all({"loss", "acc", "seconds", "data_seconds", "data_share"} <= record.keys() for record in trainer.history)
    assert trainer.timing.keys() == {"preparation", "train", "data", "test"}
    assert trainer.last_results.keys() == {"accuracy", "error_rate", "macro_f1"}
