import csv
import sys

import pytest

from common.files import write_csv
from dassl.config import get_cfg_default
from extras.trackers import check_trackers, track_run

HISTORY = [{"epoch": 1, "loss": 1.5, "lr": 1e-05}, {"epoch": 2, "loss": 1.25, "lr": 0.002, "val_result": 75.0}]
RECORD = {
    "protocol": "open_world",
    "trainer": "BMIP",
    "setting": "tiny",
    "dataset": "Digits",
    "shots": 16,
    "seed": 1,
    "config": {"SEED": 1},
    "history": HISTORY,
    "gates": {"per_epoch": [{"epoch": 1, "vision/1": 0.4}, {"epoch": 2, "vision/1": 0.6}]},
    "metrics": {"all": {"accuracy": 50.0, "per_class": {"cat": {"total": 3}}, "open_world": {"auroc": 70.0}}},
}


def config(tmp_path, *trackers):
    cfg = get_cfg_default()
    cfg.OUTPUT_DIR, cfg.TRAIN.TRACKERS = str(tmp_path), trackers
    return cfg


def test_the_history_is_a_line_per_epoch_with_a_column_per_quantity(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text("old")
    write_csv(path, HISTORY)
    assert path.read_bytes() == b"epoch,loss,lr,val_result\n1,1.5,1e-05,\n2,1.25,0.002,75.0\n"
    rows = list(csv.DictReader(path.open()))
    assert [float(row["loss"]) for row in rows] == [1.5, 1.25]
    assert [file.name for file in tmp_path.iterdir()] == ["history.csv"]


@pytest.mark.parametrize(
    ("trackers", "message"),
    [
        (("mlflow",), "unknown tracker 'mlflow' in TRAIN.TRACKERS; choose from tensorboard, wandb"),
        ("wandb", "must be a tuple of names out of tensorboard, wandb, got 'wandb'"),
    ],
)
def test_wrong_trackers_are_named(tmp_path, trackers, message):
    cfg = config(tmp_path)
    cfg.TRAIN.TRACKERS = trackers
    with pytest.raises(ValueError, match=message):
        check_trackers(cfg)


def test_tensorboard_is_the_default():
    assert check_trackers(get_cfg_default()) == ("tensorboard",)


def test_wandb_without_its_package_is_said_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="not installed: pip install wandb"):
        check_trackers(config(tmp_path, "wandb"))


def test_wandb_keeps_an_offline_run_in_the_output_folder(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "HOME": str(tmp_path / "home")}.items():
        monkeypatch.setenv(name, value)
    track_run(config(tmp_path, "wandb"), RECORD)
    wandb.teardown()  # as when the process ends: the file is complete
    (run_file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    content = run_file.read_bytes()
    for text in (b"gate/vision/1", b"val_result", b"open_world/BMIP/tiny/Digits"):
        assert text in content


def test_wandb_gets_every_epoch_and_the_results(tmp_path, monkeypatch):
    """The calls, with a stand-in, so that they are held to something where wandb is not installed."""
    calls = []

    class Run:
        summary = {}

        def log(self, entry, step):
            calls.append((step, entry))

        def finish(self):
            calls.append("finished")

    class Wandb:
        @staticmethod
        def init(**options):
            calls.append(options)
            return Run()

    monkeypatch.setitem(sys.modules, "wandb", Wandb)
    track_run(config(tmp_path, "wandb"), RECORD)
    options, *steps, last = calls
    assert options["name"] == "open_world/BMIP/tiny/Digits/shots16/seed1"
    assert options["config"] == {"SEED": 1}
    assert steps[1] == (2, {**HISTORY[1], "gate/vision/1": 0.6})
    assert last == "finished"
    assert Run.summary == {"all/accuracy": 50.0, "all/open_world/auroc": 70.0}
