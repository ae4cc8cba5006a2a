"""ImageNetV2: ImageNet's collection repeated (B. Recht et al., ICML 2019), a test set for ImageNet models."""

import os
from typing import ClassVar

from dassl.data.datasets import DATASET_REGISTRY
from datasets.imagenet_variants import ImageNetVariant
from datasets.splitfile import SplitFileMissingError, listed


@DATASET_REGISTRY.register()
class ImageNetV2(ImageNetVariant):
    """All 1,000 classes; the folders are called 0 to 999, after the lines of classnames.txt."""

    dataset_dir = "imagenetv2"
    image_folder: ClassVar[str] = "imagenetv2-matched-frequency-format-val"

    def class_folders(self, names: dict[str, str], path: str) -> tuple[list[str], list[str]]:
        """A folder for every line of classnames.txt."""
        folders = [str(label) for label in range(len(names))]
        missing = [folder for folder in folders if not os.path.isdir(os.path.join(self.image_dir, folder))]
        if missing:
            raise SplitFileMissingError(
                f"{self.image_dir} lacks the folders {listed(missing)}: it should have one for each line of {path}"
            )
        return folders, list(names.values())
