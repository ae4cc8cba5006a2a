"""StanfordCars: cars by make, model and year (J. Krause et al., 3dRR 2013)."""

import random
from typing import ClassVar

from dassl.data.datasets import DATASET_REGISTRY
from datasets.annotation import load_matlab, split_trainval
from datasets.fewshot import FewShotDataset
from datasets.splitfile import Entry


@DATASET_REGISTRY.register()
class StanfordCars(FewShotDataset):
    """196 cars; the images lie in cars_train and cars_test, side by side with the split file."""

    dataset_dir = "stanford_cars"
    split_file: ClassVar[str] = "split_zhou_StanfordCars.json"

    @classmethod
    def draw_split(cls, source: str, rng: random.Random) -> dict[str, list[Entry]]:
        """Keep the official test set; a fifth of the others validates."""
        names = [year_first(str(name[0])) for name in load_matlab(source, "devkit/cars_meta.mat", "class_names")]
        train, val = split_trainval(read_annotation(source, "devkit/cars_train_annos.mat", "cars_train", names), rng)
        test = read_annotation(source, "cars_test_annos_withlabels.mat", "cars_test", names)
        return {"train": train, "val": val, "test": test}


def read_annotation(folder: str, name: str, image_folder: str, names: list[str]) -> list[Entry]:
    """The images of one of the two annotation files; their classes count from 1."""
    rows = [(str(row["fname"][0]), int(row["class"][0, 0]) - 1) for row in load_matlab(folder, name, "annotations")]
    return [(f"{image_folder}/{image}", label, names[label]) for image, label in rows]


def year_first(name: str) -> str:
    """The year, which comes last in the annotation, first: "2012 Audi S5 Coupe"."""
    model, _, year = name.rpartition(" ")
    return f"{year} {model}"
