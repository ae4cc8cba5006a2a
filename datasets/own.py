"""Your images, without code: in folders, or in a table. Without a split, one is drawn once, saved and used ever after.

    DATASET:
      NAME: folder
      PATH: flowers              # under --root
      LABEL: my_flowers          # its name in results; default: the last part of PATH
      TEMPLATE: "a photo of a {}, a kind of flower."

    flowers/train/daisy/*.jpg    flowers/daisy/*.jpg
    flowers/val/daisy/*.jpg      flowers/rose/*.jpg
    flowers/test/daisy/*.jpg     flowers/classnames.txt

`val` may be left out. Classes are called as their folders, or as a `classnames.txt` with lines of "folder class name"
says. Or a table, with one row per image:

    DATASET:
      NAME: csv
      PATH: birds/images.csv

    image,classname,split,domain
    photos/0001.jpg,house sparrow,train,garden

Columns: `image`, relative to the table's folder; `classname`, or `label`, or both; and, where wanted, `split` (train,
val or test) and `domain`. Labels that are numbers take their names from a `classname` column or from line number label
+ 1 of a `classnames.txt` beside the table. With `domain`, DATASET.SOURCE_DOMAINS and DATASET.TARGET_DOMAINS say which
domains to train and validate, and to test on.
"""

import csv as csv_files
import hashlib
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from dassl.config import cfg_default
from dassl.data.datasets import DATASET_REGISTRY, Datum
from datasets.fewshot import FewShotDataset
from datasets.folders import DataRootError, list_classes, list_images, names_of, read_classnames, read_lines, subfolders
from datasets.selection import relative_path
from datasets.splits import (
    PARTS,
    Entry,
    Split,
    SplitFileError,
    build_split,
    check_classes,
    dump_split,
    listed,
    parse_entries,
    read_limited,
    split_classes,
    with_slashes,
    write_new_text,
)
from prompting.tokens import check_names

SAVED_SPLIT_SEED = 0  # one split for all runs: the runs' seeds draw their shots from it
DELIMITERS = ",;\t"

cfg_default.DATASET.PATH = ""  # folder or csv: its place, relative to DATASET.ROOT; empty: DATASET.ROOT itself


class OwnData(FewShotDataset):
    """Data that describes itself; without validation images, few-shot ones are held out of the training images."""

    val_from_train: ClassVar[bool] = True

    @classmethod
    def find_source(cls, cfg: Any) -> str:
        """Absolute path of the folder or file that describes the data."""
        root, path = cfg.DATASET.ROOT, cfg.DATASET.PATH
        source = os.path.abspath(os.path.join(os.path.expanduser(root), os.path.expanduser(path)))
        if not root and not path:
            raise DataRootError("DATASET.ROOT (--root) and DATASET.PATH are empty: together they say where the data is")
        if not os.path.exists(source):
            raise DataRootError(f"there is no {source}: DATASET.ROOT is {root!r}, DATASET.PATH {path!r}")
        return source

    def saved_split(self, rows: Sequence[Entry], output_dir: str) -> Split:
        """The saved split of data that comes without one; drawn and saved when there is none yet.

        `rows` are all images as they are described today: some may be new since, but none gone or changed. The split
        goes to the run's output folder if the data's folder is read-only.
        """
        check_classes({"train": rows, "val": (), "test": ()}, self.source)  # before anything is written
        name = self.drawn_split_file(self.source, SAVED_SPLIT_SEED)
        places = [os.path.join(self.dataset_dir, name), os.path.join(os.path.abspath(output_dir), name)]
        path = next((path for path in places if os.path.isfile(path)), "")
        if not path:
            text = dump_split(split_classes(rows, random.Random(SAVED_SPLIT_SEED)))
            path = places[0]
            try:
                write_new_text(path, text)
            except PermissionError as error:
                path = places[1]
                print(f"{error}; trying {path}")
                write_new_text(path, text)
            print(f"The data has no split: drew one (half train, a fifth val, the rest test) and saved it to {path}")
        print(f"Reading split from {path}")
        self.split_path = path
        content = read_limited(path)
        parts = parse_entries(content, path)
        saved, today = {entry for part in PARTS for entry in parts[part]}, set(rows)
        if saved - today:
            gone = listed(sorted(f"{impath} ({name})" for impath, _, name in saved - today))
            raise SplitFileError(
                f"{path} was drawn from other data: {len(saved - today)} of its images are gone or have another label "
                f"or name: {gone}. Restore them, or move the file away to have a new split drawn."
            )
        if today - saved:
            print(f"{len(today - saved)} images came after {path} was drawn and are left out")
        return build_split(parts, self.image_dir, path, hashlib.sha256(content).hexdigest())

    def given_split(self, parts: dict[str, list[Entry]]) -> Split:
        """A split that the data states itself."""
        for part in ("train", "test"):
            if not parts[part]:
                raise SplitFileError(f"{self.source} has no images in {part!r}")
        self.split_path = self.source
        return build_split(parts, self.image_dir, self.source)


@DATASET_REGISTRY.register()
class Folder(OwnData):
    """Images in class folders."""

    @classmethod
    def find_source(cls, cfg: Any) -> str:
        """The folder itself."""
        source = super().find_source(cfg)
        if not os.path.isdir(source):
            raise DataRootError(f"{source} is a file, not a folder of images; for a table use DATASET.NAME csv")
        return source

    @classmethod
    def draw_split(cls, source: str, rng: random.Random) -> dict[str, list[Entry]]:
        """Deal every class by 50, 20 and 30 %."""
        if has_parts(source):
            raise SplitFileError(f"{source} has train and test folders: its split is given")
        return split_classes(list_parts(source, ("",))[""], rng)

    def read(self, cfg: Any) -> Split:
        """The split that the folders state, or the saved one."""
        if has_parts(self.source):
            return self.given_split(list_parts(self.source, PARTS))
        return self.saved_split(list_parts(self.source, ("",))[""], cfg.OUTPUT_DIR)


@DATASET_REGISTRY.register()
class folder(Folder):
    """`Folder` under a name that is easier to type."""


def has_parts(folder: str) -> bool:
    """Does the folder have train and test folders, and nothing beside (not classes that happen to be called so)?"""
    found = [name for name in subfolders(folder) if name in PARTS and subfolders(os.path.join(folder, name))]
    if not found:
        return False
    lacking = [part for part in ("train", "test") if part not in found]
    others = [name for name in subfolders(folder) if name not in PARTS]
    if lacking:
        raise SplitFileError(f"{folder} has {listed(found)}, each with a folder per class, but no {listed(lacking)}")
    if others:
        raise SplitFileError(f"{folder} has {listed(others)} beside train, val and test: move them away")
    return True


def list_parts(folder: str, parts: Sequence[str]) -> dict[str, list[Entry]]:
    """The images of each part, a folder of class folders; the classes are those of the first part.

    Classes are called as classnames.txt says, or as their folders; one may be missing from the other parts.
    """
    places = {part: os.path.join(folder, part) if part else folder for part in parts}
    classes = list_classes(places[parts[0]])
    path = os.path.join(folder, "classnames.txt")
    names = names_of(classes, read_classnames(path, ""), path) if os.path.isfile(path) else classes
    entries: dict[str, list[Entry]] = {}
    for part, place in places.items():
        present = subfolders(place)
        unknown = sorted(set(present) - set(classes))
        if unknown:
            raise SplitFileError(f"{place} has classes that train does not have: {listed(unknown)}")
        entries[part] = [
            ("/".join(filter(None, (part, name, image))), label, names[label])
            for label, name in enumerate(classes)
            if name in present
            for image in list_images(os.path.join(place, name))
        ]
    return entries


class TableError(SplitFileError):
    """A table of images that cannot be used; the message names the line."""


@DATASET_REGISTRY.register()
class Csv(OwnData):
    """Images listed in a CSV file."""

    has_domains: ClassVar[bool] = True

    @classmethod
    def find_source(cls, cfg: Any) -> str:
        """The table."""
        source = super().find_source(cfg)
        if os.path.isdir(source):
            tables = sorted(name for name in os.listdir(source) if name.endswith(".csv"))
            found = f"it has {listed(tables)}" if tables else "it has no .csv file"
            raise DataRootError(f"{source} is a folder ({found}): DATASET.PATH must name the table")
        return source

    @classmethod
    def drawn_split_file(cls, source: str, seed: int) -> str:
        """Two tables may lie in one folder, so the split's name begins with the table's."""
        return f"{os.path.splitext(os.path.basename(source))[0]}.{super().drawn_split_file(source, seed)}"

    @classmethod
    def draw_split(cls, source: str, rng: random.Random) -> dict[str, list[Entry]]:
        """Deal every class by 50, 20 and 30 %."""
        rows = read_table(source)
        if any(row.part for row in rows):
            raise TableError(f"{source} has a column 'split': its split is given")
        return split_classes([row.entry for row in rows], rng)

    def read(self, cfg: Any) -> Split:
        """The split that the table states, or the saved one."""
        rows = read_table(self.source)
        if any(row.part for row in rows):
            split = self.given_split({part: [row.entry for row in rows if row.part == part] for part in PARTS})
        else:
            split = self.saved_split([row.entry for row in rows], cfg.OUTPUT_DIR)
        return self.with_domains(split, rows, cfg)

    def read_split_file(self, cfg: Any) -> Split:
        """The split that DATASET.SPLIT_FILE names, with the table's domains."""
        return self.with_domains(super().read_split_file(cfg), read_table(self.source), cfg)

    def with_domains(self, split: Split, rows: Sequence["Row"], cfg: Any) -> Split:
        """The split with each image's domain, reduced to the configured domains."""
        self.domains = sorted({row.domain for row in rows if row.domain})
        source, target = cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS
        if source or target:
            self.check_input_domains(source, target)
        if not self.domains:
            return split
        domain_of = {row.image: row.domain for row in rows}
        parts: dict[str, list[Datum]] = {part: [] for part in PARTS}
        for part, wanted in (("train", source), ("val", source), ("test", target)):
            for item in getattr(split, part):
                image = relative_path(item.impath, self.image_dir)
                if image not in domain_of:
                    raise SplitFileError(f"{self.source} does not list {image}, which the split {self.split_path} has")
                if not wanted or domain_of[image] in wanted:
                    domain = self.domains.index(domain_of[image])
                    parts[part].append(Datum(item.impath, item.label, domain, item.classname))
        untrained = set(range(len(split.classnames))) - {item.label for item in parts["train"]}
        if untrained or not parts["test"]:
            what = f"training images of {listed(split.classnames[label] for label in sorted(untrained))}"
            raise SplitFileError(f"{self.source} has no {what if untrained else 'test images'} in these domains")
        return replace(split, **parts)


@DATASET_REGISTRY.register()
class csv(Csv):
    """`Csv` under a name that is easier to type."""


@dataclass(frozen=True)
class Row:
    """One image of a table."""

    line: int  # in the table
    image: str  # path relative to the table's folder
    label: int  # -1 as long as it follows from the class name
    classname: str  # empty as long as it follows from the label
    part: str  # train, val or test; empty when the table does not say
    domain: str  # empty when the table does not say

    @property
    def entry(self) -> Entry:
        """The image as a split file has it."""
        return self.image, self.label, self.classname


def read_table(path: str) -> list[Row]:
    """All rows of a table, with labels and class names; no image twice: it could be trained and tested on."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            file.seek(0)
            reader = csv_files.DictReader(file, delimiter=max(DELIMITERS, key=header.count), skipinitialspace=True)
            columns = [name.strip() for name in reader.fieldnames or []]
            twice = sorted({name for name in columns if columns.count(name) > 1})
            if twice:
                raise TableError(f"{path}: columns that come more than once: {listed(twice)}")
            if "image" not in columns or not {"label", "classname"} & set(columns):
                raise TableError(f"{path} needs the columns image and classname or label; it has {listed(columns, 20)}")
            reader.fieldnames = columns
            rows = [parse_row(row, columns, path, reader.line_num) for row in reader]
    except (UnicodeDecodeError, csv_files.Error) as error:
        raise TableError(f"{path} cannot be read as CSV in UTF-8: {error}") from error
    if not rows:
        raise TableError(f"{path} has no rows")
    lines: dict[str, int] = {}
    for row in rows:
        if lines.setdefault(row.image, row.line) != row.line:
            raise TableError(f"{path}: {row.image} is in line {lines[row.image]} and again in line {row.line}")
    rows = complete(rows, path)
    first = {row.classname: f"line {row.line}" for row in reversed(rows)}
    check_names(list(first), list(first.values()), path)
    return rows


def parse_row(cells: dict[str, str | None], columns: Sequence[str], path: str, line: int) -> Row:
    """One row; a label that is no number is taken for a class name."""
    where = f"{path}, line {line}"
    if None in cells or None in cells.values():
        raise TableError(f"{where}: {len(columns)} cells expected")
    known = {name: (cells.get(name) or "").strip() for name in ("image", "label", "classname", "split", "domain")}
    empty = [name for name, cell in known.items() if name in columns and not cell]
    if empty:
        raise TableError(f"{where}: {listed(empty)} is empty")
    if known["split"] not in (*PARTS, ""):
        raise TableError(f"{where}: split is {known['split']!r}; choose from {listed(PARTS)}")
    label, name = known["label"], known["classname"]
    if label and not label.isdecimal():
        if name and name != label:
            raise TableError(f"{where}: label is {label!r}; beside a class name it must be a number from 0")
        label, name = "", label
    folder = os.path.dirname(os.path.abspath(path))
    image = relative_path(os.path.join(folder, with_slashes(known["image"], folder)), folder)
    return Row(line, image, int(label) if label else -1, name, known["split"], known["domain"])


def complete(rows: list[Row], path: str) -> list[Row]:
    """Give every row its label (by the order of the class names) or its class name (from classnames.txt)."""
    numbered = [row.label >= 0 for row in rows]
    if any(numbered) and not all(numbered):
        other = rows[numbered.index(not numbered[0])]
        raise TableError(f"{path}: labels are numbers in some lines and words in others (line {other.line})")
    if not any(numbered):
        labels = {name: label for label, name in enumerate(sorted({row.classname for row in rows}))}
        return [replace(row, label=labels[row.classname]) for row in rows]
    if all(row.classname for row in rows):
        return rows
    names_path = os.path.join(os.path.dirname(os.path.abspath(path)), "classnames.txt")
    if not os.path.isfile(names_path):
        raise TableError(
            f"{path}: labels are numbers. Add a column classname, or {names_path} with the name of label 0 in its "
            "first line, of label 1 in its second, and so on"
        )
    names = read_lines(names_path)
    while names and not names[-1]:
        names.pop()
    outside = next((row for row in rows if row.label >= len(names)), None)
    if outside:
        raise TableError(f"{path}, line {outside.line}: label {outside.label}, but {names_path} has {len(names)} lines")
    return [replace(row, classname=names[row.label]) for row in rows]
