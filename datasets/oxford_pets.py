"""OxfordPets: cats and dogs by breed (O. M. Parkhi et al., CVPR 2012)."""

import random
from typing import ClassVar

from dassl.data.datasets import DATASET_REGISTRY
from datasets.annotation import AnnotationError, read_lines, split_trainval
from datasets.fewshot import FewShotDataset
from datasets.splitfile import Entry


@DATASET_REGISTRY.register()
class OxfordPets(FewShotDataset):
    """37 breeds."""

    dataset_dir = "oxford_pets"
    image_folder: ClassVar[str] = "images"
    split_file: ClassVar[str] = "split_zhou_OxfordPets.json"

    @classmethod
    def draw_split(cls, source: str, rng: random.Random) -> dict[str, list[Entry]]:
        """Keep the official test set; a fifth of the others validates."""
        train, val = split_trainval(read_annotation(source, "annotations/trainval.txt"), rng)
        return {"train": train, "val": val, "test": read_annotation(source, "annotations/test.txt")}


def read_annotation(folder: str, name: str) -> list[Entry]:
    """Images from lines of "Abyssinian_100 1 1 1": name, class from 1, species, breed within the species."""
    entries = []
    for line in read_lines(folder, name):
        fields = line.split()
        breed, _, number = fields[0].rpartition("_")
        if len(fields) != 4 or not breed or not number.isdecimal() or not fields[1].isdecimal():
            raise AnnotationError(f"{name}: expected lines as 'Abyssinian_100 1 1 1', found {line!r}")
        entries.append((f"{fields[0]}.jpg", int(fields[1]) - 1, breed.lower()))
    return entries
