"""Every option of the engine, as a table: its default and what it may hold.

Keys and defaults are Dassl's, and seven more: `DATALOADER.CACHE_MB`, `DATALOADER.DEVICE_TRANSFORM`, `INPUT.JPEG_DRAFT`,
`INPUT.EXIF_ORIENTATION`, `OPTIM.EPS`, `OPTIM.FUSED` and `TRAIN.PATIENCE`. Some of Dassl's have nothing here that reads
them; they are kept so that config files load.
"""

from __future__ import annotations

import importlib
import math
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

MAX_CHARACTERS = 4096  # of a text; the longest path that a system takes
MIN_INT, MAX_INT = -(2**63), 2**63 - 1  # what PyTorch and NumPy count with
MAX_SEED = 2**32 - 1  # of NumPy
MAX_SIDE = 4096  # of an image, in pixels: 16 million of them, 200 MB as a float tensor
MAX_COUNT = 10**9  # of images, batches ...
NOT_TEXT = ("Cc", "Cs")  # Unicode's control characters, and halves of characters, which no file can hold


class Kind(NamedTuple):
    """What a key may hold: `str()` says it in words, `fits` whether a value does."""

    words: str | Callable[[], str]
    fits: Callable[[Any], bool]
    choices: Callable[[], Sequence[str]] | None = None  # of one of some names
    of: Any = None  # kind of the entries of a list

    def __str__(self) -> str:
        return self.words() if callable(self.words) else self.words


def number(
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    whole: bool = False,
) -> Kind:
    """A finite number in a range, with `whole` an int; `above` and `below` are ends that do not belong to it."""
    ends = (("at least", least), ("above", above), ("at most", most), ("below", below))
    given = " and ".join(f"{word} {end}" for word, end in ends if end is not None)
    kind = "a whole number" if whole else "a number"
    words = f"{kind}, {given}" if given else f"{kind} of 64 bits" if whole else "a finite number"

    def fits(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            return False
        return (
            (MIN_INT <= value <= MAX_INT if isinstance(value, int) else math.isfinite(value))
            and (least is None or value >= least)
            and (most is None or value <= most)
            and (above is None or value > above)
            and (below is None or value < below)
        )

    return Kind(words, fits)


def integer(least: int | None = None, most: int | None = None) -> Kind:
    """A whole number in a range."""
    return number(least, most, whole=True)


def choice(names: Sequence[str] | Callable[[], Sequence[str]]) -> Kind:
    """One of some names: a tuple of them, or what gives it, for names that are registered later."""
    choices = names if callable(names) else lambda: names
    fits = lambda value: isinstance(value, str) and value in choices()  # noqa: E731
    return Kind(lambda: f"one of {', '.join(choices())}", fits, choices)


def listed(module: str, name: str) -> Kind:
    """One of a list, of a dictionary's keys or of a registry's names, which is looked up when it is needed."""

    def names() -> Sequence[str]:
        listed = getattr(importlib.import_module(module), name)
        return listed.registered_names() if hasattr(listed, "registered_names") else list(listed)

    return choice(names)


def several(of: Kind, length: int | None = None, least: int = 0, words: str = "a list") -> Kind:
    """A list or tuple of values of one kind: `length` of them, or at least `least`."""

    def fits(value: Any) -> bool:
        if not isinstance(value, list | tuple) or len(value) < least:
            return False
        return length in (None, len(value)) and all(of.fits(each) for each in value)

    return Kind(lambda: f"{words}, each of them {of}", fits, of=of)


def text(least: int) -> Kind:
    """A text that a file and a terminal can hold."""

    def fits(value: Any) -> bool:
        if not isinstance(value, str) or not least <= len(value) <= MAX_CHARACTERS:
            return False
        return not any(unicodedata.category(character) in NOT_TEXT for character in value)

    return Kind(f"a text of {least} to {MAX_CHARACTERS} characters, none of them a control character", fits)


FLAG = Kind("True or False", lambda value: isinstance(value, bool))
TEXT, WORD, NUMBER, INTEGER = text(0), text(1), number(), integer()
ANYTHING = Kind("any value", lambda value: True)  # whatever yacs reads: where a default says nothing about the values


def kind_of(default: Any) -> Kind:
    """Return the kind that a default value is of, without a range."""
    if isinstance(default, float) and not math.isfinite(default):
        return ANYTHING
    for types, kind in ((bool, FLAG), (int, INTEGER), (float, NUMBER), (str, TEXT)):
        if isinstance(default, types):
            return kind
    if not isinstance(default, list | tuple):
        return ANYTHING
    kinds = {kind_of(each) for each in default}
    return several(NUMBER if kinds == {NUMBER, INTEGER} else kinds.pop() if len(kinds) == 1 else ANYTHING)


def kind_in(default: Any, allowed: tuple[Any, ...]) -> Kind:
    """Return the kind of a default within what a trainer allows: (least, most) of a number, or names to choose from."""
    if isinstance(default, list | tuple):
        return several(kind_in(default[0] if default else allowed[0], allowed))
    if isinstance(allowed[0], str):
        return choice(allowed)
    return number(*allowed, whole=isinstance(default, int))


SHARE, NAMES = number(0, 1), several(WORD)
RATE = number(0, 1000)  # of learning, and of what is added to it
SAMPLER = listed("dassl.data.data_manager", "AVAI_SAMPLERS")
BATCH = integer(1, 2**20)
RGB = "three numbers, of red, green and blue"
STRONG_TRANSFORMS = ((), NAMES)

# key: (default, kind), or a default whose kind is all that it may hold, or key: {...} for a section
DEFAULTS: dict[str, Any] = {
    "VERSION": (1, integer()),
    "OUTPUT_DIR": ("./output", WORD),  # log, checkpoints and TensorBoard events of the run
    "RESUME": ("", TEXT),  # directory of an earlier run to continue; empty: OUTPUT_DIR
    "SEED": (-1, integer(most=MAX_SEED)),  # negative: a different run each time
    "USE_CUDA": (True, FLAG),
    "VERBOSE": (True, FLAG),
    "INPUT": {
        "SIZE": ((224, 224), several(integer(1, MAX_SIDE), 2, words="(height, width) in pixels")),
        "INTERPOLATION": ("bilinear", listed("dassl.data.transforms", "INTERPOLATION_MODES")),
        "TRANSFORMS": ((), several(listed("dassl.data.transforms", "AVAI_CHOICES"))),
        "NO_TRANSFORM": (False, FLAG),  # True: images reach the loader as they are on disk
        # 0: JPEG files are decoded at full size, as Dassl does. Above 0: at the smallest of 1, 1/2, 1/4 and 1/8 of
        # it that leaves both edges at least this many times SIZE. Faster, not exact: crops fall elsewhere.
        "JPEG_DRAFT": (0.0, number(0, 100)),
        # True: turn images upright as their EXIF orientation says. False, as Dassl: pixels as they are stored.
        "EXIF_ORIENTATION": (False, FLAG),
        "PIXEL_MEAN": ([0.485, 0.456, 0.406], several(number(-1000, 1000), 3, words=RGB)),  # ImageNet's
        "PIXEL_STD": ([0.229, 0.224, 0.225], several(number(above=0, most=1000), 3, words=RGB)),
        "CROP_PADDING": (4, integer(0, MAX_SIDE)),  # random_crop
        "RRCROP_SCALE": (  # random_resized_crop
            (0.08, 1.0),
            several(number(above=0, most=1), 2, words="(least, most) share of the image's area"),
        ),
        "CUTOUT_N": (1, integer(0, 1000)),
        "CUTOUT_LEN": (16, integer(0, MAX_SIDE)),
        "GN_MEAN": (0.0, number(-1000, 1000)),
        "GN_STD": (0.15, number(0, 1000)),
        "RANDAUGMENT_N": (2, integer(0, 100)),  # operations per image
        "RANDAUGMENT_M": (10, integer(0, 30)),  # their strength
        "COLORJITTER_B": (0.4, number(0, 100)),  # brightness, contrast, saturation, hue
        "COLORJITTER_C": (0.4, number(0, 100)),
        "COLORJITTER_S": (0.4, number(0, 100)),
        "COLORJITTER_H": (0.1, number(0, 0.5)),
        "RGS_P": (0.2, SHARE),  # randomgrayscale: probability
        "GB_P": (0.5, SHARE),  # gaussian_blur: probability, and odd kernel size
        "GB_K": (21, integer(1, 999)),
    },
    "DATASET": {
        "ROOT": ("", TEXT),  # directory that holds the data sets
        "NAME": ("", listed("dassl.data.datasets", "DATASET_REGISTRY")),
        "SOURCE_DOMAINS": ((), NAMES),  # for data sets whose domains can be chosen
        "TARGET_DOMAINS": ((), NAMES),
        "NUM_LABELED": (-1, integer(-1, MAX_COUNT)),
        "NUM_SHOTS": (-1, integer(-1, MAX_COUNT)),  # images per class; below 1: all
        "VAL_PERCENT": (0.1, SHARE),
        "STL10_FOLD": (-1, integer(most=9)),
        "CIFAR_C_TYPE": ("", TEXT),
        "CIFAR_C_LEVEL": (1, integer(1, 5)),
        "ALL_AS_UNLABELED": (False, FLAG),
    },
    "DATALOADER": {
        "NUM_WORKERS": (4, integer(0, 1024)),
        # Memory in MiB for decoded training and validation images, 3 bytes per pixel, in all worker processes
        # together; what does not fit is decoded each time, 0 keeps nothing. Exact. 2048 holds 3,800 photographs of
        # 500x375.
        "CACHE_MB": (2048, integer(0, 2**24)),
        # True: the loader crops training images, and the device resizes, mirrors and normalises them, as Pillow
        # does to the last bit. For a GPU that waits for its images; needs random_resized_crop, random_flip,
        # normalize only. It lives in extras/device_transform.py.
        "DEVICE_TRANSFORM": (False, FLAG),
        "K_TRANSFORMS": (1, integer(1, 100)),  # views of each training image
        "RETURN_IMG0": (False, FLAG),  # also return the image without augmentation
        "TRAIN_X": {
            "SAMPLER": ("RandomSampler", SAMPLER),
            "BATCH_SIZE": (32, BATCH),
            "N_DOMAIN": (0, integer(most=MAX_COUNT)),
            "N_INS": (16, BATCH),
        },
        "TRAIN_U": {  # unlabelled images
            "SAME_AS_X": (True, FLAG),  # read them as TRAIN_X says
            "SAMPLER": ("RandomSampler", SAMPLER),
            "BATCH_SIZE": (32, BATCH),
            "N_DOMAIN": (0, integer(most=MAX_COUNT)),
            "N_INS": (16, BATCH),
        },
        "TEST": {"SAMPLER": ("SequentialSampler", SAMPLER), "BATCH_SIZE": (32, BATCH)},
    },
    "MODEL": {
        "INIT_WEIGHTS": ("", TEXT),  # checkpoint to start from
        "BACKBONE": {"NAME": ("", TEXT), "PRETRAINED": (True, FLAG)},
        "HEAD": {
            "NAME": ("", TEXT),  # empty: no layers between backbone and classifier
            "HIDDEN_LAYERS": ((), several(integer(1, 2**20))),  # widths, e.g. (512, 512)
            "ACTIVATION": ("relu", choice(("relu", "leaky_relu"))),
            "BN": (True, FLAG),
            "DROPOUT": (0.0, SHARE),
        },
    },
    "OPTIM": {
        "NAME": ("adam", listed("dassl.optim", "AVAI_OPTIMS")),
        "LR": (0.0003, number(above=0, most=1000)),
        "WEIGHT_DECAY": (5e-4, RATE),
        "MOMENTUM": (0.9, SHARE),
        "SGD_DAMPNING": (0, integer(0, 1)),
        "SGD_NESTEROV": (False, FLAG),
        "RMSPROP_ALPHA": (0.99, SHARE),
        "ADAM_BETA1": (0.9, number(0, below=1)),  # also of amsgrad, adamw and radam
        "ADAM_BETA2": (0.999, number(0, below=1)),
        "EPS": (1e-8, number(0, below=1)),  # of adam, amsgrad, adamw and radam: added to the root in the denominator
        "FUSED": (True, FLAG),  # on CUDA, one kernel for all parameters; sgd, adam, amsgrad and adamw have one
        "STAGED_LR": (False, FLAG),  # layers outside NEW_LAYERS learn at LR * BASE_LR_MULT
        "NEW_LAYERS": ((), NAMES),
        "BASE_LR_MULT": (0.1, RATE),
        "LR_SCHEDULER": ("single_step", listed("dassl.optim", "AVAI_SCHEDS")),
        # single_step: the last entry, below 1 means MAX_EPOCH
        "STEPSIZE": ((-1,), several(integer(most=10**6), least=1, words="a list of one or more epochs")),
        "GAMMA": (0.1, RATE),
        "MAX_EPOCH": (10, integer(1, 10**6)),
        "WARMUP_EPOCH": (-1, integer(-1, 10**6)),  # below 1: no warm-up
        "WARMUP_TYPE": ("linear", choice(("linear", "constant"))),
        "WARMUP_CONS_LR": (1e-5, RATE),  # the rate of a constant warm-up
        "WARMUP_MIN_LR": (1e-5, RATE),  # the first rate of a linear warm-up
        "WARMUP_RECOUNT": (True, FLAG),  # True: the schedule starts counting epochs after the warm-up
    },
    "TRAIN": {
        "CHECKPOINT_FREQ": (0, integer(-1, 10**6)),  # epochs between kept checkpoints; below 1: the last only
        "PRINT_FREQ": (10, integer(1, MAX_COUNT)),  # batches between log lines
        # what an epoch of TrainerXU runs over
        "COUNT_ITER": ("train_x", choice(("train_x", "train_u", "smaller_one"))),
        # stop after this many epochs without a better validation result; 0: never
        "PATIENCE": (0, integer(0, 10**6)),
    },
    "TEST": {
        "EVALUATOR": ("Classification", listed("dassl.evaluation", "EVALUATOR_REGISTRY")),
        "PER_CLASS_RESULT": (False, FLAG),
        "COMPUTE_CMAT": (False, FLAG),  # save the confusion matrix as OUTPUT_DIR/cmat.pt
        "NO_TEST": (False, FLAG),
        "SPLIT": ("test", choice(("test", "val"))),
        # best_val: the epoch with the best validation result
        "FINAL_MODEL": ("last_step", choice(("last_step", "best_val"))),
    },
    "TRAINER": {
        "NAME": ("", TEXT),
        # Dassl's own trainers: their sections, so that their config files load
        "MCD": {"N_STEP_F": 4},
        "MME": {"LMDA": 0.1},
        "CDAC": {
            "CLASS_LR_MULTI": 10,
            "RAMPUP_COEF": 30,
            "RAMPUP_ITRS": 1000,
            "TOPK_MATCH": 5,
            "P_THRESH": 0.95,
            "STRONG_TRANSFORMS": STRONG_TRANSFORMS,
        },
        "SE": {"EMA_ALPHA": 0.999, "CONF_THRE": 0.95, "RAMPUP": 300},
        "M3SDA": {"LMDA": 0.5, "N_STEP_F": 4},
        "DAEL": {"WEIGHT_U": 0.5, "CONF_THRE": 0.95, "STRONG_TRANSFORMS": STRONG_TRANSFORMS},
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
        "DAELDG": {"WEIGHT_U": 0.5, "CONF_THRE": 0.95, "STRONG_TRANSFORMS": STRONG_TRANSFORMS},
        "DOMAINMIX": {"TYPE": "crossdomain", "ALPHA": 1.0, "BETA": 1.0},
        "ENTMIN": {"LMDA": 1e-3},
        "MEANTEACHER": {"WEIGHT_U": 1.0, "EMA_ALPHA": 0.999, "RAMPUP": 5},
        "MIXMATCH": {"WEIGHT_U": 100.0, "TEMP": 2.0, "MIXUP_BETA": 0.75, "RAMPUP": 20000},
        "FIXMATCH": {"WEIGHT_U": 1.0, "CONF_THRE": 0.95, "STRONG_TRANSFORMS": STRONG_TRANSFORMS},
    },
}
