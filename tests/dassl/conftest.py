"""Fixtures of the engine's tests: generated images and a configuration for a run on them."""

import pytest

from dassl.config import CfgNode, get_cfg_default
from dassl.utils import set_random_seed
from tests.dassl.tiny_run import make_images


@pytest.fixture(scope="session")
def image_root(tmp_path_factory):
    """Directory of the generated images."""
    root = tmp_path_factory.mktemp("tints")
    make_images(root)
    return root


@pytest.fixture
def cfg(image_root, tmp_path) -> CfgNode:
    """Configuration of a run of `TinyTrainer` on `Tints`, a second long."""
    cfg = get_cfg_default()
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    cfg.SEED = 1
    cfg.USE_CUDA = False
    cfg.DATASET.NAME = "Tints"
    cfg.DATASET.ROOT = str(image_root)
    cfg.INPUT.SIZE = (8, 8)
    cfg.INPUT.TRANSFORMS = ("random_resized_crop", "random_flip", "normalize")
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 4
    cfg.DATALOADER.TEST.BATCH_SIZE = 5
    cfg.OPTIM.NAME = "sgd"
    cfg.OPTIM.LR = 0.05
    cfg.OPTIM.MAX_EPOCH = 3
    cfg.OPTIM.LR_SCHEDULER = "cosine"
    cfg.OPTIM.WARMUP_EPOCH = 1
    cfg.OPTIM.WARMUP_TYPE = "constant"
    cfg.TRAINER.NAME = "TinyTrainer"
    set_random_seed(1)
    return cfg
