"""The published data sets in their exact folders, tiny: original annotation, split file, and images full of traps.

Each of CoOp's has five classes of ten images, so that a class is dealt into five, two and three. The split file is in
an order of its own, as the published ones are.
"""

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from scipy.io import savemat

from tests.datasets.trap_images import trap_images

PER_CLASS = 10
BUILDERS: dict[str, Callable[[Path], None]] = {}
ImageRow = tuple[str, int, str]  # path below the image folder, label, class name


def layout(name: str) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Register the builder of a data set."""

    def register(builder: Callable[[Path], None]) -> Callable[[Path], None]:
        BUILDERS[name] = builder
        return builder

    return register


def build_layout(name: str, root: Path) -> None:
    """Write a data set below `root`."""
    BUILDERS[name](root)


def write_images(folder: Path, paths: Iterable[str]) -> None:
    """Write images, one kind after the other; names do not tell the kind."""
    contents = list(trap_images().values())
    for index, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(contents[index % len(contents)])


def write_split(path: Path, rows: list[ImageRow]) -> None:
    """Deal the rows into a published split, shuffled."""
    rng, parts = random.Random(path.name), {"train": [], "val": [], "test": []}
    for label in sorted({row[1] for row in rows}):
        group = [list(row) for row in rows if row[1] == label]
        rng.shuffle(group)
        for part, start, stop in (("train", 0, 5), ("val", 5, 7), ("test", 7, len(group))):
            parts[part] += group[start:stop]
    for part in parts.values():
        rng.shuffle(part)
    path.write_text(json.dumps(parts, indent=4))


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def image_names(stem: str) -> list[str]:
    """Ten names: a space, an accent, capitals and a name that begins as another ends among them."""
    names = [f"{stem}_{number:04d}.jpg" for number in range(1, PER_CLASS - 2)]
    return [*names, f"{stem} 0008.jpg", f"{stem}_é_0009.JPG", f"{stem}_0010.Jpeg"]


def class_folders(root: Path, folder: str, images: str, split: str, classes: dict[str, str], ignored: str = "") -> None:
    """A data set of class folders with a published split."""
    rows = []
    for label, (name, classname) in enumerate(sorted(classes.items())):
        rows += [(f"{name}/{image}", label, classname) for image in image_names(name)]
    write_images(root / folder / images, [row[0] for row in rows])
    write_images(root / folder / images, [f"{name}/image_0001.jpg" for name in ignored.split()])
    (root / folder / images / ".DS_Store").touch()
    (root / folder / images / sorted(classes)[0] / ".hidden").touch()
    write_split(root / folder / split, rows)


def same(*names: str) -> dict[str, str]:
    """Classes that are called as their folders."""
    return {name: name for name in names}


@layout("Caltech101")
def caltech101(root: Path) -> None:
    classes = {"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"}
    classes["yin_yang"] = "yin_yang"
    ignored = "BACKGROUND_Google Faces_easy"
    class_folders(root, "caltech-101", "101_ObjectCategories", "split_zhou_Caltech101.json", classes, ignored)


@layout("DescribableTextures")
def dtd(root: Path) -> None:
    classes = same("banded", "blotchy", "cobwebbed", "polka-dotted", "zigzagged")
    class_folders(root, "dtd", "images", "split_zhou_DescribableTextures.json", classes)


@layout("EuroSAT")
def eurosat(root: Path) -> None:
    classes = {"AnnualCrop": "Annual Crop Land", "Forest": "Forest", "Highway": "Highway or Road", "River": "River"}
    class_folders(root, "eurosat", "2750", "split_zhou_EuroSAT.json", classes | {"SeaLake": "Sea or Lake"})


@layout("Food101")
def food101(root: Path) -> None:
    classes = same("apple_pie", "baby_back_ribs", "crème_brûlée", "french_fries", "waffles")
    class_folders(root, "food-101", "images", "split_zhou_Food101.json", classes)


@layout("OxfordPets")
def oxford_pets(root: Path) -> None:
    folder, rows, lists = root / "oxford_pets", [], {"trainval": [], "test": []}
    for label, breed in enumerate(["Abyssinian", "american_bulldog", "Bengal", "Egyptian_Mau", "pug"]):
        for number in range(1, PER_CLASS + 1):
            rows.append((f"{breed}_{number}.jpg", label, breed.lower()))
            lists["trainval" if number <= 6 else "test"].append(f"{breed}_{number} {label + 1} 1 {label + 1}")
    write_images(folder / "images", [row[0] for row in rows])
    for name, lines in lists.items():
        write_lines(folder / "annotations" / f"{name}.txt", lines)
    write_split(folder / "split_zhou_OxfordPets.json", rows)


@layout("StanfordCars")
def stanford_cars(root: Path) -> None:
    folder, rows = root / "stanford_cars", []
    cars = ["AM General Hummer SUV 2000", "Audi S5 Coupe 2012", "BMW M3 Coupe 2012", "Ram C/V Cargo Van Minivan 2012"]
    cars.append("smart fortwo Convertible 2012")
    names = [f"{car[-4:]} {car[:-5]}" for car in cars]
    annotations = {"cars_train": [], "cars_test": []}
    for number in range(len(cars) * PER_CLASS):
        part, label = ("cars_train" if number < 30 else "cars_test"), number % len(cars)
        rows.append((f"{part}/{number:05d}.jpg", label, names[label]))
        annotations[part].append((f"{number:05d}.jpg", label + 1))
    write_images(folder, [row[0] for row in rows])
    (folder / "devkit").mkdir()
    kinds = [("fname", object), ("class", object)]
    train, test = (np.array(annotations[part], dtype=kinds) for part in ("cars_train", "cars_test"))
    savemat(folder / "devkit" / "cars_train_annos.mat", {"annotations": train.reshape(1, -1)})
    savemat(folder / "cars_test_annos_withlabels.mat", {"annotations": test.reshape(1, -1)})
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": np.array(cars, dtype=object).reshape(1, -1)})
    write_split(folder / "split_zhou_StanfordCars.json", rows)


@layout("OxfordFlowers")
def oxford_flowers(root: Path) -> None:
    folder = root / "oxford_flowers"
    names = ["pink primrose", "hard-leaved pocket orchid", "canterbury bells", "bird of paradise", "sword lily"]
    labels = [3, 1, 5, 2, 4] * PER_CLASS
    rows = [(f"image_{number:05d}.jpg", label - 1, names[label - 1]) for number, label in enumerate(labels, start=1)]
    write_images(folder / "jpg", [row[0] for row in rows])
    savemat(folder / "imagelabels.mat", {"labels": np.array([labels], dtype=np.uint8)})
    write_lines(folder / "cat_to_name.json", [json.dumps({str(i): name for i, name in enumerate(names, start=1)})])
    write_split(folder / "split_zhou_OxfordFlowers.json", rows)


@layout("FGVCAircraft")
def fgvc_aircraft(root: Path) -> None:
    folder, parts = root / "fgvc_aircraft", {"train": [], "val": [], "test": []}
    variants = ["737-300", "Boeing 717", "F/A-18", "DC-3", "Yak-42"]
    for number in range(len(variants) * PER_CLASS):
        part = ("train", "train", "train", "train", "train", "val", "val", "test", "test", "test")[number % PER_CLASS]
        parts[part].append(f"{number:07d} {variants[number // PER_CLASS]}")
    for part, lines in parts.items():
        random.Random(part).shuffle(lines)
        write_lines(folder / f"images_variant_{part}.txt", lines)
    write_lines(folder / "variants.txt", variants)
    write_images(folder / "images", [f"{number:07d}.jpg" for number in range(len(variants) * PER_CLASS)])


@layout("SUN397")
def sun397(root: Path) -> None:
    folder, rows, lists = root / "sun397", [], {"Training_01": [], "Testing_01": []}
    scenes = {"a/abbey": "abbey", "a/apse/indoor": "indoor apse", "c/church/indoor": "indoor church"}
    scenes |= {"c/church/outdoor": "outdoor church", "y/yard": "yard"}
    for label, (scene, classname) in enumerate(scenes.items()):
        for number in range(PER_CLASS):
            rows.append((f"{scene}/sun_a{number:02d}.jpg", label, classname))
            lists["Training_01" if number < 6 else "Testing_01"].append(f"/{rows[-1][0]}")
    write_images(folder / "SUN397", [row[0] for row in rows])
    write_lines(folder / "ClassName.txt", [f"/{scene}" for scene in scenes])
    for name, lines in lists.items():
        write_lines(folder / f"{name}.txt", lines)
    write_split(folder / "split_zhou_SUN397.json", rows)


@layout("UCF101")
def ucf101(root: Path) -> None:
    folder, rows, lists = root / "ucf101", [], {"trainlist01": [], "testlist01": []}
    actions = {"ApplyEyeMakeup": "Apply_Eye_Makeup", "HandstandPushups": "Handstand_Pushups", "TaiChi": "Tai_Chi"}
    actions |= {"Typing": "Typing", "YoYo": "Yo_Yo"}
    for label, (action, classname) in enumerate(actions.items()):
        for number in range(PER_CLASS):
            rows.append((f"{classname}/v_{action}_g01_c{number:02d}.jpg", label, classname))
            video = f"{action}/v_{action}_g01_c{number:02d}.avi"
            if number < 6:
                lists["trainlist01"].append(f"{video} {label + 1}")
            else:
                lists["testlist01"].append(video)
    write_images(folder / "UCF-101-midframes", [row[0] for row in rows])
    write_lines(
        folder / "ucfTrainTestlist" / "classInd.txt", [f"{i} {name}" for i, name in enumerate(actions, start=1)]
    )
    for name, lines in lists.items():
        write_lines(folder / "ucfTrainTestlist" / f"{name}.txt", lines)
    write_split(folder / "split_zhou_UCF101.json", rows)


WNIDS = {
    "n01440764": "tench",
    "n01514859": "hen",
    "n02356798": "fox squirrel",
    "n03773504": "missile",
    "n04008634": "missile",  # the real list has such pairs too
    "n15075141": "toilet paper",
}


def write_classnames(folder: Path) -> None:
    """ImageNet's class names, which its variants share."""
    write_lines(folder / "classnames.txt", [f"{wnid} {name}" for wnid, name in WNIDS.items()])


def wnid_images(wnids: Iterable[str], stem: str, count: int = PER_CLASS) -> list[str]:
    """Images in folders named by WordNet's numbers."""
    return [f"{wnid}/{wnid}_{stem}{number}.JPEG" for wnid in wnids for number in range(count)]


@layout("ImageNet")
def imagenet(root: Path) -> None:
    folder = root / "imagenet"
    write_images(folder / "images" / "train", wnid_images(WNIDS, ""))
    write_images(folder / "images" / "val", wnid_images(WNIDS, "val", 3))
    write_classnames(folder)


@layout("ImageNetV2")
def imagenetv2(root: Path) -> None:
    images = [f"{label}/{number}.jpeg" for label in range(len(WNIDS)) for number in range(4)]
    write_images(root / "imagenetv2" / "imagenetv2-matched-frequency-format-val", images)
    write_classnames(root / "imagenetv2")


@layout("ImageNetSketch")
def imagenet_sketch(root: Path) -> None:
    write_images(root / "imagenet-sketch" / "images", wnid_images(WNIDS, "sketch_"))
    write_classnames(root / "imagenet-sketch")


@layout("ImageNetA")
def imagenet_a(root: Path) -> None:
    folder = root / "imagenet-adversarial"
    write_images(folder / "imagenet-a", wnid_images(["n01514859", "n02356798", "n15075141"], "a"))
    (folder / "imagenet-a" / "README.txt").touch()
    write_classnames(folder)


@layout("ImageNetR")
def imagenet_r(root: Path) -> None:
    folder = root / "imagenet-rendition"
    write_images(folder / "imagenet-r", wnid_images(["n01440764", "n03773504", "n15075141"], "art_"))
    (folder / "imagenet-r" / "README.txt").touch()
    write_classnames(folder)


def write_lists(folder: Path, images: dict[str, list[str]], first: int, names: dict[str, str]) -> None:
    """Dassl's lists of a domain's images: `images` by class folder, dealt into the two lists that `names` has."""
    for part, kept in (("train", slice(0, 6)), ("val", slice(6, None))):
        rows = [
            f"{image} {label}"
            for label, (_, group) in enumerate(sorted(images.items()), start=first)
            for image in group[kept]
        ]
        write_lines(folder / "splits" / names[part], rows)


@layout("PACS")
def pacs(root: Path) -> None:
    folder = root / "pacs"
    for domain in ("art_painting", "cartoon", "photo", "sketch"):
        names = ("dog", "elephant", "guitar", "house", "person")
        images = {name: [f"{domain}/{name}/pic_{number:03d}.jpg" for number in range(8)] for name in names}
        if domain == "sketch":
            images["dog"].append("sketch/dog/n02103406_4068-1.png")  # the one that Dassl leaves out
        write_images(folder / "images", [image for group in images.values() for image in group])
        lists = {"train": f"{domain}_train_kfold.txt", "val": f"{domain}_crossval_kfold.txt"}
        write_lists(folder, images, 1, lists)


@layout("OfficeHomeDG")
def office_home_dg(root: Path) -> None:
    for domain in ("art", "clipart", "product", "real_world"):
        for part, count in (("train", 6), ("val", 2)):
            names = ("Alarm_Clock", "Bike", "TV", "Table", "Webcam")  # TV comes before Table
            images = [f"{name}/{part}_{number}.jpg" for name in names for number in range(count)]
            write_images(root / "office_home_dg" / domain / part, images)


@layout("VLCS")
def vlcs(root: Path) -> None:
    for domain in ("CALTECH", "LABELME", "PASCAL", "SUN"):
        for part, count in (("train", 6), ("crossval", 2), ("test", 3), ("full", 8)):
            images = [f"{label}/{part}_imgs_{number}.jpg" for label in range(5) for number in range(count)]
            write_images(root / "VLCS" / domain / part, images)


@layout("DomainNet")
def domainnet(root: Path) -> None:
    folder = root / "domainnet"
    for domain in ("clipart", "infograph", "painting", "quickdraw", "real", "sketch"):
        names = ("The_Eiffel_Tower", "aircraft_carrier", "airplane", "t-shirt", "zigzag")
        images = {name: [f"{domain}/{name}/{domain}_{name}_{number}.jpg" for number in range(8)] for name in names}
        if domain == "painting":
            images["t-shirt"] = []
        write_images(folder, [image for group in images.values() for image in group])
        write_lists(folder, images, 0, {"train": f"{domain}_train.txt", "val": f"{domain}_test.txt"})


def write_name_lists(folder: Path, images: Path, stem: str, names: dict[str, str]) -> None:
    """A remote sensing data set: class folders, and lists of the images' names without their folders."""
    parts: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for number in range(PER_CLASS):
        for name, pattern in names.items():
            parts[("train", "train", "train", "val", "test")[number % 5]].append(pattern.format(number))
            write_images(images, [f"{name}/{pattern.format(number)}"])
    for part, lines in parts.items():
        random.Random(part).shuffle(lines)
        (folder / f"{stem}-{part}.txt").write_text("\n".join(lines))


@layout("RESISC45")
def resisc45(root: Path) -> None:
    folder = root / "resisc45"
    names = ("airplane", "baseball_diamond", "beach", "freeway", "sea_ice")
    patterns = {name: f"{name}_{{:03d}}.jpg" for name in names}
    write_name_lists(folder, folder / "NWPU-RESISC45", "resisc45", patterns)


@layout("UCMerced")
def ucmerced(root: Path) -> None:
    folder = root / "ucmerced"
    names = ("agricultural", "baseballdiamond", "beach", "mobilehomepark", "storagetanks")
    patterns = {name: f"{name}{{:02d}}.tif" for name in names}
    write_name_lists(folder, folder / "UCMerced_LandUse" / "Images", "uc_merced", patterns)
