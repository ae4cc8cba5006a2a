"""ImageNet: ILSVRC 2012 (O. Russakovsky et al., IJCV 2015), and four test sets for models trained on it.

As in CoOp, the 50,000 images of `val` are the test set, for want of another. CoOp also validates on them; here the
few-shot validation images are drawn from the training images that are not among the shots, after them, so that
the shots stay the same; with all training images there is no validation. CoOp takes the images in the order in which
the file system lists them, so its shots differ between machines; here they are sorted. Shots that CoOp drew on
your machine can be used again: python -m datasets import-selection.
"""

import os
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from dassl.data.datasets import DATASET_REGISTRY, Datum
from datasets.fewshot import FewShotDataset
from datasets.splits import (
    Split,
    SplitFileError,
    SplitFileMissingError,
    find_image_dir,
    hash_entries,
    items_of,
    list_classes,
    list_folders,
    listed,
    names_of,
    read_classnames,
)
from prompting.tokens import check_names


class Listed(NamedTuple):
    """An image of a long list: what `Datum` holds, without a look at the disk for each."""

    impath: str
    label: int
    classname: str


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
        folders = list_classes(train_dir)
        if differ := sorted(set(folders) ^ set(list_classes(test_dir))):
            raise SplitFileError(f"{self.image_dir}: train and val do not have the same classes: {listed(differ)}")
        path = os.path.join(self.dataset_dir, "classnames.txt")
        names = read_classnames(path, self.how_to_get(cfg, "classnames.txt"), wordnet=True)
        names = names_of(folders, names, path)
        check_names(names, [f"folder {folder}" for folder in folders], path, published=True)
        train, test = (list_folders(self.image_dir, folders, names, part) for part in ("train", "val"))
        items = [Listed(os.path.join(self.image_dir, impath), label, name) for impath, label, name in train]
        sha256 = hash_entries({"train": train, "test": test})
        return Split(items, [], items_of(test, self.image_dir), names, sha256)

    def choose(self, split: Split, cfg: Any) -> tuple[Sequence[Datum], Sequence[Datum]]:
        """Draw from the list, and only then look at the files: there are more than a million."""
        train, val = (
            [Datum(each.impath, each.label, classname=each.classname) for each in part]
            for part in super().choose(split, cfg)
        )
        return train, val


class ImageNetVariant(FewShotDataset):
    """A test set with one folder per class, named as ImageNet's; the label is the position among its folders.

    As in CoOp, the test images also stand in for training images, because the engine reads the class names from those;
    `test_only` says so. Few-shot settings do not apply.
    """

    test_only: ClassVar[bool] = True

    def read(self, cfg: Any) -> Split:
        """All images of the class folders."""
        self.split_path = self.image_dir
        path = os.path.join(self.dataset_dir, "classnames.txt")
        hint = f"Copy ImageNet's. {self.how_to_get(cfg, 'classnames.txt')}"
        folders, names = self.class_folders(read_classnames(path, hint, wordnet=True), path)
        check_names(names, [f"folder {folder}" for folder in folders], path, published=True)
        test = list_folders(self.image_dir, folders, names)
        data = items_of(test, self.image_dir)
        return Split(data, [], data, names, hash_entries({"test": test}))

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


@DATASET_REGISTRY.register()
class ImageNetV2(ImageNetVariant):
    """ImageNet's collection repeated (B. Recht et al., ICML 2019); folders 0 to 999, after classnames.txt's lines."""

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


@DATASET_REGISTRY.register()
class ImageNetSketch(ImageNetVariant):
    """Black and white sketches of all 1,000 classes (H. Wang et al., NeurIPS 2019)."""

    dataset_dir = "imagenet-sketch"
    image_folder: ClassVar[str] = "images"


@DATASET_REGISTRY.register()
class ImageNetA(ImageNetVariant):
    """Natural adversarial examples of 200 classes (D. Hendrycks et al., CVPR 2021)."""

    dataset_dir = "imagenet-adversarial"
    image_folder: ClassVar[str] = "imagenet-a"


@DATASET_REGISTRY.register()
class ImageNetR(ImageNetVariant):
    """Art, cartoons and other renditions of 200 classes (D. Hendrycks et al., ICCV 2021)."""

    dataset_dir = "imagenet-rendition"
    image_folder: ClassVar[str] = "imagenet-r"
