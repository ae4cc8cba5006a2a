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

import csv
import os
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

from dassl.config import cfg_default
from dassl.data.datasets import DATASET_REGISTRY, Datum
from datasets.fewshot import FewShotDataset, relative_path
from datasets.splits import (
    PARTS,
    DataRootError,
    Entry,
    Split,
    SplitFileError,
    build_split,
    check_classes,
    dump_split,
    list_classes,
    list_folders,
    listed,
    names_of,
    read_classnames,
    read_entries,
    read_lines,
    split_classes,
    subfolders,
    with_slashes,
    write_new_text,
)
from prompting.tokens import check_names

SAVED_SPLIT_SEED = 0  # one split for all runs: the runs' seeds draw their shots from it
DELIMITERS = ",;\t"

cfg_default.DATASET.PATH = ""  # folder or csv: its place, relative to DATASET.ROOT; empty: DATASET.ROOT itself


class TableError(SplitFileError):
    """A table of images that cannot be used; the message names the line."""


class Row(NamedTuple):
    """One image as the data describes it; the first three values are its entry in a split file."""

    image: str  # path relative to the data's folder
    label: int  # in a table -1 as long as it follows from the class name
    classname: str  # in a table empty as long as it follows from the label
    part: str = ""  # train, val or test; empty when the data does not say
    domain: str = ""  # empty when the data does not say
    line: int = 0  # in a table


class DescribedData(FewShotDataset):
    """Data that describes itself; without validation images, few-shot ones are held out of the training images."""

    val_from_train: ClassVar[bool] = True
    is_table: ClassVar[bool] = False  # else a folder
    states_split_by: ClassVar[str]  # what data that comes with its split has

    @classmethod
    def find_source(cls, cfg: Any) -> str:
        """Absolute path of the folder or file that describes the data."""
        root, path = cfg.DATASET.ROOT, cfg.DATASET.PATH
        source = os.path.abspath(os.path.join(os.path.expanduser(root), os.path.expanduser(path)))
        if not root and not path:
            raise DataRootError("DATASET.ROOT (--root) and DATASET.PATH are empty: together they say where the data is")
        if not os.path.exists(source):
            raise DataRootError(f"there is no {source}: DATASET.ROOT is {root!r}, DATASET.PATH {path!r}")
        if not cls.is_table and not os.path.isdir(source):
            raise DataRootError(f"{source} is a file, not a folder of images; for a table use DATASET.NAME csv")
        if cls.is_table and os.path.isdir(source):
            tables = sorted(name for name in os.listdir(source) if name.endswith(".csv"))
            found = f"it has {listed(tables)}" if tables else "it has no .csv file"
            raise DataRootError(f"{source} is a folder ({found}): DATASET.PATH must name the table")
        return source

    @staticmethod
    def describe(source: str) -> list[Row]:
        """All images; every one has a part, or none has."""
        raise NotImplementedError

    @classmethod
    def draw_split(cls, source: str, rng: random.Random) -> dict[str, list[Entry]]:
        """Deal every class by 50, 20 and 30 %."""
        rows = cls.describe(source)
        if any(row.part for row in rows):
            raise SplitFileError(f"{source} has {cls.states_split_by}: its split is given")
        return split_classes([row[:3] for row in rows], rng)

    def read(self, cfg: Any) -> Split:
        """The split that the data states, or the saved one."""
        rows = self.describe(self.source)
        if not any(row.part for row in rows):
            return self.with_domains(self.saved_split([row[:3] for row in rows], cfg.OUTPUT_DIR), rows, cfg)
        parts = {part: [row[:3] for row in rows if row.part == part] for part in PARTS}
        for part in ("train", "test"):
            if not parts[part]:
                raise SplitFileError(f"{self.source} has no images in {part!r}")
        self.split_path = self.source
        return self.with_domains(build_split(parts, self.image_dir, self.source), rows, cfg)

    def saved_split(self, rows: Sequence[Entry], output_dir: str) -> Split:
        """The saved split of data that comes without one; drawn and saved when there is none yet.

        `rows` are all images as they are described today: some may be new since, but none gone or changed. The split
        goes to the run's output folder if the data's folder is read-only. Without an output folder there is no run:
        what a run would draw is not saved.
        """
        check_classes({"train": rows, "val": (), "test": ()}, self.source)  # before anything is written
        name = self.drawn_split_file(self.source, SAVED_SPLIT_SEED)
        places = [os.path.join(self.dataset_dir, name), os.path.join(os.path.abspath(output_dir), name)]
        path = next((path for path in places if os.path.isfile(path)), "")
        if not path:
            drawn = split_classes(rows, random.Random(SAVED_SPLIT_SEED))
            if not output_dir:
                print("The data has no split: a run draws one (half train, a fifth val, the rest test) and saves it")
                return build_split(drawn, self.image_dir, self.source)
            text = dump_split(drawn)
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
        parts, sha256 = read_entries(path)
        saved, today = {entry for part in PARTS for entry in parts[part]}, set(rows)
        if saved - today:
            gone = listed(sorted(f"{impath} ({name})" for impath, _, name in saved - today))
            raise SplitFileError(
                f"{path} was drawn from other data: {len(saved - today)} of its images are gone or have another label "
                f"or name: {gone}. Restore them, or move the file away to have a new split drawn."
            )
        if today - saved:
            print(f"{len(today - saved)} images came after {path} was drawn and are left out")
        return build_split(parts, self.image_dir, path, sha256)

    def with_domains(self, split: Split, rows: Sequence[Row], cfg: Any) -> Split:
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
class Folder(DescribedData):
    """Images in class folders."""

    states_split_by: ClassVar[str] = "train and test folders"

    @staticmethod
    def describe(source: str) -> list[Row]:
        """The images of the class folders, in train, val and test where there are such folders, and nothing beside.

        The classes are those of train, called as classnames.txt says, or as their folders; other parts may lack some.
        A class may be called "train": a part has a folder per class.
        """
        folders = subfolders(source)
        parts = [part for part in PARTS if part in folders and subfolders(os.path.join(source, part))]
        lacking = [part for part in ("train", "test") if part not in parts]
        others = [name for name in folders if name not in PARTS]
        if parts and lacking:
            raise SplitFileError(
                f"{source} has {listed(parts)}, each with a folder per class, but no {listed(lacking)}"
            )
        if parts and others:
            raise SplitFileError(f"{source} has {listed(others)} beside train, val and test: move them away")
        classes = list_classes(os.path.join(source, "train") if parts else source)
        path = os.path.join(source, "classnames.txt")
        names = names_of(classes, read_classnames(path, ""), path) if os.path.isfile(path) else classes
        rows = []
        for part in parts or ("",):
            place = os.path.join(source, part)
            if unknown := sorted(set(subfolders(place)) - set(classes)):
                raise SplitFileError(f"{place} has classes that train does not have: {listed(unknown)}")
            rows += [Row(*entry, part) for entry in list_folders(source, classes, names, part)]
        return rows


@DATASET_REGISTRY.register()
class Csv(DescribedData):
    """Images listed in a CSV file."""

    has_domains: ClassVar[bool] = True
    is_table: ClassVar[bool] = True
    states_split_by: ClassVar[str] = "a column 'split'"

    @classmethod
    def drawn_split_file(cls, source: str, seed: int) -> str:
        """Two tables may lie in one folder, so the split's name begins with the table's."""
        return f"{os.path.splitext(os.path.basename(source))[0]}.{super().drawn_split_file(source, seed)}"

    def read_split_file(self, cfg: Any) -> Split:
        """The split that DATASET.SPLIT_FILE names, with the table's domains."""
        return self.with_domains(super().read_split_file(cfg), self.describe(self.source), cfg)

    @staticmethod
    def describe(source: str) -> list[Row]:
        """All rows of a table, with labels and class names; no image twice: it could be trained and tested on."""
        try:
            with open(source, encoding="utf-8-sig", newline="") as file:
                header = file.readline()
                file.seek(0)
                reader = csv.DictReader(file, delimiter=max(DELIMITERS, key=header.count), skipinitialspace=True)
                columns = reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
                if twice := sorted({name for name in columns if columns.count(name) > 1}):
                    raise TableError(f"{source}: columns that come more than once: {listed(twice)}")
                if "image" not in columns or not {"label", "classname"} & set(columns):
                    needed = "needs the columns image and classname or label"
                    raise TableError(f"{source} {needed}; it has {listed(columns, 20)}")
                rows = [parse_row(row, columns, source, reader.line_num) for row in reader]
        except (UnicodeDecodeError, csv.Error) as error:
            raise TableError(f"{source} cannot be read as CSV in UTF-8: {error}") from error
        if not rows:
            raise TableError(f"{source} has no rows")
        lines: dict[str, int] = {}
        for row in rows:
            if lines.setdefault(row.image, row.line) != row.line:
                raise TableError(f"{source}: {row.image} is in line {lines[row.image]} and again in line {row.line}")
        rows = complete(rows, source)
        first = {row.classname: f"line {row.line}" for row in reversed(rows)}
        check_names(list(first), list(first.values()), source)
        return rows


for _dataset in (Folder, Csv):  # under names that are easier to type
    DATASET_REGISTRY.register()(type(_dataset.__name__.lower(), (_dataset,), {"__module__": __name__}))


def parse_row(cells: dict[str, str | None], columns: Sequence[str], path: str, line: int) -> Row:
    """One row of a table; a label that is no number is taken for a class name."""
    where = f"{path}, line {line}"
    if None in cells or None in cells.values():
        raise TableError(f"{where}: {len(columns)} cells expected")
    known = {name: (cells.get(name) or "").strip() for name in ("image", "label", "classname", "split", "domain")}
    empty = [name for name, cell in known.items() if name in columns and not cell]
    if empty:
        raise TableError(f"{where}: {listed(empty)} is empty")
    image, label, name, part, domain = known.values()
    if part not in (*PARTS, ""):
        raise TableError(f"{where}: split is {part!r}; choose from {listed(PARTS)}")
    if label and not label.isdecimal():
        if name and name != label:
            raise TableError(f"{where}: label is {label!r}; beside a class name it must be a number from 0")
        label, name = "", label
    folder = os.path.dirname(os.path.abspath(path))
    image = relative_path(os.path.join(folder, with_slashes(image, folder)), folder)
    return Row(image, int(label) if label else -1, name, part, domain, line)


def complete(rows: list[Row], path: str) -> list[Row]:
    """Give every row its label (by the order of the class names) or its class name (from classnames.txt)."""
    numbered = [row.label >= 0 for row in rows]
    if any(numbered) and not all(numbered):
        other = rows[numbered.index(not numbered[0])]
        raise TableError(f"{path}: labels are numbers in some lines and words in others (line {other.line})")
    if not any(numbered):
        labels = {name: label for label, name in enumerate(sorted({row.classname for row in rows}))}
        return [row._replace(label=labels[row.classname]) for row in rows]
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
    return [row._replace(classname=names[row.label]) for row in rows]
