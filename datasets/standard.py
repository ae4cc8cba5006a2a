"""The eleven data sets beside ImageNet that CoOp's benchmark uses: one table, a class for each row.

New splits are drawn as CoOp's data set files do it: by the class folders, or out of the original annotation, whose
official test set is kept or, for OxfordFlowers and Food101, left aside.
"""

import json
import os
import random
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

from dassl.data.datasets import DATASET_REGISTRY
from datasets.fewshot import FewShotDataset
from datasets.folders import list_classes, list_folders, read_lines
from datasets.splits import (
    PARTS,
    AnnotationError,
    Entry,
    Split,
    SplitFileError,
    SplitFileMissingError,
    build_split,
    split_classes,
    split_trainval,
)

EUROSAT_NAMES = {
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
CALTECH_NAMES = {"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"}
CALTECH_IGNORED = ("BACKGROUND_Google", "Faces_easy")  # no class, and the same photos as "Faces"


class AnnotationMissingError(FileNotFoundError):
    """A file of the original annotation is not there."""


def require(folder: str, name: str) -> str:
    """Path of a file of the original annotation."""
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
        raise AnnotationMissingError(
            f"{path} does not exist: a new split is drawn from the original annotation, which has it"
        )
    return path


def annotation_lines(folder: str, name: str) -> list[str]:
    """The lines of a text file of the annotation that are not empty."""
    return list(filter(None, read_lines(require(folder, name))))


def load_matlab(folder: str, name: str, variable: str) -> list:
    """One row of a variable of a MATLAB file of the annotation."""
    path = require(folder, name)
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise AnnotationError(f"{path} is a MATLAB file; reading it takes: pip install scipy") from error
    content = loadmat(path)
    if variable not in content:
        raise AnnotationError(f"{path} has no variable {variable!r}")
    return content[variable][0]


# All images of a data set without an official test set, from the folder of its images: for `split_classes`


def class_folders(image_dir: str, ignored: Sequence[str] = (), names: Mapping[str, str] | None = None) -> list[Entry]:
    """The images of the class folders; the label is the folder's position, `names` those called otherwise."""
    folders = [folder for folder in list_classes(image_dir) if folder not in ignored]
    return list_folders(image_dir, folders, [(names or {}).get(folder, folder) for folder in folders])


def read_flowers(image_dir: str) -> list[Entry]:
    """The images by number, with their labels, which count from 1."""
    folder = os.path.dirname(image_dir)
    with open(require(folder, "cat_to_name.json"), encoding="utf-8") as file:
        names = json.load(file)
    labels = [int(label) for label in load_matlab(folder, "imagelabels.mat", "labels")]
    return [(f"image_{number:05d}.jpg", label - 1, names[str(label)]) for number, label in enumerate(labels, start=1)]


# Training and test images of a data set with an official test set, from its folder: the first for `split_trainval`

TrainAndTest = tuple[list[Entry], list[Entry]]


def read_lists(folder: str, names: tuple[str, str], read: Callable[[str, str], Entry]) -> TrainAndTest:
    """The entries of two text files, from the file's name and each of its lines."""
    train, test = ([read(name, line) for line in annotation_lines(folder, name)] for name in names)
    return train, test


def read_pets(folder: str) -> TrainAndTest:
    """Lines of "Abyssinian_100 1 1 1": name, class from 1, species, breed within the species."""

    def read(name: str, line: str) -> Entry:
        fields = line.split()
        breed, _, number = fields[0].rpartition("_")
        if len(fields) != 4 or not breed or not number.isdecimal() or not fields[1].isdecimal():
            raise AnnotationError(f"{name}: expected lines as 'Abyssinian_100 1 1 1', found {line!r}")
        return f"{fields[0]}.jpg", int(fields[1]) - 1, breed.lower()

    return read_lists(folder, ("annotations/trainval.txt", "annotations/test.txt"), read)


def read_cars(folder: str) -> TrainAndTest:
    """Classes count from 1; the year, which comes last in their names, is put first: "2012 Audi S5 Coupe"."""
    originals = (str(name[0]).rpartition(" ") for name in load_matlab(folder, "devkit/cars_meta.mat", "class_names"))
    names = [f"{year} {model}" for model, _, year in originals]

    def read(name: str, image_folder: str) -> list[Entry]:
        rows = [(str(row["fname"][0]), int(row["class"][0, 0]) - 1) for row in load_matlab(folder, name, "annotations")]
        return [(f"{image_folder}/{image}", label, names[label]) for image, label in rows]

    train = read("devkit/cars_train_annos.mat", "cars_train")
    return train, read("cars_test_annos_withlabels.mat", "cars_test")


def read_sun(folder: str) -> TrainAndTest:
    """The first official partition; lines of "/c/church/indoor/sun_aabb.jpg", whose class is "indoor church"."""
    scenes = [line.lstrip("/") for line in annotation_lines(folder, "ClassName.txt")]
    labels = {scene: label for label, scene in enumerate(scenes)}

    def read(name: str, line: str) -> Entry:
        scene, _, _ = line.lstrip("/").rpartition("/")
        if scene not in labels:
            raise AnnotationError(f"{name}: the scene of {line} is not in ClassName.txt")
        return line.lstrip("/"), labels[scene], " ".join(reversed(scene.split("/")[1:]))

    return read_lists(folder, ("Training_01.txt", "Testing_01.txt"), read)


def read_ucf(folder: str) -> TrainAndTest:
    """The first official lists; lines of "YoYo/v_YoYo_g08_c01.avi 101", without the number in the test list."""
    rows = [line.split() for line in annotation_lines(folder, "ucfTrainTestlist/classInd.txt")]
    labels = {action: int(number) - 1 for number, action in rows}

    def read(name: str, line: str) -> Entry:
        action, _, video = line.split()[0].partition("/")
        if action not in labels:
            raise AnnotationError(f"{name}: the action of {line!r} is not in classInd.txt")
        classname = "_".join(re.findall("[A-Z][^A-Z]*", action))  # YoYo: Yo_Yo, the folder of its frames
        return f"{classname}/{video.removesuffix('.avi')}.jpg", labels[action], classname

    return read_lists(folder, ("ucfTrainTestlist/trainlist01.txt", "ucfTrainTestlist/testlist01.txt"), read)


class Standard(NamedTuple):
    """A row: name, folder under the data root, folder of the images in it, and who reads the original annotation."""

    name: str
    folder: str
    images: str
    about: str
    all_images: Callable[[str], list[Entry]] | None = None
    train_and_test: Callable[[str], TrainAndTest] | None = None


caltech_folders = partial(class_folders, ignored=CALTECH_IGNORED, names=CALTECH_NAMES)
eurosat_folders = partial(class_folders, names=EUROSAT_NAMES)
# fmt: off
TABLE = (
    Standard("Caltech101", "caltech-101", "101_ObjectCategories",
             "100 classes of objects (L. Fei-Fei, R. Fergus, P. Perona, 2004).", caltech_folders),
    Standard("DescribableTextures", "dtd", "images",
             "47 textures by their adjective (M. Cimpoi et al., CVPR 2014).", class_folders),
    Standard("EuroSAT", "eurosat", "2750",
             "10 kinds of land use, seen by Sentinel-2 (P. Helber et al., JSTARS 2019).", eurosat_folders),
    Standard("Food101", "food-101", "images",
             "101 dishes (L. Bossard, M. Guillaumin, L. Van Gool, ECCV 2014).", class_folders),
    Standard("OxfordFlowers", "oxford_flowers", "jpg",
             "102 flowers of the United Kingdom (M.-E. Nilsback, A. Zisserman, ICVGIP 2008).", read_flowers),
    Standard("OxfordPets", "oxford_pets", "images",
             "37 breeds of cats and dogs (O. M. Parkhi et al., CVPR 2012).", train_and_test=read_pets),
    Standard("StanfordCars", "stanford_cars", "",  # cars_train and cars_test, side by side with the split file
             "196 cars by make, model and year (J. Krause et al., 3dRR 2013).", train_and_test=read_cars),
    Standard("SUN397", "sun397", "SUN397",
             "397 scenes (J. Xiao et al., CVPR 2010).", train_and_test=read_sun),
    Standard("UCF101", "ucf101", "UCF-101-midframes",
             "101 actions, a middle frame per video (K. Soomro, A. R. Zamir, M. Shah, 2012).", train_and_test=read_ucf),
)
# fmt: on


class StandardDataset(FewShotDataset):
    """A row of the table as a data set."""

    row: ClassVar[Standard]

    @classmethod
    def draw_split(cls, source: str, rng: random.Random) -> dict[str, list[Entry]]:
        """Deal every class by 50, 20 and 30 %, or keep the official test set; a fifth of the others validates."""
        if cls.row.all_images:
            return split_classes(cls.row.all_images(os.path.join(source, cls.image_folder)), rng)
        others, test = cls.row.train_and_test(source)
        train, val = split_trainval(others, rng)
        return {"train": train, "val": val, "test": test}


for _row in TABLE:
    _dataset = type(_row.name, (StandardDataset,), {"__doc__": _row.about, "__module__": __name__, "row": _row})
    _dataset.dataset_dir, _dataset.image_folder = _row.folder, _row.images
    _dataset.split_file = f"split_zhou_{_row.name}.json"
    globals()[_row.name] = DATASET_REGISTRY.register()(_dataset)


@DATASET_REGISTRY.register()
class FGVCAircraft(FewShotDataset):
    """100 variants of aircraft (S. Maji et al., 2013); its split is the official one, in its own text files.

    The images and the text files are those of the archive's `data` folder, renamed `fgvc_aircraft`.
    """

    dataset_dir = "fgvc_aircraft"
    image_folder: ClassVar[str] = "images"

    def read(self, cfg: Any) -> Split:
        """The images by variant, from lines of "0034309 737-300"; labels follow the order of variants.txt."""
        self.split_path = self.dataset_dir
        labels = {name: label for label, name in enumerate(self.read_lines("variants.txt"))}
        entries = {}
        for part in PARTS:
            name = f"images_variant_{part}.txt"
            rows = [line.partition(" ") for line in self.read_lines(name)]
            unknown = next((variant for _, _, variant in rows if variant not in labels), None)
            if unknown is not None:
                raise SplitFileError(f"{os.path.join(self.dataset_dir, name)}: {unknown!r} is not in variants.txt")
            entries[part] = [(f"{image}.jpg", labels[variant], variant) for image, _, variant in rows]
        return build_split(entries, self.image_dir, self.dataset_dir, published=True)

    def read_lines(self, name: str) -> list[str]:
        """The lines of one of its text files."""
        path = os.path.join(self.dataset_dir, name)
        if not os.path.isfile(path):
            raise SplitFileMissingError(f"{path} does not exist. {self.how_to_get(name)}")
        return list(filter(None, read_lines(path)))
