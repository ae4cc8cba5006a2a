"""The protocols as data: what is trained, on which classes, what it is tested on, and where the runs lie.

Base-to-new, cross-dataset and domain generalization: Zhou et al., CoCoOp, CVPR 2022, https://arxiv.org/abs/2203.05557;
few-shot: Zhou et al., CoOp, IJCV 2022, https://arxiv.org/abs/2109.01134; open-world: Lv et al., BMIP, IJCAI 2025.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# Names of configs/datasets/<name>.yaml.
ELEVEN = (
    *("imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101"),
    *("fgvc_aircraft", "sun397", "dtd", "eurosat", "ucf101"),
)
IMAGENET_VARIANTS = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")

# What stands in for them on the bundled model. Transfer trains on the first drawing style of the kinds of emoji, whose
# other styles are files named after it; digits and concepts are other data sets.
BUNDLED = ("digits",)
BUNDLED_SOURCE = "emoji_kinds"
BUNDLED_TARGETS = ("digits", "emoji_concepts")

LAYOUT = "{protocol}/{trainer}/{setting}/{dataset}/shots{shots}/seed{seed}"
# Where CoOp's two-step scripts write, so that its users' other tools find the logs.
COOP_TRAIN_LAYOUT = "base2new/train_base/{dataset}/shots_{shots}/{trainer}/{setting}/seed{seed}"
COOP_TEST_LAYOUT = "base2new/test_new/{dataset}/shots_{shots}/{trainer}/{setting}/seed{seed}"


@dataclass(frozen=True)
class Protocol:
    """One protocol.

    Args:
        name: as in results.json and in the tables.
        title: in words.
        train_classes: "all" or "base".
        splits: class splits to test on.
        shots: training images per class; several make a curve.
        datasets: config names of the published table's data sets.
        setting_suffix: how upstream names the settings made for this protocol.
        layout: a run's folder below the output folder.
        source: data set that is trained on once; the others are only tested. "": every data set is trained on.
        weights_layout: where the weights lie that are tested without training; "": the run trains its own.
    """

    name: str
    title: str
    train_classes: str = "all"
    splits: tuple[str, ...] = ("all",)
    shots: tuple[int, ...] = (16,)
    datasets: tuple[str, ...] = ELEVEN
    setting_suffix: str = ""
    layout: str = LAYOUT
    source: str = ""
    weights_layout: str = ""


_TRANSFER_WEIGHTS = LAYOUT.replace("{protocol}", "cross_dataset").replace("{dataset}", "{source}")

# By the name that sweep.py takes; two of them are the halves of base_to_new, as CoOp's scripts split it.
PROTOCOLS: Mapping[str, Protocol] = {
    "open_world": Protocol(
        "open_world", "Open-world generalization", train_classes="base", splits=("base", "new", "all")
    ),
    "base_to_new": Protocol("base_to_new", "Base-to-new generalization", train_classes="base", splits=("base", "new")),
    "base2new_train": Protocol(
        "base_to_new",
        "Base-to-new generalization, training",
        train_classes="base",
        splits=("base",),
        layout=COOP_TRAIN_LAYOUT,
    ),
    "base2new_test": Protocol(
        "base_to_new",
        "Base-to-new generalization, testing",
        train_classes="base",
        splits=("base", "new"),
        layout=COOP_TEST_LAYOUT,
        weights_layout=COOP_TRAIN_LAYOUT,
    ),
    "few_shot": Protocol("few_shot", "Few-shot classification", shots=(1, 2, 4, 8, 16), setting_suffix="_few_shot"),
    "cross_dataset": Protocol(
        "cross_dataset",
        "Cross-dataset transfer",
        setting_suffix="_cross_datasets",
        source="imagenet",
        weights_layout=_TRANSFER_WEIGHTS,
    ),
    # The model is cross-dataset transfer's: ImageNet is trained on once for both.
    "domain_generalization": Protocol(
        "domain_generalization",
        "Domain generalization",
        datasets=("imagenet", *IMAGENET_VARIANTS),
        setting_suffix="_cross_datasets",
        source="imagenet",
        weights_layout=_TRANSFER_WEIGHTS,
    ),
    "zero_shot": Protocol("zero_shot", "Zero-shot classification"),
}

# Trainers without anything to learn: every seed gives the same numbers, so one is run.
UNTRAINED = ("ZeroshotCLIP", "ZeroshotCLIP2")
SETTING_SUFFIXES = ("_cross_datasets", "_few_shot")
