"""Every option of the engine: its default and what it may hold.

Keys and defaults are Dassl's, and six more: `DATALOADER.CACHE_MB`, `DATALOADER.DEVICE_TRANSFORM`, `INPUT.JPEG_DRAFT`,
`INPUT.EXIF_ORIENTATION`, `OPTIM.FUSED` and `TRAIN.PATIENCE`. Some of Dassl's have nothing here that reads them; they
are kept so that config files load.

Trainer and data set files add their options on import (`cfg_default.TRAINER.MINE = CfgNode({...})`), so this tree is
never frozen; runs work on the clone that `get_cfg_default()` returns.
"""

from __future__ import annotations

import importlib
import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .node import CfgNode

MAX_CHARACTERS = 4096  # of a text; the longest path that a system takes
MIN_INT, MAX_INT = -(2**63), 2**63 - 1  # what PyTorch and NumPy count with
MAX_SEED = 2**32 - 1  # of NumPy
MAX_SIDE = 4096  # of an image, in pixels: 16 million of them, 200 MB as a float tensor
MAX_COUNT = 10**9  # of images, batches ...
NOT_TEXT = ("Cc", "Cs")  # Unicode's control characters, and halves of characters, which no file can hold


# Kinds of values: `fits` says whether a value is of the kind, `str()` says in words what the kind wants.
@dataclass(frozen=True)
class Kind:
    """Values that a test tells from others."""

    words: str
    fits: Callable[[Any], bool]

    def __str__(self) -> str:
        return self.words


@dataclass(frozen=True)
class Number:
    """A finite number in a range; with `whole` an int. `above` and `below` are ends that do not belong to it."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    whole: bool = False

    def fits(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        return (
            (MIN_INT <= value <= MAX_INT if isinstance(value, int) else math.isfinite(value))
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        ends = (("at least", self.least), ("above", self.above), ("at most", self.most), ("below", self.below))
        given = " and ".join(f"{word} {end}" for word, end in ends if end is not None)
        kind = "a whole number" if self.whole else "a number"
        return f"{kind}, {given}" if given else f"{kind} of 64 bits" if self.whole else "a finite number"


@dataclass(frozen=True)
class Choice:
    """One of some names: a tuple of them, or what gives it, for names that are registered later."""

    names: Sequence[str] | Callable[[], Sequence[str]]

    def fits(self, value: Any) -> bool:
        return isinstance(value, str) and value in self.choices()

    def choices(self) -> Sequence[str]:
        """Return the names."""
        return self.names() if callable(self.names) else self.names

    def __str__(self) -> str:
        return f"one of {', '.join(self.choices())}"


@dataclass(frozen=True)
class Several:
    """A list or tuple of values of one kind; `length`: how many, `least`: how many at least, `words`: what they are."""

    of: Any
    length: int | None = None
    least: int = 0
    words: str = "a list"

    def fits(self, value: Any) -> bool:
        if not isinstance(value, list | tuple) or len(value) < self.least:
            return False
        return self.length in (None, len(value)) and all(self.of.fits(each) for each in value)

    def __str__(self) -> str:
        return f"{self.words}, each of them {self.of}"


def _text(least: int) -> Kind:
    """A text that a file and a terminal can hold."""

    def fits(value: Any) -> bool:
        if not isinstance(value, str) or not least <= len(value) <= MAX_CHARACTERS:
            return False
        return not any(unicodedata.category(character) in NOT_TEXT for character in value)

    return Kind(f"a text of {least} to {MAX_CHARACTERS} characters, none of them a control character", fits)


FLAG = Kind("True or False", lambda value: isinstance(value, bool))
TEXT, WORD = _text(0), _text(1)
ANYTHING = Kind("any value", lambda value: True)  # whatever yacs reads: where a default says nothing about the values


def kind_of(default: Any) -> Any:
    """Return the kind that a default value is of, without a range."""
    if isinstance(default, bool):
        return FLAG
    if isinstance(default, int):
        return Number(whole=True)
    if isinstance(default, float) and math.isfinite(default):
        return Number()
    if isinstance(default, str):
        return TEXT
    if isinstance(default, list | tuple):
        kinds = {kind_of(each) for each in default}
        kinds = {Number()} if kinds == {Number(), Number(whole=True)} else kinds
        return Several(kinds.pop() if len(kinds) == 1 else ANYTHING)
    return ANYTHING


def kind_in(default: Any, allowed: tuple[Any, ...]) -> Any:
    """Return the kind of a default within what a trainer allows: (least, most) of a number, or names to choose from."""
    if isinstance(default, list | tuple):
        return Several(kind_in(default[0] if default else allowed[0], allowed))
    if isinstance(allowed[0], str):
        return Choice(allowed)
    return Number(*allowed, whole=isinstance(default, int))


def _int(least: int | None = None, most: int | None = None) -> Number:
    return Number(least, most, whole=True)


def _listed(module: str, name: str) -> Choice:
    """One of a list, of a dictionary's keys or of a registry's names, which is looked up when it is needed."""

    def names() -> Sequence[str]:
        listed = getattr(importlib.import_module(module), name)
        return listed.registered_names() if hasattr(listed, "registered_names") else list(listed)

    return Choice(names)


SHARE, NAMES = Number(0, 1), Several(WORD)
RATE = Number(0, 1000)  # of learning, and of what is added to it
SAMPLER = _listed("dassl.data.data_manager", "AVAI_SAMPLERS")
BATCH = _int(1, 2**20)
RGB = "three numbers, of red, green and blue"

KEYS: dict[str, Any] = {}  # what each key may hold; a key that is not here holds what is of its default's kind


def _section(options: Mapping[str, Any], prefix: str = "") -> CfgNode:
    """Make a section of `key: (default, kind)`, or `key: {...}` for a section below; the kinds go to `KEYS`."""
    node = CfgNode()
    for key, option in options.items():
        if isinstance(option, dict):
            node[key] = _section(option, f"{prefix}{key}.")
        else:
            node[key], KEYS[prefix + key] = option
    return node


_C = _section(
    {
        "VERSION": (1, _int()),
        "OUTPUT_DIR": ("./output", WORD),  # log, checkpoints and TensorBoard events of the run
        "RESUME": ("", TEXT),  # directory of an earlier run to continue; empty: OUTPUT_DIR
        "SEED": (-1, _int(most=MAX_SEED)),  # negative: a different run each time
        "USE_CUDA": (True, FLAG),
        "VERBOSE": (True, FLAG),
        "INPUT": {
            "SIZE": ((224, 224), Several(_int(1, MAX_SIDE), 2, words="(height, width) in pixels")),
            "INTERPOLATION": ("bilinear", _listed("dassl.data.transforms", "INTERPOLATION_MODES")),
            "TRANSFORMS": ((), Several(_listed("dassl.data.transforms", "AVAI_CHOICES"))),
            "NO_TRANSFORM": (False, FLAG),  # True: images reach the loader as they are on disk
            # 0: JPEG files are decoded at full size, as Dassl does. Above 0: at the smallest of 1, 1/2, 1/4 and 1/8 of
            # it that leaves both edges at least this many times SIZE. Faster, not exact: crops fall elsewhere.
            "JPEG_DRAFT": (0.0, Number(0, 100)),
            # True: turn images upright as their EXIF orientation says. False, as Dassl: pixels as they are stored.
            "EXIF_ORIENTATION": (False, FLAG),
            "PIXEL_MEAN": ([0.485, 0.456, 0.406], Several(Number(-1000, 1000), 3, words=RGB)),  # ImageNet's
            "PIXEL_STD": ([0.229, 0.224, 0.225], Several(Number(above=0, most=1000), 3, words=RGB)),
            "CROP_PADDING": (4, _int(0, MAX_SIDE)),  # random_crop
            "RRCROP_SCALE": (  # random_resized_crop
                (0.08, 1.0),
                Several(Number(above=0, most=1), 2, words="(least, most) share of the image's area"),
            ),
            "CUTOUT_N": (1, _int(0, 1000)),
            "CUTOUT_LEN": (16, _int(0, MAX_SIDE)),
            "GN_MEAN": (0.0, Number(-1000, 1000)),
            "GN_STD": (0.15, Number(0, 1000)),
            "RANDAUGMENT_N": (2, _int(0, 100)),  # operations per image
            "RANDAUGMENT_M": (10, _int(0, 30)),  # their strength
            "COLORJITTER_B": (0.4, Number(0, 100)),  # brightness, contrast, saturation, hue
            "COLORJITTER_C": (0.4, Number(0, 100)),
            "COLORJITTER_S": (0.4, Number(0, 100)),
            "COLORJITTER_H": (0.1, Number(0, 0.5)),
            "RGS_P": (0.2, SHARE),  # randomgrayscale: probability
            "GB_P": (0.5, SHARE),  # gaussian_blur: probability, and odd kernel size
            "GB_K": (21, _int(1, 999)),
        },
        "DATASET": {
            "ROOT": ("", TEXT),  # directory that holds the data sets
            "NAME": ("", _listed("dassl.data.datasets", "DATASET_REGISTRY")),
            "SOURCE_DOMAINS": ((), NAMES),  # for data sets whose domains can be chosen
            "TARGET_DOMAINS": ((), NAMES),
            "NUM_LABELED": (-1, _int(-1, MAX_COUNT)),
            "NUM_SHOTS": (-1, _int(-1, MAX_COUNT)),  # images per class; below 1: all
            "VAL_PERCENT": (0.1, SHARE),
            "STL10_FOLD": (-1, _int(most=9)),
            "CIFAR_C_TYPE": ("", TEXT),
            "CIFAR_C_LEVEL": (1, _int(1, 5)),
            "ALL_AS_UNLABELED": (False, FLAG),
        },
        "DATALOADER": {
            "NUM_WORKERS": (4, _int(0, 1024)),
            # Memory in MiB for decoded training and validation images, 3 bytes per pixel, in all worker processes
            # together; what does not fit is decoded each time, 0 keeps nothing. Exact. 2048 holds 3,800 photographs of
            # 500x375.
            "CACHE_MB": (2048, _int(0, 2**24)),
            # True: the loader crops training images, and the device resizes, mirrors and normalises them, as Pillow
            # does to the last bit. For a GPU that waits for its images; needs random_resized_crop, random_flip,
            # normalize only. It lives in extras/device_transform.py.
            "DEVICE_TRANSFORM": (False, FLAG),
            "K_TRANSFORMS": (1, _int(1, 100)),  # views of each training image
            "RETURN_IMG0": (False, FLAG),  # also return the image without augmentation
            "TRAIN_X": {
                "SAMPLER": ("RandomSampler", SAMPLER),
                "BATCH_SIZE": (32, BATCH),
                "N_DOMAIN": (0, _int(most=MAX_COUNT)),
                "N_INS": (16, BATCH),
            },
            "TRAIN_U": {  # unlabelled images
                "SAME_AS_X": (True, FLAG),  # read them as TRAIN_X says
                "SAMPLER": ("RandomSampler", SAMPLER),
                "BATCH_SIZE": (32, BATCH),
                "N_DOMAIN": (0, _int(most=MAX_COUNT)),
                "N_INS": (16, BATCH),
            },
            "TEST": {"SAMPLER": ("SequentialSampler", SAMPLER), "BATCH_SIZE": (32, BATCH)},
        },
        "MODEL": {
            "INIT_WEIGHTS": ("", TEXT),  # checkpoint to start from
            "BACKBONE": {"NAME": ("", TEXT), "PRETRAINED": (True, FLAG)},
            "HEAD": {
                "NAME": ("", TEXT),  # empty: no layers between backbone and classifier
                "HIDDEN_LAYERS": ((), Several(_int(1, 2**20))),  # widths, e.g. (512, 512)
                "ACTIVATION": ("relu", Choice(("relu", "leaky_relu"))),
                "BN": (True, FLAG),
                "DROPOUT": (0.0, SHARE),
            },
        },
        "OPTIM": {
            "NAME": ("adam", _listed("dassl.optim", "AVAI_OPTIMS")),
            "LR": (0.0003, Number(above=0, most=1000)),
            "WEIGHT_DECAY": (5e-4, RATE),
            "MOMENTUM": (0.9, SHARE),
            "SGD_DAMPNING": (0, _int(0, 1)),
            "SGD_NESTEROV": (False, FLAG),
            "RMSPROP_ALPHA": (0.99, SHARE),
            "ADAM_BETA1": (0.9, Number(0, below=1)),  # also of amsgrad, adamw and radam
            "ADAM_BETA2": (0.999, Number(0, below=1)),
            "FUSED": (True, FLAG),  # on CUDA, one kernel for all parameters; sgd, adam, amsgrad and adamw have one
            "STAGED_LR": (False, FLAG),  # layers outside NEW_LAYERS learn at LR * BASE_LR_MULT
            "NEW_LAYERS": ((), NAMES),
            "BASE_LR_MULT": (0.1, RATE),
            "LR_SCHEDULER": ("single_step", _listed("dassl.optim", "AVAI_SCHEDS")),
            # single_step: the last entry, below 1 means MAX_EPOCH
            "STEPSIZE": ((-1,), Several(_int(most=10**6), least=1, words="a list of one or more epochs")),
            "GAMMA": (0.1, RATE),
            "MAX_EPOCH": (10, _int(1, 10**6)),
            "WARMUP_EPOCH": (-1, _int(-1, 10**6)),  # below 1: no warm-up
            "WARMUP_TYPE": ("linear", Choice(("linear", "constant"))),
            "WARMUP_CONS_LR": (1e-5, RATE),  # the rate of a constant warm-up
            "WARMUP_MIN_LR": (1e-5, RATE),  # the first rate of a linear warm-up
            "WARMUP_RECOUNT": (True, FLAG),  # True: the schedule starts counting epochs after the warm-up
        },
        "TRAIN": {
            "CHECKPOINT_FREQ": (0, _int(-1, 10**6)),  # epochs between kept checkpoints; below 1: the last only
            "PRINT_FREQ": (10, _int(1, MAX_COUNT)),  # batches between log lines
            # what an epoch of TrainerXU runs over
            "COUNT_ITER": ("train_x", Choice(("train_x", "train_u", "smaller_one"))),
            # stop after this many epochs without a better validation result; 0: never
            "PATIENCE": (0, _int(0, 10**6)),
        },
        "TEST": {
            "EVALUATOR": ("Classification", _listed("dassl.evaluation", "EVALUATOR_REGISTRY")),
            "PER_CLASS_RESULT": (False, FLAG),
            "COMPUTE_CMAT": (False, FLAG),  # save the confusion matrix as OUTPUT_DIR/cmat.pt
            "NO_TEST": (False, FLAG),
            "SPLIT": ("test", Choice(("test", "val"))),
            # best_val: the epoch with the best validation result
            "FINAL_MODEL": ("last_step", Choice(("last_step", "best_val"))),
        },
        "TRAINER": {"NAME": ("", TEXT)},
    }
)

# Sections of Dassl's trainers, so that their config files load.
_TRAINERS: dict[str, dict[str, Any]] = {
    "MCD": {"N_STEP_F": 4},
    "MME": {"LMDA": 0.1},
    "CDAC": {"CLASS_LR_MULTI": 10, "RAMPUP_COEF": 30, "RAMPUP_ITRS": 1000, "TOPK_MATCH": 5, "P_THRESH": 0.95},
    "SE": {"EMA_ALPHA": 0.999, "CONF_THRE": 0.95, "RAMPUP": 300},
    "M3SDA": {"LMDA": 0.5, "N_STEP_F": 4},
    "DAEL": {"WEIGHT_U": 0.5, "CONF_THRE": 0.95},
    "CROSSGRAD": {"EPS_F": 1.0, "EPS_D": 1.0, "ALPHA_F": 0.5, "ALPHA_D": 0.5},
    "DDAIG": {
        "G_ARCH": "",
        "LMDA": 0.3,
        "CLAMP": False,
        "CLAMP_MIN": -1.0,
        "CLAMP_MAX": 1.0,
        "WARMUP": 0,
        "ALPHA": 0.5,
    },
    "DAELDG": {"WEIGHT_U": 0.5, "CONF_THRE": 0.95},
    "DOMAINMIX": {"TYPE": "crossdomain", "ALPHA": 1.0, "BETA": 1.0},
    "ENTMIN": {"LMDA": 1e-3},
    "MEANTEACHER": {"WEIGHT_U": 1.0, "EMA_ALPHA": 0.999, "RAMPUP": 5},
    "MIXMATCH": {"WEIGHT_U": 100.0, "TEMP": 2.0, "MIXUP_BETA": 0.75, "RAMPUP": 20000},
    "FIXMATCH": {"WEIGHT_U": 1.0, "CONF_THRE": 0.95},
}
for _name in ("CDAC", "DAEL", "DAELDG", "FIXMATCH"):
    _TRAINERS[_name]["STRONG_TRANSFORMS"] = ()
    KEYS[f"TRAINER.{_name}.STRONG_TRANSFORMS"] = NAMES
for _name, _options in _TRAINERS.items():
    _C.TRAINER[_name] = CfgNode(_options)

# What keys of this project's data sets, evaluation and trainers may hold; elsewhere nobody has these keys.
KEYS |= {
    "DATASET.SUBSAMPLE_CLASSES": Choice(("all", "base", "new")),
    "FEATURES.MAX_GIB": Number(0, 2**20),
    "MODEL.INIT_SEED": _int(most=MAX_SEED),
    "TEST.CLASS_SPLITS": NAMES,
    "TRAIN.TRACKERS": NAMES,
}
