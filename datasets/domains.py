"""The data sets of domain generalization, in the folders and with the lists of Dassl.pytorch (K. Zhou et al.).

A run trains and validates on DATASET.SOURCE_DOMAINS and is tested on DATASET.TARGET_DOMAINS. Shots are drawn per class
from the images of all source domains together, as Dassl's draw does it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

from dassl.data.datasets import Datum
from datasets.fewshot import FewShotDataset
from datasets.splits import (
    Entry,
    Split,
    SplitFileError,
    build_split,
    find_image_dir,
    list_classes,
    list_folders,
    listed,
    read_lines,
)
from datasets.standard import add_dataset

BROKEN = ("sketch/dog/n02103406_4068-1.png",)  # an image of PACS that Dassl leaves out
VLCS_NAMES = {"0": "bird", "1": "car", "2": "chair", "3": "dog", "4": "person"}  # its class folders have numbers


class Domains(NamedTuple):
    """A data set. Each part is made of files that list images, or of folders with a folder per class."""

    name: str
    folder: str
    images: str
    about: str
    domains: tuple[str, ...]
    train: tuple[str, ...]  # of a source domain; "{}" stands for the domain's folder
    val: tuple[str, ...]  # likewise
    test: tuple[str, ...]  # of a target domain
    first_label: int = 0  # in the lists
    domain_folder: Callable[[str], str] = str
    classname: Callable[[str], str] = str  # of a class folder


PACS_LISTS = ("splits/{}_train_kfold.txt", "splits/{}_crossval_kfold.txt")
# fmt: off
TABLE = (
    Domains("PACS", "pacs", "images",
            "7 classes in photos, art paintings, cartoons and sketches (D. Li et al., ICCV 2017).",
            ("art_painting", "cartoon", "photo", "sketch"),
            PACS_LISTS[:1], PACS_LISTS[1:], PACS_LISTS, first_label=1),
    Domains("OfficeHomeDG", "office_home_dg", "",
            "65 things of offices and homes in four domains (H. Venkateswara et al., CVPR 2017).",
            ("art", "clipart", "product", "real_world"),
            ("{}/train",), ("{}/val",), ("{}/train", "{}/val"), classname=str.lower),
    Domains("VLCS", "VLCS", "",
            "5 classes of four older data sets of photos (C. Fang, Y. Xu, D. N. Rockmore, ICCV 2013).",
            ("caltech", "labelme", "pascal", "sun"),
            ("{}/train",), ("{}/crossval",), ("{}/test",),
            domain_folder=str.upper, classname=lambda folder: VLCS_NAMES.get(folder, folder)),
    Domains("DomainNet", "domainnet", "",
            "345 classes in six domains (X. Peng et al., ICCV 2019).",
            ("clipart", "infograph", "painting", "quickdraw", "real", "sketch"),
            ("splits/{}_train.txt",), ("splits/{}_test.txt",), ("splits/{}_test.txt",)),
)
# fmt: on


class DomainDataset(FewShotDataset):
    """A row of the table as a data set."""

    row: ClassVar[Domains]
    has_domains: ClassVar[bool] = True

    def read(self, cfg: Any) -> Split:
        """Training and validation images of the source domains, test images of the target domains."""
        row, source, target = self.row, list(cfg.DATASET.SOURCE_DOMAINS), list(cfg.DATASET.TARGET_DOMAINS)
        self.check_input_domains(source, target)
        named = [*source, *target]
        if twice := sorted({domain for domain in named if named.count(domain) > 1}):
            raise ValueError(
                f"DATASET.SOURCE_DOMAINS {source} and DATASET.TARGET_DOMAINS {target} name {listed(twice)} more than "
                "once: a domain is either trained on or tested on"
            )
        self.split_path = self.dataset_dir
        parts = {"train": (source, row.train), "val": (source, row.val), "test": (target, row.test)}
        wanted = {  # by part: a domain's number among the source or target domains, as Dassl has it, and its places
            part: [(index, text.format(row.domain_folder(name))) for index, name in enumerate(names) for text in texts]
            for part, (names, texts) in parts.items()
        }
        places = {place for found in wanted.values() for _, place in found}
        if row.train[0].endswith(".txt"):
            entries = {place: self.read_list(place, cfg) for place in places}
        else:
            folders = [find_image_dir(self.dataset_dir, place) for place in sorted(places)]
            classes = sorted({name for folder in folders for name in list_classes(folder)})
            names = [row.classname(name) for name in classes]
            entries = {place: list_folders(self.dataset_dir, classes, names, place) for place in places}
        rows = {part: [entry for _, place in found for entry in entries[place]] for part, found in wanted.items()}
        where = f"{self.dataset_dir} (trained on {', '.join(source)})"
        split = build_split(rows, self.image_dir, where, published=True)
        items = {}
        for part, found in wanted.items():
            domains = [index for index, place in found for _ in entries[place]]
            items[part] = [
                Datum(item.impath, item.label, domain, item.classname)
                for item, domain in zip(getattr(split, part), domains, strict=True)
            ]
        return replace(split, **items)

    def read_list(self, place: str, cfg: Any) -> list[Entry]:
        """The images that a file lists, by lines of "sketch/dog/1.png 1"; the class is called as the image's folder."""
        path, entries = self.beside(place), []
        for number, line in enumerate(read_lines(path, self.how_to_get(cfg, place)), start=1):
            image, _, label = line.rpartition(" ")
            if line and not (image.count("/") == 2 and label.isdecimal() and int(label) >= self.row.first_label):
                raise SplitFileError(f"{path}, line {number}: expected 'DOMAIN/CLASS/IMAGE LABEL', found {line[:80]!r}")
            if line and image not in BROKEN:
                name = self.row.classname(image.split("/")[1])
                entries.append((image, int(label) - self.row.first_label, name))
        if not entries:
            raise SplitFileError(f"{path} lists no images. {self.how_to_get(cfg, place)}")
        return entries

    def read_split_file(self, cfg: Any) -> Split:
        """Refused: the split is that of the domains."""
        raise SplitFileError(f"{type(self).__name__} comes with its split: leave DATASET.SPLIT_FILE out")


for _row in TABLE:
    add_dataset(_row.name, _row.about, DomainDataset, _row.folder, _row.images, row=_row, domains=list(_row.domains))
