"""Values that no run can use are refused before anything is read or written, each by its key with what to set."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from typing import Any

from .node import ConfigError

# Smallest value of each key. Below 1, NUM_SHOTS means all images and CHECKPOINT_FREQ none; -1 is how both are written.
LEAST = {
    "DATASET.NUM_SHOTS": -1,
    "DATALOADER.NUM_WORKERS": 0,
    "DATALOADER.K_TRANSFORMS": 1,
    "DATALOADER.TRAIN_X.BATCH_SIZE": 1,
    "DATALOADER.TEST.BATCH_SIZE": 1,
    "OPTIM.MAX_EPOCH": 1,
    "TRAIN.PRINT_FREQ": 1,
    "TRAIN.CHECKPOINT_FREQ": -1,
}
MOST_SEED = 2**32 - 1  # of NumPy
COLOURS = 3


def check_cfg(cfg: Any) -> None:
    """Check the numbers and names of a configuration.

    Args:
        cfg: the whole configuration, as `get_cfg_default` makes it.

    Raises:
        ConfigError, ValueError: naming the key, its value, and what it may be.
    """
    for key, least in LEAST.items():
        value = value_of(cfg, key)
        if value < least:
            raise ConfigError(f"{key} is {value}: it must be at least {least}")
    if cfg.SEED > MOST_SEED:
        raise ConfigError(f"SEED (--seed) is {cfg.SEED}: it must be at most {MOST_SEED}; negative draws one")
    if cfg.RESUME and not os.path.isdir(cfg.RESUME):
        raise ConfigError(f"RESUME (--resume) is {cfg.RESUME!r}: there is no such folder; leave it out to start anew")
    if not (math.isfinite(cfg.OPTIM.LR) and cfg.OPTIM.LR > 0):
        raise ConfigError(f"OPTIM.LR is {cfg.OPTIM.LR}: a learning rate is above 0")
    if cfg.TRAIN.PATIENCE > 0 and (cfg.TEST.FINAL_MODEL != "best_val" or cfg.TEST.NO_TEST):
        raise ConfigError(
            f"TRAIN.PATIENCE is {cfg.TRAIN.PATIENCE}, which stops by validation results: set TEST.FINAL_MODEL best_val "
            "and TEST.NO_TEST False, or TRAIN.PATIENCE 0"
        )
    check_input(cfg.INPUT)
    for key, choices in names().items():
        check_name(key, value_of(cfg, key), choices)
    if cfg.DATALOADER.DEVICE_TRANSFORM:
        from dassl.data.device_transform import check_device_transform

        check_device_transform(cfg)


def check_input(settings: Any) -> None:
    """Check the image size, and the mean and deviation of its pixels."""
    size = settings.SIZE
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise ConfigError(f"INPUT.SIZE is {size}: it must be (height, width) in pixels")
    for key, values in (("PIXEL_MEAN", settings.PIXEL_MEAN), ("PIXEL_STD", settings.PIXEL_STD)):
        if len(values) != COLOURS or not all(isinstance(value, int | float) for value in values):
            raise ConfigError(f"INPUT.{key} is {values}: it must be three numbers, of red, green and blue")
    if not all(value > 0 for value in settings.PIXEL_STD):
        raise ConfigError(f"INPUT.PIXEL_STD is {settings.PIXEL_STD}: pixels are divided by it, so it must be above 0")


def names() -> dict[str, list[str]]:
    """What each key that holds a name, or names, may hold."""
    from dassl.data.datasets import DATASET_REGISTRY
    from dassl.data.transforms import AVAI_CHOICES, INTERPOLATION_MODES
    from dassl.evaluation import EVALUATOR_REGISTRY
    from dassl.optim import AVAI_OPTIMS, AVAI_SCHEDS

    return {
        "DATASET.NAME": DATASET_REGISTRY.registered_names(),
        "INPUT.TRANSFORMS": AVAI_CHOICES,
        "INPUT.INTERPOLATION": list(INTERPOLATION_MODES),
        "OPTIM.NAME": AVAI_OPTIMS,
        "OPTIM.LR_SCHEDULER": AVAI_SCHEDS,
        "OPTIM.WARMUP_TYPE": ["linear", "constant"],
        "TEST.EVALUATOR": EVALUATOR_REGISTRY.registered_names(),
        "TEST.FINAL_MODEL": ["last_step", "best_val"],
    }


def check_name(key: str, value: str | Iterable[str], choices: list[str]) -> None:
    """Refuse a name that is not one of the choices, naming the one most like it."""
    from dassl.utils import get_most_similar_str_to_a_from_b

    for name in [value] if isinstance(value, str) or value is None else value:
        if name not in choices:
            near = get_most_similar_str_to_a_from_b(str(name), choices)
            raise ConfigError(f"{key} is {name!r}: did you mean {near}? There are: {', '.join(choices)}")


def value_of(cfg: Any, key: str) -> Any:
    """The value under a dotted key."""
    for part in key.split("."):
        cfg = cfg[part]
    return cfg
