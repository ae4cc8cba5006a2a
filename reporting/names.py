"""Names of data sets and trainers, and the order in which the literature lists them."""

from __future__ import annotations

from results.schema import DATASETS, canonical_dataset

# the order in which the methods appeared; a table reads best that way
TRAINER_ORDER = (
    *("ZeroshotCLIP", "ZeroshotCLIP2", "CoOp", "CoCoOp", "ProDA", "KgCoOp", "VPT", "IVLP", "MaPLe", "PromptSRC"),
    *("CoPrompt", "BMIP", "MaPLe_BMIP", "PromptSRC_BMIP", "CoPrompt_BMIP"),
)


def dataset_order(name: str) -> tuple[int, str]:
    """Sort key: the literature's order, then every other data set by name."""
    canonical = canonical_dataset(name)
    rank = DATASETS.index(canonical) if canonical in DATASETS else len(DATASETS)
    return rank, name


def trainer_order(name: str) -> tuple[int, str]:
    """Sort key: the order in which the methods appeared, then every other method by name."""
    return TRAINER_ORDER.index(name) if name in TRAINER_ORDER else len(TRAINER_ORDER), name


def shots_text(count: int) -> str:
    """A number of shots for reading: "1 shot", "16 shots"."""
    return "1 shot" if count == 1 else f"{count} shots"
