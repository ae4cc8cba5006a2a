"""Makes results.json files as a run leaves them."""

import copy
import json
import random
import struct
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

    def add_experiment(self, *, trainers=("CoOp", "BMIP"), datasets=("Digits",), seeds=(1, 2, 3), **changes):
        """Zero-shot and every trainer on every data set and seed, all numbers different and the same each time."""
        draw = random.Random(0)
        for dataset in datasets:
            self.add(
                self.open_world_metrics(60.0 + draw.random(), 65.0), trainer="ZeroshotCLIP", zero_shot=True,
                dataset=dataset, **changes,
            )  # fmt: skip
            for index, trainer in enumerate(trainers):
                for seed in seeds:
                    metrics = self.open_world_metrics(70 + 4 * index + draw.random(), 60 + 3 * index + draw.random())
                    metrics["all"] |= {
                        "confusion": [[8, 1, 0], [2, 7, seed % 2], [0, 0, 9]],
                        "per_class": {name: {} for name in ("cat", "dog", "eel")},
                    }
                    history = [
                        {
                            "epoch": epoch,
                            "loss": 2 / epoch + draw.random(),
                            "acc": 50.0 + epoch,
                            "lr": 0.002,
                            "seconds": 1.0,
                        }
                        for epoch in (1, 2, 3)
                    ]
                    gates = {
                        "per_epoch": [
                            {"epoch": epoch, "vision/1": 0.4 + 0.1 * epoch, "vision/2": 0.5, "text/1": draw.random()}
                            for epoch in (1, 2, 3)
                        ]
                    }
                    self.add(
                        metrics, trainer=trainer, dataset=dataset, seed=seed, history=history,
                        gates=gates if "BMIP" in trainer else None, **changes,
                    )  # fmt: skip

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


def twin(text: str) -> str:
    """The same run with another number."""
    record = json.loads(text)
    record["metrics"]["new"]["accuracy"] += 1
    return json.dumps(record)


def damage(path: Path, kind: str) -> None:
    """Change one byte of a compressed archive: of the first member's "content", or the "method" that it names."""
    content = bytearray(path.read_bytes())
    if kind == "content":
        content[30 + sum(struct.unpack_from("<HH", content, 26))] ^= 0xFF
    else:
        content[content.index(b"PK\x01\x02") + 10] = 99
    path.write_bytes(content)


@pytest.fixture
def runs(tmp_path):
    return RunFolder(tmp_path)
