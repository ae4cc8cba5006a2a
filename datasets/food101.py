"""Food101: dishes (L. Bossard, M. Guillaumin, L. Van Gool, ECCV 2014)."""

import os
import random
from typing import ClassVar

from dassl.data.datasets import DATASET_REGISTRY
from datasets.annotation import class_folder_entries, split_classes
from datasets.fewshot import FewShotDataset
from datasets.splitfile import Entry


@DATASET_REGISTRY.register()
class Food101(FewShotDataset):
    """101 dishes."""

    dataset_dir = "food-101"
    image_folder: ClassVar[str] = "images"
    split_file: ClassVar[str] = "split_zhou_Food101.json"

    @classmethod
    def draw_split(cls, source: str, rng: random.Random) -> dict[str, list[Entry]]:
        """Deal every class by 50, 20 and 30 %, as CoOp did, which leaves the official meta/test.txt aside."""
        return split_classes(class_folder_entries(os.path.join(source, cls.image_folder)), rng)
