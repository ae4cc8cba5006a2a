"""EuroSAT: Sentinel-2 satellite images of Europe by land use (P. Helber et al., JSTARS 2019)."""

import os
import random
from typing import ClassVar

from dassl.data.datasets import DATASET_REGISTRY
from datasets.annotation import class_folder_entries, split_classes
from datasets.fewshot import FewShotDataset
from datasets.splitfile import Entry

CLASSNAMES = {
    "AnnualCrop": "Annual Crop Land",
    "Forest": "Forest",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "River": "River",
    "SeaLake": "Sea or Lake",
}


@DATASET_REGISTRY.register()
class EuroSAT(FewShotDataset):
    """10 kinds of land use."""

    dataset_dir = "eurosat"
    image_folder: ClassVar[str] = "2750"
    split_file: ClassVar[str] = "split_zhou_EuroSAT.json"

    @classmethod
    def draw_split(cls, source: str, rng: random.Random) -> dict[str, list[Entry]]:
        """Deal every class by 50, 20 and 30 %."""
        entries = class_folder_entries(os.path.join(source, cls.image_folder), classnames=CLASSNAMES)
        return split_classes(entries, rng)
