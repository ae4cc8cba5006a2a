"""DescribableTextures: textures by their adjective (M. Cimpoi et al., CVPR 2014)."""

import os
import random
from typing import ClassVar

from dassl.data.datasets import DATASET_REGISTRY
from datasets.annotation import class_folder_entries, split_classes
from datasets.fewshot import FewShotDataset
from datasets.splitfile import Entry


@DATASET_REGISTRY.register()
class DescribableTextures(FewShotDataset):
    """47 textures."""

    dataset_dir = "dtd"
    image_folder: ClassVar[str] = "images"
    split_file: ClassVar[str] = "split_zhou_DescribableTextures.json"

    @classmethod
    def draw_split(cls, source: str, rng: random.Random) -> dict[str, list[Entry]]:
        """Deal every class by 50, 20 and 30 %; DTD's ten official splits are not CoOp's."""
        return split_classes(class_folder_entries(os.path.join(source, cls.image_folder)), rng)
