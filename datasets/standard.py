"""The data sets of CoOp's benchmark, and the bundled ones: those with a split file as tables, Aircraft, and ImageNet's.

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

from dassl.data.datasets import DATASET_REGISTRY, Datum
from datasets.fewshot import FewShotDataset
from datasets.splits import (
    PARTS,
    AnnotationError,
    Entry,
    Split,
    SplitFileError,
    SplitFileMissingError,
    build_split,
    find_image_dir,
    hash_entries,
    items_of,
    list_classes,
    list_folders,
    listed,
    names_of,
    read_classnames,
    read_lines,
    split_classes,
    split_trainval,
)
from prompting.tokens import check_names

# fmt: off
EUROSAT_NAMES = {
    "AnnualCrop": "Annual Crop Land", "Forest": "Forest", "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road", "Industrial": "Industrial Buildings", "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land", "Residential": "Residential Buildings", "River": "River",
    "SeaLake": "Sea or Lake",
}
# fmt: on
CALTECH_NAMES = {"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"}
CALTECH_IGNORED = ("BACKGROUND_Google", "Faces_easy")  # no class, and the same photos as "Faces"
NEEDED = "A new split is drawn from the original annotation, which has it."


def annotation_lines(folder: str, name: str) -> list[str]:
    """The lines of a text file of the annotation that are not empty."""
    return list(filter(None, read_lines(os.path.join(folder, name), NEEDED)))


def load_matlab(folder: str, name: str, variable: str) -> list:
    """One row of a variable of a MATLAB file of the annotation."""
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
        raise SplitFileMissingError(f"{path} does not exist. {NEEDED}")
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
    names = json.loads(" ".join(annotation_lines(folder, "cat_to_name.json")))
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
    """A data set: its folder, that of its images in it, what it is, and who reads the original annotation."""

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


# Data root: assets. Digits: the test set of UCI's handwritten digits (E. Alpaydin, C. Kaynak, 1998), 1,797 images.
# Emoji in four drawing styles: domain generalisation and transfer without a download. Kinds: is this a mammal, a book,
# a tool ...? Train on some drawings of each, test on others; the names of the drawings are dealt out the same way in
# every style. Concepts: is this a koala, a hammer ...? One training drawing each, in Noto's style; the test drawings
# are of the other styles. Noto is the source style; Fluent, its flat and its high-contrast version are the styles to
# generalise to, named as the variants of ImageNet are.
BUNDLED = {  # data set: (name of its split file, which begins with its folder's; what it is)
    "Digits": ("digits", "Handwritten digits."),
    "EmojiKinds": ("emoji_kinds_noto", "24 kinds in Noto's style."),
    "EmojiKindsFluent": ("emoji_kinds_fluent", "24 kinds in Fluent's shaded style."),
    "EmojiKindsFlat": ("emoji_kinds_flat", "24 kinds in Fluent's flat style."),
    "EmojiKindsContrast": ("emoji_kinds_contrast", "24 kinds in Fluent's black and white style."),
    "EmojiConcepts": ("emoji_concepts", "100 concepts, tested on the three other styles together."),
    "EmojiConceptsFluent": ("emoji_concepts_fluent", "100 concepts, tested on Fluent's shaded style."),
    "EmojiConceptsFlat": ("emoji_concepts_flat", "100 concepts, tested on Fluent's flat style."),
    "EmojiConceptsContrast": ("emoji_concepts_contrast", "100 concepts, tested on Fluent's black and white."),
}
BUNDLED_HELP = "It comes with the code (--root assets); to make it again see: python -m tools.bundled_data --help"


class StandardDataset(FewShotDataset):
    """A row of the table as a data set."""

    row: ClassVar[Standard]

    @classmethod
    def draw_split(cls, source: str, rng: random.Random) -> dict[str, list[Entry]]:
        """Deal every class by 50, 20 and 30 %, or keep the official test set; a fifth of the others validates."""
        if cls.row.all_images:
            return split_classes(cls.row.all_images(os.path.join(source, cls.image_folder)), rng)
        others, test = cls.row.train_and_test(source)
        return {**split_trainval(others, rng), "test": test}


def add_dataset(name: str, about: str, base: type, folder: str, images: str, split: str = "", **more: Any) -> None:
    """Register a data set under a name that this module has, too."""
    fields = {"dataset_dir": folder, "image_folder": images, "split_file": split, **more}
    fields |= {"__doc__": about, "__module__": __name__}
    globals()[name] = DATASET_REGISTRY.register()(type(name, (base,), fields))


for _row in TABLE:
    _split = f"split_zhou_{_row.name}.json"
    add_dataset(_row.name, _row.about, StandardDataset, _row.folder, _row.images, _split, row=_row)
for _name, (_split, _about) in BUNDLED.items():
    _more = {"template": "a photo of the {}."} if _name == "Digits" else {}
    _place = _split.partition("_")[0], "images", f"split_{_split}.json"
    add_dataset(_name, _about, FewShotDataset, *_place, split_help=BUNDLED_HELP, **_more)


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

        def lines(name: str) -> list[str]:
            return list(filter(None, read_lines(os.path.join(self.dataset_dir, name), self.how_to_get(cfg, name))))

        labels = {name: label for label, name in enumerate(lines("variants.txt"))}
        entries = {}
        for part in PARTS:
            name = f"images_variant_{part}.txt"
            rows = [line.partition(" ") for line in lines(name)]
            unknown = next((variant for _, _, variant in rows if variant not in labels), None)
            if unknown is not None:
                raise SplitFileError(f"{os.path.join(self.dataset_dir, name)}: {unknown!r} is not in variants.txt")
            entries[part] = [(f"{image}.jpg", labels[variant], variant) for image, _, variant in rows]
        return build_split(entries, self.image_dir, self.dataset_dir, published=True)


# ImageNet: ILSVRC 2012 (O. Russakovsky et al., IJCV 2015), and four test sets for models trained on it.
# As in CoOp, the 50,000 images of `val` are the test set, for want of another. CoOp also validates on them; here the
# few-shot validation images are drawn from the training images that are not among the shots, after them, so that the
# shots stay the same; with all training images there is no validation. CoOp takes the images in the order in which the
# file system lists them, so its shots differ between machines; here they are sorted. Shots that CoOp drew on your
# machine can be used again: python -m datasets import-selection.


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


# fmt: off
add_dataset("ImageNetSketch", "Black and white sketches of all 1,000 classes (H. Wang et al., NeurIPS 2019).",
            ImageNetVariant, "imagenet-sketch", "images")
add_dataset("ImageNetA", "Natural adversarial examples of 200 classes (D. Hendrycks et al., CVPR 2021).",
            ImageNetVariant, "imagenet-adversarial", "imagenet-a")
add_dataset("ImageNetR", "Art, cartoons and other renditions of 200 classes (D. Hendrycks et al., ICCV 2021).",
            ImageNetVariant, "imagenet-rendition", "imagenet-r")
