"""Values that no run can use are refused before anything is read or written, each by its key with what to set.

`KEYS` is the table: what each key may hold. A key that is not in it, as those of other people's trainers, may hold what
is of its default's kind. Trainers hand in the ranges of their own keys (`ranges` of `check_values`).
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

from .defaults import _C as cfg_default
from .kinds import Choice, Flag, Number, Several, Text, kind_in, kind_of
from .node import ConfigError, leaves, short


def _int(least: int | None = None, most: int | None = None) -> Number:
    return Number(least, most, whole=True)


def _listed(module: str, name: str) -> Choice:
    """One of the names in a list, the keys of a dictionary or a registry of the engine, read when they are needed."""

    def names() -> Sequence[str]:
        listed = getattr(importlib.import_module(module), name)
        return listed.registered_names() if hasattr(listed, "registered_names") else list(listed)

    return Choice(names)


MOST_SEED = 2**32 - 1  # of NumPy
MOST_SIDE = 4096  # of an image, in pixels: 16 million of them, 200 MB as a float tensor
MANY = 10**9
NAMES = Several(Text(empty=False))
SHARE = Number(0, 1)
RATE = Number(0, 1000)  # of learning, and of what is added to it
EPOCHS = _int(most=10**6)
SAMPLER = _listed("dassl.data.samplers", "AVAI_SAMPLERS")
SIZE = Several(_int(1, MOST_SIDE), 2, words="(height, width) in pixels")

# Below 1, NUM_SHOTS means all images and CHECKPOINT_FREQ none; -1 is how both are written.
KEYS: dict[str, Any] = {
    "VERSION": _int(),
    "OUTPUT_DIR": Text(empty=False),
    "RESUME": Text(),
    "SEED": _int(most=MOST_SEED),  # negative draws one
    "USE_CUDA": Flag(),
    "VERBOSE": Flag(),
    "INPUT.SIZE": SIZE,
    "INPUT.INTERPOLATION": _listed("dassl.data.transforms", "INTERPOLATION_MODES"),
    "INPUT.TRANSFORMS": Several(_listed("dassl.data.transforms", "AVAI_CHOICES")),
    "INPUT.NO_TRANSFORM": Flag(),
    "INPUT.JPEG_DRAFT": Number(0, 100),
    "INPUT.PIXEL_MEAN": Several(Number(-1000, 1000), 3, words="three numbers, of red, green and blue"),
    "INPUT.PIXEL_STD": Several(Number(above=0, most=1000), 3, words="three numbers, of red, green and blue"),
    "INPUT.CROP_PADDING": _int(0, MOST_SIDE),
    "INPUT.RRCROP_SCALE": Several(Number(above=0, most=1), 2, words="(least, most) share of the image's area"),
    "INPUT.CUTOUT_N": _int(0, 1000),
    "INPUT.CUTOUT_LEN": _int(0, MOST_SIDE),
    "INPUT.GN_MEAN": Number(-1000, 1000),
    "INPUT.GN_STD": Number(0, 1000),
    "INPUT.RANDAUGMENT_N": _int(0, 100),
    "INPUT.RANDAUGMENT_M": _int(0, 30),
    "INPUT.COLORJITTER_B": Number(0, 100),
    "INPUT.COLORJITTER_C": Number(0, 100),
    "INPUT.COLORJITTER_S": Number(0, 100),
    "INPUT.COLORJITTER_H": Number(0, 0.5),
    "INPUT.RGS_P": SHARE,
    "INPUT.GB_P": SHARE,
    "INPUT.GB_K": _int(1, 999),
    "DATASET.ROOT": Text(),
    "DATASET.NAME": _listed("dassl.data.datasets", "DATASET_REGISTRY"),
    "DATASET.SOURCE_DOMAINS": NAMES,
    "DATASET.TARGET_DOMAINS": NAMES,
    "DATASET.NUM_LABELED": _int(-1, MANY),
    "DATASET.NUM_SHOTS": _int(-1, MANY),
    "DATASET.VAL_PERCENT": SHARE,
    "DATASET.STL10_FOLD": _int(most=9),
    "DATASET.CIFAR_C_TYPE": Text(),
    "DATASET.CIFAR_C_LEVEL": _int(1, 5),
    "DATASET.ALL_AS_UNLABELED": Flag(),
    "DATALOADER.NUM_WORKERS": _int(0, 1024),
    "DATALOADER.CACHE_MB": _int(0, 2**24),
    "DATALOADER.DEVICE_TRANSFORM": Flag(),
    "DATALOADER.K_TRANSFORMS": _int(1, 100),
    "DATALOADER.RETURN_IMG0": Flag(),
    "DATALOADER.TRAIN_X.SAMPLER": SAMPLER,
    "DATALOADER.TRAIN_X.BATCH_SIZE": _int(1, 2**20),
    "DATALOADER.TRAIN_X.N_DOMAIN": _int(most=MANY),
    "DATALOADER.TRAIN_X.N_INS": _int(1, 2**20),
    "DATALOADER.TRAIN_U.SAME_AS_X": Flag(),
    "DATALOADER.TRAIN_U.SAMPLER": SAMPLER,
    "DATALOADER.TRAIN_U.BATCH_SIZE": _int(1, 2**20),
    "DATALOADER.TRAIN_U.N_DOMAIN": _int(most=MANY),
    "DATALOADER.TRAIN_U.N_INS": _int(1, 2**20),
    "DATALOADER.TEST.SAMPLER": SAMPLER,
    "DATALOADER.TEST.BATCH_SIZE": _int(1, 2**20),
    "MODEL.INIT_WEIGHTS": Text(),
    "MODEL.BACKBONE.NAME": Text(),
    "MODEL.BACKBONE.PRETRAINED": Flag(),
    "MODEL.HEAD.NAME": Text(),
    "MODEL.HEAD.HIDDEN_LAYERS": Several(_int(1, 2**20)),
    "MODEL.HEAD.ACTIVATION": _listed("dassl.modeling.head.mlp", "ACTIVATIONS"),
    "MODEL.HEAD.BN": Flag(),
    "MODEL.HEAD.DROPOUT": SHARE,
    "OPTIM.NAME": _listed("dassl.optim", "AVAI_OPTIMS"),
    "OPTIM.LR": Number(above=0, most=1000),
    "OPTIM.WEIGHT_DECAY": RATE,
    "OPTIM.MOMENTUM": SHARE,
    "OPTIM.SGD_DAMPNING": _int(0, 1),
    "OPTIM.SGD_NESTEROV": Flag(),
    "OPTIM.RMSPROP_ALPHA": SHARE,
    "OPTIM.ADAM_BETA1": Number(0, below=1),
    "OPTIM.ADAM_BETA2": Number(0, below=1),
    "OPTIM.FUSED": Flag(),
    "OPTIM.STAGED_LR": Flag(),
    "OPTIM.NEW_LAYERS": NAMES,
    "OPTIM.BASE_LR_MULT": RATE,
    "OPTIM.LR_SCHEDULER": _listed("dassl.optim", "AVAI_SCHEDS"),
    "OPTIM.STEPSIZE": Several(EPOCHS, least=1, words="a list of one or more epochs"),
    "OPTIM.GAMMA": RATE,
    "OPTIM.MAX_EPOCH": _int(1, 10**6),
    "OPTIM.WARMUP_EPOCH": EPOCHS,
    "OPTIM.WARMUP_TYPE": Choice(("linear", "constant")),
    "OPTIM.WARMUP_CONS_LR": RATE,
    "OPTIM.WARMUP_MIN_LR": RATE,
    "OPTIM.WARMUP_RECOUNT": Flag(),
    "TRAIN.CHECKPOINT_FREQ": _int(-1, 10**6),
    "TRAIN.PRINT_FREQ": _int(1, MANY),
    "TRAIN.COUNT_ITER": Choice(("train_x", "train_u", "smaller_one")),
    "TRAIN.PATIENCE": _int(0, 10**6),
    "TEST.EVALUATOR": _listed("dassl.evaluation", "EVALUATOR_REGISTRY"),
    "TEST.PER_CLASS_RESULT": Flag(),
    "TEST.COMPUTE_CMAT": Flag(),
    "TEST.NO_TEST": Flag(),
    "TEST.SPLIT": Choice(("test", "val")),
    "TEST.FINAL_MODEL": Choice(("last_step", "best_val")),
    "TRAINER.NAME": Text(),
    **{f"TRAINER.{name}.STRONG_TRANSFORMS": NAMES for name in ("CDAC", "DAEL", "DAELDG", "FIXMATCH")},
    # Of this project's data sets, evaluation and trainers; elsewhere nobody has these keys.
    "DATASET.SUBSAMPLE_CLASSES": Choice(("all", "base", "new")),
    "FEATURES.MAX_GIB": Number(0, 2**20),
    "MODEL.INIT_SEED": _int(most=MOST_SEED),
    "TEST.CLASS_SPLITS": NAMES,
    "TRAIN.TRACKERS": NAMES,
}
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


def check_cfg(cfg: Any, ranges: Mapping[str, tuple[Any, ...]] | None = None) -> None:
    """Check a configuration: every value on its own, then those that must go together.

    Args:
        cfg: the whole configuration, as `get_cfg_default` makes it.
        ranges: see `check_values`.

    Raises:
        ConfigError, ValueError: naming the key, its value, and what it may be.
    """
    check_values(cfg, ranges)
    if cfg.RESUME and not os.path.isdir(cfg.RESUME):
        raise ConfigError(f"RESUME (--resume) is {cfg.RESUME!r}: there is no such folder; leave it out to start anew")
    if cfg.TRAIN.PATIENCE > 0 and (cfg.TEST.FINAL_MODEL != "best_val" or cfg.TEST.NO_TEST):
        raise ConfigError(
            f"TRAIN.PATIENCE is {cfg.TRAIN.PATIENCE}, which stops by validation results: set TEST.FINAL_MODEL best_val "
            "and TEST.NO_TEST False, or TRAIN.PATIENCE 0"
        )
    smallest, largest = cfg.INPUT.RRCROP_SCALE
    if smallest > largest:
        raise ConfigError(f"INPUT.RRCROP_SCALE is {cfg.INPUT.RRCROP_SCALE}: write the smaller share first")
    if cfg.INPUT.GB_K % 2 == 0:
        raise ConfigError(f"INPUT.GB_K is {cfg.INPUT.GB_K}: a kernel has a pixel in its middle, so it must be odd")
    if cfg.OPTIM.NAME == "sgd" and cfg.OPTIM.SGD_NESTEROV and (cfg.OPTIM.MOMENTUM == 0 or cfg.OPTIM.SGD_DAMPNING):
        raise ConfigError("OPTIM.SGD_NESTEROV is True: it needs OPTIM.MOMENTUM above 0 and OPTIM.SGD_DAMPNING 0")
    if cfg.DATALOADER.DEVICE_TRANSFORM:
        from dassl.data.device_transform import check_device_transform

        check_device_transform(cfg)


def check_values(cfg: Any, ranges: Mapping[str, tuple[Any, ...]] | None = None) -> None:
    """Check every value of a configuration, or of some of its sections, on its own.

    Args:
        cfg: the configuration.
        ranges: of keys that trainers add: (least, most) of a number, or the names to choose from, by dotted key.

    Raises:
        ConfigError: naming the key, its value, and what it may be.
    """
    defaults = dict(leaves(cfg_default))
    for key, value in leaves(cfg):
        kind = kind_for(key, defaults.get(key), ranges or {})
        if not kind.fits(value):
            raise ConfigError(_refusal(key, value, kind))


def kind_for(key: str, default: Any, ranges: Mapping[str, tuple[Any, ...]]) -> Any:
    """What a key may hold."""
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
