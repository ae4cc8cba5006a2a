"""Caltech101: objects (L. Fei-Fei, R. Fergus, P. Perona, 2004)."""

import os
import random
from typing import ClassVar

from dassl.data.datasets import DATASET_REGISTRY
from datasets.annotation import class_folder_entries, split_classes
from datasets.fewshot import FewShotDataset
from datasets.splitfile import Entry

# No class, and the same photos as "Faces".
IGNORED = ("BACKGROUND_Google", "Faces_easy")
CLASSNAMES = {"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"}


@DATASET_REGISTRY.register()
class Caltech101(FewShotDataset):
    """100 classes of objects."""

    dataset_dir = "caltech-101"
    image_folder: ClassVar[str] = "101_ObjectCategories"
    split_file: ClassVar[str] = "split_zhou_Caltech101.json"

    @classmethod
    def draw_split(cls, source: str, rng: random.Random) -> dict[str, list[Entry]]:
        """Deal every class by 50, 20 and 30 %."""
        return split_classes(class_folder_entries(os.path.join(source, cls.image_folder), IGNORED, CLASSNAMES), rng)
