"""Fixtures: a tiny data set on disk, and configurations that point to a data root."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dassl.config import get_cfg_default
from tests.datasets.toy_dataset import ToyFolder

ASSETS = Path(__file__).resolve().parents[2] / "assets"


@pytest.fixture
def toy(tmp_path: Path) -> ToyFolder:
    return ToyFolder(tmp_path / "data")


@pytest.fixture
def make_cfg() -> Callable[..., Any]:
    def make(
        root: Path | str = ASSETS, shots: int = -1, seed: int = 1, classes: str = "all", name: str = "Digits"
    ) -> Any:
        cfg = get_cfg_default()
        cfg.DATASET.ROOT, cfg.DATASET.NAME, cfg.DATASET.NUM_SHOTS = str(root), name, shots
        cfg.DATASET.SUBSAMPLE_CLASSES, cfg.SEED = classes, seed
        return cfg

    return make
