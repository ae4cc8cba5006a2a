"""Read a table of images: the rows of a CSV file, checked line by line."""

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from datasets.imagefolders import read_lines
from datasets.sampling import relative_path
from datasets.splitfile import PARTS, Entry, SplitFileError, listed, with_slashes
from prompting.tokens import check_names

DELIMITERS = ",;\t"


class TableError(SplitFileError):
    """A table of images that cannot be used; the message names the line."""


@dataclass(frozen=True)
class Row:
    """One image.

    Attributes:
        line: its line in the table.
        image: path relative to the table's folder.
        label: class label; -1 as long as it follows from the class name.
        classname: class name; empty as long as it follows from the label.
        part: train, val or test; empty when the table does not say.
        domain: name of its domain; empty when the table does not say.
    """

    line: int
    image: str
    label: int
    classname: str
    part: str
    domain: str

    @property
    def entry(self) -> Entry:
        """The image as a split file has it."""
        return self.image, self.label, self.classname


def read_table(path: str) -> list[Row]:
    """All rows of a table, with labels and class names.

    Raises:
        TableError: a column is missing, a cell is empty or wrong, or an image comes twice.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            file.seek(0)
            reader = csv.DictReader(file, delimiter=max(DELIMITERS, key=header.count), skipinitialspace=True)
            columns = check_columns([name.strip() for name in reader.fieldnames or []], path)
            reader.fieldnames = columns
            rows = [parse_row(row, columns, path, reader.line_num) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise TableError(f"{path} cannot be read as CSV in UTF-8: {error}") from error
    if not rows:
        raise TableError(f"{path} has no rows")
    check_images_differ(rows, path)
    rows = complete(rows, path)
    first = {row.classname: f"line {row.line}" for row in reversed(rows)}
    check_names(list(first), list(first.values()), path)
    return rows


def check_columns(columns: list[str], path: str) -> list[str]:
    """The column names, once those that are needed are there."""
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise TableError(f"{path}: columns that come more than once: {listed(twice)}")
    if "image" not in columns or not {"label", "classname"} & set(columns):
        raise TableError(f"{path} needs the columns image and classname or label; it has {listed(columns, 20)}")
    return columns


def parse_row(cells: dict[str, str | None], columns: Sequence[str], path: str, line: int) -> Row:
    """One row, its label a number or its text taken for a class name."""
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


def check_images_differ(rows: Sequence[Row], path: str) -> None:
    """Refuse an image that comes twice: it could be trained and tested on."""
    lines: dict[str, int] = {}
    for row in rows:
        if lines.setdefault(row.image, row.line) != row.line:
            raise TableError(f"{path}: {row.image} is in line {lines[row.image]} and again in line {row.line}")


def complete(rows: list[Row], path: str) -> list[Row]:
    """Give every row its label (by the order of the class names) or its class name (from classnames.txt)."""
    numbered = [row.label >= 0 for row in rows]
    if all(numbered):
        return rows if all(row.classname for row in rows) else name_labels(rows, path)
    if any(numbered):
        other = rows[numbered.index(not numbered[0])]
        raise TableError(f"{path}: labels are numbers in some lines and words in others (line {other.line})")
    labels = {name: label for label, name in enumerate(sorted({row.classname for row in rows}))}
    return [replace(row, label=labels[row.classname]) for row in rows]


def name_labels(rows: list[Row], path: str) -> list[Row]:
    """Rows with the names of their labels, from the lines of classnames.txt."""
    names_path = os.path.join(os.path.dirname(os.path.abspath(path)), "classnames.txt")
    if not os.path.isfile(names_path):
        raise TableError(
            f"{path}: labels are numbers. Add a column classname, or {names_path} with the name of label 0 in its "
            "first line, of label 1 in its second, and so on"
        )
    names = read_lines(names_path)
    while names and not names[-1]:
        names.pop()
    beyond = next((row for row in rows if row.label >= len(names)), None)
    if beyond:
        raise TableError(f"{path}, line {beyond.line}: label {beyond.label}, but {names_path} has {len(names)} lines")
    return [replace(row, classname=names[row.label]) for row in rows]
