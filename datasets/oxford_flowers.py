"""OxfordFlowers: flowers of the United Kingdom (M.-E. Nilsback, A. Zisserman, ICVGIP 2008)."""

import json
import random
from typing import ClassVar

from dassl.data.datasets import DATASET_REGISTRY
from datasets.annotation import load_matlab, require, split_classes
from datasets.fewshot import FewShotDataset
from datasets.splitfile import Entry


@DATASET_REGISTRY.register()
class OxfordFlowers(FewShotDataset):
    """102 flowers."""

    dataset_dir = "oxford_flowers"
    image_folder: ClassVar[str] = "jpg"
    split_file: ClassVar[str] = "split_zhou_OxfordFlowers.json"

    @classmethod
    def draw_split(cls, source: str, rng: random.Random) -> dict[str, list[Entry]]:
        """Deal every class by 50, 20 and 30 %, as CoOp did, which leaves the official setid.mat aside."""
        with open(require(source, "cat_to_name.json"), encoding="utf-8") as file:
            names = json.load(file)
        labels = [int(label) for label in load_matlab(source, "imagelabels.mat", "labels")]  # from 1
        entries = [
            (f"image_{number:05d}.jpg", label - 1, names[str(label)]) for number, label in enumerate(labels, start=1)
        ]
        return split_classes(entries, rng)
