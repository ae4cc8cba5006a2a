"""What data sets of your own share: DATASET.PATH, and a split that is drawn once, saved and used ever after."""

import os
import random
from collections.abc import Sequence
from typing import Any, ClassVar

from dassl.config import cfg_default
from datasets.annotation import split_classes
from datasets.fewshot import FewShotDataset
from datasets.locate import DataRootError
from datasets.newfile import write_new_text
from datasets.splitfile import (
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
    read_split,
)

OWN_SPLIT_SEED = 0  # one split for all runs: the runs' seeds draw their shots from it

cfg_default.DATASET.PATH = ""  # folder or csv: its place, relative to DATASET.ROOT; empty: DATASET.ROOT itself


class OwnData(FewShotDataset):
    """Data described by itself; without validation images, few-shot ones are held out of the training images."""

    val_from_train: ClassVar[bool] = True

    @classmethod
    def find_source(cls, root: str, cfg: Any = None) -> str:
        """Absolute path of the folder or file that describes the data.

        Raises:
            DataRootError: there is no such thing.
        """
        path = cfg.DATASET.PATH if cfg is not None else ""
        source = os.path.abspath(os.path.join(os.path.expanduser(root), os.path.expanduser(path)))
        if not root and not path:
            raise DataRootError("DATASET.ROOT (--root) and DATASET.PATH are empty: together they say where the data is")
        if not os.path.exists(source):
            raise DataRootError(f"there is no {source}: DATASET.ROOT is {root!r}, DATASET.PATH {path!r}")
        return source

    def saved_split(self, rows: Sequence[Entry], output_dir: str) -> Split:
        """The saved split of data that comes without one; drawn and saved when there is none yet.

        Args:
            rows: all images as they are described today.
            output_dir: the run's output folder, where the split goes if the data's folder is read-only.

        Raises:
            SplitFileError: the saved split has images that the data no longer has.
        """
        check_classes({"train": rows, "val": (), "test": ()}, self.source)  # before anything is written
        name = self.own_split_file(self.source, OWN_SPLIT_SEED)
        places = [os.path.join(self.dataset_dir, name), os.path.join(os.path.abspath(output_dir), name)]
        found = next((path for path in places if os.path.isfile(path)), None)
        self.split_path = found or save_first(places, draw(rows, OWN_SPLIT_SEED))
        print(f"Reading split from {self.split_path}")
        compare(self.split_path, rows)
        return read_split(self.split_path, self.image_dir, "")

    def given_split(self, parts: dict[str, list[Entry]], origin: str) -> Split:
        """A split that the data states itself."""
        for part in ("train", "test"):
            if not parts[part]:
                raise SplitFileError(f"{origin} has no images in {part!r}")
        self.split_path = origin
        return build_split(parts, self.image_dir, origin)


def draw(rows: Sequence[Entry], seed: int) -> str:
    """The text of a new split."""
    return dump_split(split_classes(rows, random.Random(seed)))


def save_first(places: Sequence[str], content: str) -> str:
    """Write to the first place that can be written to; returns it."""
    for path in places[:-1]:
        try:
            write_new_text(path, content)
            break
        except PermissionError as error:
            print(f"{error}; trying {places[-1]}")
    else:
        path = places[-1]
        write_new_text(path, content)
    print(f"The data has no split: drew one (half train, a fifth val, the rest test) and saved it to {path}")
    return path


def compare(path: str, rows: Sequence[Entry]) -> None:
    """Hold a saved split to the data as it is today: images may be new, but none may be gone or changed."""
    parts = parse_entries(read_limited(path), path)
    saved, today = {entry for part in PARTS for entry in parts[part]}, set(rows)
    if saved - today:
        gone = listed(sorted(f"{impath} ({name})" for impath, _, name in saved - today))
        raise SplitFileError(
            f"{path} was drawn from other data: {len(saved - today)} of its images are gone or have another label or "
            f"name: {gone}. Restore them, or move the file away to have a new split drawn."
        )
    if today - saved:
        print(f"{len(today - saved)} images came after {path} was drawn and are left out")
