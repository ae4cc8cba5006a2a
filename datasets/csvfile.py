"""Your own images in a table, without code: one row per image, with its label or class name.

    DATASET:
      NAME: csv
      PATH: birds/images.csv     # under --root
      TEMPLATE: "a photo of a {}, a kind of bird."

    image,classname,split,domain
    photos/0001.jpg,house sparrow,train,garden

Columns: `image`, relative to the table's folder; `classname`, or `label`, or both; and, where wanted, `split` (train,
val or test) and `domain`. Labels that are numbers take their names from a `classname` column or from line number label
+ 1 of a `classnames.txt` beside the table. Without `split`, the split is drawn once and saved. With `domain`,
DATASET.SOURCE_DOMAINS and DATASET.TARGET_DOMAINS say which domains to train and validate, and to test on.
"""

import os
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from dassl.data.datasets import DATASET_REGISTRY, Datum
from datasets.annotation import split_classes
from datasets.locate import DataRootError
from datasets.owndata import OwnData
from datasets.sampling import relative_path
from datasets.splitfile import PARTS, Entry, Split, SplitFileError, listed
from datasets.table import Row, TableError, read_table


@DATASET_REGISTRY.register()
class Csv(OwnData):
    """Images listed in a CSV file."""

    has_domains: ClassVar[bool] = True

    @classmethod
    def find_source(cls, root: str, cfg: Any = None) -> str:
        """The table."""
        source = super().find_source(root, cfg)
        if os.path.isdir(source):
            tables = sorted(name for name in os.listdir(source) if name.endswith(".csv"))
            found = f"it has {listed(tables)}" if tables else "it has no .csv file"
            raise DataRootError(f"{source} is a folder ({found}): DATASET.PATH must name the table")
        return source

    @classmethod
    def own_split_file(cls, source: str, seed: int) -> str:
        """Two tables may lie in one folder, so the split's name begins with the table's."""
        return f"{os.path.splitext(os.path.basename(source))[0]}.{super().own_split_file(source, seed)}"

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
            parts = {part: [row.entry for row in rows if row.part == part] for part in PARTS}
            return self.with_domains(self.given_split(parts, self.source), rows, cfg)
        return self.with_domains(self.saved_split([row.entry for row in rows], cfg.OUTPUT_DIR), rows, cfg)

    def read_split_file(self, cfg: Any) -> Split:
        """A split of your own, with the table's domains."""
        return self.with_domains(super().read_split_file(cfg), read_table(self.source), cfg)

    def with_domains(self, split: Split, rows: Sequence[Row], cfg: Any) -> Split:
        """The split with each image's domain, reduced to the configured domains.

        Raises:
            ValueError: only one of the two domain settings is given, or a domain is unknown.
            SplitFileError: an image of the split is not in the table, or a class has no training image left.
        """
        self.domains = sorted({row.domain for row in rows if row.domain})
        source, target = cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS
        if source or target:
            self.check_input_domains(source, target)
        if not self.domains:
            return split
        domain_of = {row.image: self.domains.index(row.domain) for row in rows}
        wanted = {"train": source, "val": source, "test": target}
        parts = {
            part: keep_domains(
                [self.at_domain(item, domain_of) for item in getattr(split, part)],
                {self.domains.index(name) for name in wanted[part]},
            )
            for part in PARTS
        }
        untrained = set(range(len(split.classnames))) - {item.label for item in parts["train"]}
        if untrained or not parts["test"]:
            what = f"training images of {listed(split.classnames[label] for label in sorted(untrained))}"
            raise SplitFileError(f"{self.source} has no {what if untrained else 'test images'} in these domains")
        return replace(split, **parts)

    def at_domain(self, item: Datum, domain_of: dict[str, int]) -> Datum:
        """The same image with its domain."""
        image = relative_path(item.impath, self.image_dir)
        if image not in domain_of:
            raise SplitFileError(f"{self.source} does not list {image}, which the split {self.split_path} has")
        return Datum(impath=item.impath, label=item.label, domain=domain_of[image], classname=item.classname)


def keep_domains(items: list[Datum], domains: set[int]) -> list[Datum]:
    """The images of some domains; all of them when none is named."""
    return [item for item in items if not domains or item.domain in domains]


@DATASET_REGISTRY.register()
class csv(Csv):
    """`Csv` under a name that is easier to type."""
