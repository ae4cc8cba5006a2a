"""The config of a run: Dassl's keys and defaults, in a yacs tree whose errors name the key and what it may be.

Values that no run can use are refused before anything is read or written. `KEYS` says what each key may hold; a key
that is not in it, as those of other people's trainers, may hold what is of its default's kind. Trainers hand in the
ranges of their keys (`ranges` of `check_values`).
"""

# ruff: noqa: F401  an index: what others import from here

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from yacs.config import CfgNode as _YacsNode

from .defaults import _C as cfg_default
from .defaults import KEYS, MAX_COUNT, MAX_SEED, Choice, Several, kind_in, kind_of
from .node import (
    CfgNode,
    ConfigError,
    ConfigTypeError,
    UnknownKeyError,
    YamlFileError,
    leaves,
    read_config,
    read_yaml,
    short,
)

# Options of train.py that set a key.
OPTIONS = {
    "SEED": "--seed",
    "RESUME": "--resume",
    "OUTPUT_DIR": "--output-dir",
    "DATASET.ROOT": "--root",
    "DATASET.SOURCE_DOMAINS": "--source-domains",
    "DATASET.TARGET_DOMAINS": "--target-domains",
    "INPUT.TRANSFORMS": "--transforms",
    "MODEL.BACKBONE.NAME": "--backbone",
    "MODEL.HEAD.NAME": "--head",
    "TRAINER.NAME": "--trainer",
}


def get_cfg_default() -> CfgNode:
    """Return an independent copy of the default config, with every key that imported modules added to it."""
    return cfg_default.clone()


def clean_cfg(cfg: _YacsNode, trainer: str) -> None:
    """Drop the sections of all trainers but the named one from `cfg`, so that it shows only what the run reads."""
    for key in set(cfg.TRAINER) - {"NAME", trainer.upper()}:
        del cfg.TRAINER[key]


def check_cfg(cfg: Any, ranges: Mapping[str, tuple[Any, ...]] | None = None) -> None:
    """Check a whole config: every value by itself, as `check_values` does, then those that must go together.

    Raises:
        ConfigError, ValueError: naming the key, its value, and what it may be.
    """
    check_values(cfg, ranges)
    if cfg.RESUME and not os.path.isdir(cfg.RESUME):
        raise ConfigError(f"RESUME (--resume) is {cfg.RESUME!r}: there is no such folder; leave it out to start anew")
    check_patience(cfg)
    smallest, largest = cfg.INPUT.RRCROP_SCALE
    if smallest > largest:
        raise ConfigError(f"INPUT.RRCROP_SCALE is {cfg.INPUT.RRCROP_SCALE}: write the smaller share first")
    if cfg.INPUT.GB_K % 2 == 0:
        raise ConfigError(f"INPUT.GB_K is {cfg.INPUT.GB_K}: a kernel has a pixel in its middle, so it must be odd")
    if cfg.OPTIM.NAME == "sgd" and cfg.OPTIM.SGD_NESTEROV and (cfg.OPTIM.MOMENTUM == 0 or cfg.OPTIM.SGD_DAMPNING):
        raise ConfigError("OPTIM.SGD_NESTEROV is True: it needs OPTIM.MOMENTUM above 0 and OPTIM.SGD_DAMPNING 0")
    if cfg.DATALOADER.DEVICE_TRANSFORM:
        from dassl.data.data_manager import device_transform

        device_transform().check_device_transform(cfg)


def check_patience(cfg: Any) -> None:
    """Check, also for trainers whose config nobody else checks, that there is what TRAIN.PATIENCE stops by."""
    patience = cfg.TRAIN.get("PATIENCE", 0)
    if patience > 0 and (cfg.TEST.FINAL_MODEL != "best_val" or cfg.TEST.NO_TEST):
        raise ConfigError(
            f"TRAIN.PATIENCE is {patience}, which stops by validation results and needs TEST.FINAL_MODEL best_val and "
            f"TEST.NO_TEST False, but they are {cfg.TEST.FINAL_MODEL} and {cfg.TEST.NO_TEST}: set them, or PATIENCE 0"
        )


def check_values(cfg: Any, ranges: Mapping[str, tuple[Any, ...]] | None = None) -> None:
    """Check every value of a config, or of some of its sections, by itself; ConfigError says what it may be.

    `ranges`, by dotted key, are of keys that trainers add: (least, most) of a number, or the names to choose from.
    """
    defaults = dict(leaves(cfg_default))
    for key, value in leaves(cfg):
        kind = kind_for(key, defaults.get(key), ranges or {})
        if not kind.fits(value):
            raise ConfigError(_refusal(key, value, kind))


def kind_for(key: str, default: Any, ranges: Mapping[str, tuple[Any, ...]]) -> Any:
    """Return what a key may hold."""
    if key in KEYS:
        return KEYS[key]
    return kind_in(default, ranges[key]) if key in ranges else kind_of(default)


def _refusal(key: str, value: Any, kind: Any) -> str:
    named = f"{key} ({OPTIONS[key]})" if key in OPTIONS else key
    one = kind.of if isinstance(kind, Several) and isinstance(value, list | tuple) else kind
    if not isinstance(one, Choice):
        return f"{named} is {short(value)}: it must be {kind}"
    from dassl.utils import get_most_similar_str_to_a_from_b

    choices = one.choices()
    wrong = value if one is kind else next(name for name in value if not one.fits(name))
    near = get_most_similar_str_to_a_from_b(str(wrong), choices) if isinstance(wrong, str) else None
    if callable(one.names) and near:
        return f"{named} is {short(wrong)}: did you mean {near}? There are: {', '.join(choices)}"
    return f"{named} {short(wrong)}: choose one of {', '.join(choices)}"
