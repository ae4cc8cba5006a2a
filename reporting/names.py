"""Names of data sets and trainers, and the order in which the literature lists them."""

from __future__ import annotations

import re

# canonical name -> how else it is written (compared without case and punctuation)
DATASETS: dict[str, tuple[str, ...]] = {
    "imagenet": (),
    "caltech101": ("caltech",),
    "oxford_pets": ("pets", "oxfordiiitpet"),
    "stanford_cars": ("cars",),
    "oxford_flowers": ("flowers", "flowers102", "oxfordflowers102"),
    "food101": ("food",),
    "fgvc_aircraft": ("aircraft",),
    "sun397": ("sun",),
    "dtd": ("describabletextures",),
    "eurosat": (),
    "ucf101": ("ucf",),
    "imagenetv2": (),
    "imagenet_sketch": (),
    "imagenet_a": (),
    "imagenet_r": (),
}

# the order in which the methods appeared; a table reads best that way
TRAINER_ORDER = (
    *("ZeroshotCLIP", "ZeroshotCLIP2", "CoOp", "CoCoOp", "ProDA", "KgCoOp", "VPT", "IVLP", "MaPLe", "PromptSRC"),
    *("CoPrompt", "BMIP", "MaPLe_BMIP", "PromptSRC_BMIP", "CoPrompt_BMIP"),
)


def canonical_dataset(name: str) -> str:
    """One spelling per data set: OxfordPets, oxford_pets and Pets are oxford_pets; unknown names are lower-cased."""
    return _CANONICAL.get(_plain(name), name.lower())


def dataset_order(name: str) -> tuple[int, str]:
    """Sort key: the literature's order, then every other data set by name."""
    canonical = canonical_dataset(name)
    rank = list(DATASETS).index(canonical) if canonical in DATASETS else len(DATASETS)
    return rank, name


def trainer_order(name: str) -> tuple[int, str]:
    """Sort key: the order in which the methods appeared, then every other method by name."""
    return TRAINER_ORDER.index(name) if name in TRAINER_ORDER else len(TRAINER_ORDER), name


def shots_text(count: int) -> str:
    """A number of shots for reading: "1 shot", "16 shots"."""
    return "1 shot" if count == 1 else f"{count} shots"


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


_CANONICAL = {_plain(alias): name for name, aliases in DATASETS.items() for alias in (name, *aliases)}
