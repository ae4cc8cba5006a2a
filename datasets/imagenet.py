"""ImageNet: ILSVRC 2012 (O. Russakovsky et al., IJCV 2015).

As in CoOp, the 50,000 images of `val` are the test set, for want of another. CoOp also validates on them; here the
few-shot validation images are drawn from the training images that are not among the shots, after them, so that
the shots stay the same; with all training images there is no validation. CoOp takes the images in the order in which
the file system lists them, so its shots differ between machines; here they are sorted. Shots that CoOp drew on
your machine can be used again: python -m datasets import-selection.
"""

import os
from collections.abc import Sequence
from typing import Any, ClassVar

from dassl.data.datasets import DATASET_REGISTRY, Datum
from datasets.fewshot import FewShotDataset
from datasets.imagefolders import Listed, hash_listed, list_classes, list_folders, names_of, read_imagenet_names
from datasets.locate import find_image_dir
from datasets.splitfile import Split, SplitFileError, listed
from prompting.tokens import check_names


@DATASET_REGISTRY.register()
class ImageNet(FewShotDataset):
    """1,000 classes; two pairs of them share a name, so names do not identify classes."""

    dataset_dir = "imagenet"
    image_folder: ClassVar[str] = "images"
    val_from_train: ClassVar[bool] = True

    def read(self, cfg: Any) -> Split:
        """The images of images/train and images/val; labels follow the sorted folder names."""
        self.split_path = self.image_dir
        train_dir, test_dir = (find_image_dir(self.image_dir, part) for part in ("train", "val"))
        folders, test_folders = list_classes(train_dir), list_classes(test_dir)
        if folders != test_folders:
            differ = sorted(set(folders) ^ set(test_folders))
            raise SplitFileError(f"{self.image_dir}: train and val do not have the same classes: {listed(differ)}")
        path = os.path.join(self.dataset_dir, "classnames.txt")
        names = names_of(folders, read_imagenet_names(path, self.how_to_get("classnames.txt")), path)
        check_names(names, [f"folder {folder}" for folder in folders], path, published=True)
        train, test = (list_folders(part, folders, names) for part in (train_dir, test_dir))
        sha256 = hash_listed({"train": train, "test": test}, self.image_dir)
        return Split(train, [], [item.datum() for item in test], names, sha256)

    def choose(self, split: Split, cfg: Any) -> tuple[Sequence[Datum], Sequence[Datum]]:
        """Draw from the list, and only then look at the files: there are more than a million."""
        chosen = super().choose(split, cfg)
        train, val = ([item.datum() if isinstance(item, Listed) else item for item in part] for part in chosen)
        return train, val
