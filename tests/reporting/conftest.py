"""Makes results.json files as a run leaves them."""

import copy
import json
from pathlib import Path

import pytest

RECORD = {
    "schema_version": 1,
    "status": "finished",
    "protocol": "open_world",
    "trainer": "CoOp",
    "setting": "tiny_ep10",
    "dataset": "digits",
    "backbone": "bundled:tiny",
    "seed": 1,
    "init_seed": 1,
    "shots": 16,
    "train_classes": "base",
    "selection_rule": "last_step",
    "config": {"SEED": 1},
    "environment": {"git_revision": None, "device": "cpu"},
    "data": {"split_file": "split.json", "split_sha256": "aa"},
    "model": {"trainable_parameters": 512, "trainable_tensors": {"ctx": [4, 128]}},
    "metrics": {},
    "history": [],
    "gates": None,
    "timing": {"train": 1.0},
    "memory": {"peak_rss_mib": 100.0, "peak_cuda_mib": None},
    "finished_at": "2026-01-01T00:00:00+00:00",
}


class RunFolder:
    """Writes runs under one folder; each `add` returns the path of its results.json."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @staticmethod
    def open_world_metrics(base, new, everything=50.0, open_h=45.0, auroc=70.0, openworld_auc=40.0):
        """The metrics of a base-trained run tested on base, new and all."""
        open_world = {
            "accuracy_all": everything,
            "open_base": open_h,
            "open_new": open_h,
            "open_H": open_h,
            "auroc": auroc,
            "openworld_auc": openworld_auc,
        }
        return {
            "base": {"accuracy": base},
            "new": {"accuracy": new},
            "all": {"accuracy": everything, "open_world": open_world},
        }

    def add(self, metrics=None, *, zero_shot=False, drop=(), **changes) -> Path:
        record = copy.deepcopy(RECORD) | changes
        record["metrics"] = metrics if metrics is not None else self.open_world_metrics(70.0, 60.0)
        if zero_shot:
            record["model"] = {"trainable_parameters": 0, "trainable_tensors": {}}
        for key in drop:
            del record[key]
        parts = (record.get(key, "none") for key in ("protocol", "trainer", "setting", "dataset", "shots", "seed"))
        path = self.root.joinpath(*map(str, parts), "results.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record))
        return path


@pytest.fixture
def runs(tmp_path):
    return RunFolder(tmp_path)
