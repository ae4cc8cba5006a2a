"""What ImageNet's other test sets share: nothing to train on, and class names from ImageNet's classnames.txt.

As in CoOp, the test images also stand in for training images, because the engine reads the class names from those;
`test_only` says so. Few-shot settings do not apply.
"""

import os
from collections.abc import Sequence
from typing import Any, ClassVar

from dassl.data.datasets import Datum
from datasets.fewshot import FewShotDataset
from datasets.imagefolders import hash_listed, list_classes, list_folders, names_of, read_imagenet_names
from datasets.splitfile import Split, SplitFileError
from prompting.tokens import check_names


class ImageNetVariant(FewShotDataset):
    """A test set with one folder per class, named as ImageNet's; the label is the position among its own folders."""

    test_only: ClassVar[bool] = True

    def read(self, cfg: Any) -> Split:
        """All images of the class folders."""
        self.split_path = self.image_dir
        path = os.path.join(self.dataset_dir, "classnames.txt")
        hint = f"Copy ImageNet's. {self.how_to_get('classnames.txt')}"
        folders, names = self.class_folders(read_imagenet_names(path, hint), path)
        check_names(names, [f"folder {folder}" for folder in folders], path, published=True)
        test = list_folders(self.image_dir, folders, names)
        data = [item.datum() for item in test]
        return Split(data, [], data, names, hash_listed({"test": test}, self.image_dir))

    def class_folders(self, names: dict[str, str], path: str) -> tuple[list[str], list[str]]:
        """The class folders and their class names, in the order of the labels."""
        folders = list_classes(self.image_dir)
        return folders, names_of(folders, names, path)

    def read_split_file(self, cfg: Any) -> Split:
        """Refused: all its images are test images."""
        raise SplitFileError(f"{type(self).__name__} is for testing only: leave DATASET.SPLIT_FILE out")

    def choose(self, split: Split, cfg: Any) -> tuple[Sequence[Datum], Sequence[Datum]]:
        """All images, whatever the number of shots."""
        if cfg.DATASET.SELECTION:
            raise SplitFileError(f"{type(self).__name__} is for testing only: leave DATASET.SELECTION out")
        return split.train, []
