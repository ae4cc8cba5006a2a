"""Use the few-shot images that CoOp's code once drew: its pickled selections, turned into JSON.

    python -m datasets import-selection Caltech101 DATA/caltech-101/split_fewshot/shot_16-seed_1.pkl --root DATA

writes DATA/caltech-101/selection_shot_16-seed_1.json, for DATASET.SELECTION. Nothing in the pickle is executed: the
only thing that it may name is Dassl's `Datum`, which becomes an inert record.
"""

import hashlib
import io
import os
import pickle
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from common.unpickling import Unpickler
from dassl.config import get_cfg_default
from datasets.fewshot import FewShotDataset
from datasets.make_split import few_shot_class
from datasets.selection import SelectionError, select, write_selection
from datasets.splitfile import Entry, Split, parse_entry

MAX_BYTES = 256 * 2**20  # sixteen shots of ImageNet take 2 MiB
DATUM_MODULES = ("dassl.data.datasets", "dassl.data.datasets.base_dataset")
FIELDS = {"_impath": str, "_label": int, "_domain": int, "_classname": str}


class Record:
    """What takes the place of a pickled `Datum`: its four values and nothing that runs."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict) or set(state) != set(FIELDS):
            raise pickle.UnpicklingError("a Datum with other fields than path, label, domain and class name")
        for name, kind in FIELDS.items():
            if type(state[name]) is not kind:
                raise pickle.UnpicklingError(f"a Datum whose {name[1:]} is not {kind.__name__}")
        self.__dict__.update(state)

    def entry(self) -> Entry:
        """Path as it was stored, label and class name."""
        return self._impath, self._label, self._classname


class SelectionUnpickler(Unpickler):
    """Reads plain values and `Datum`, within what the file's size allows; everything else is refused."""

    def find_class(self, module: str, name: str) -> type[Record]:
        """The inert record for `Datum`."""
        if module in DATUM_MODULES and name == "Datum":
            return Record
        raise pickle.UnpicklingError(f"it names {module}.{name}, which has no place in a selection")


def import_selection(
    name: str, pickled: str | os.PathLike[str], root: str | os.PathLike[str], out: str | os.PathLike[str] | None = None
) -> Path:
    """Turn a pickled selection into JSON that DATASET.SELECTION can name.

    Args:
        name: DATASET.NAME.
        pickled: `shot_N-seed_S.pkl` as CoOp's code wrote it.
        root: the data root; the images and the split must be there.
        out: file to write; by default `selection_<name of the pickle>.json` in the data set's folder.

    Returns:
        The file written.

    Raises:
        SelectionError: the pickle is not such a selection, or does not fit the split.
        FileExistsError: there is a file of that name with other content.
    """
    pickled = os.fspath(pickled)
    parts, sha256 = read_pickle(pickled)
    dataset = build(few_shot_class(name), name, os.fspath(root))
    if dataset.test_only:
        raise SelectionError(f"{name} is for testing only: it has no few-shot images")
    split = Split(dataset.train_x, dataset.val, dataset.test, dataset.all_classnames, dataset.split_sha256)
    marker = PurePosixPath(type(dataset).dataset_dir, dataset.image_folder).parts
    train, val = ([relative(entry, marker, pickled) for entry in parts.get(part, [])] for part in ("train", "val"))
    chosen = select(train, val, split, dataset.image_dir, pickled)
    stem = os.path.splitext(os.path.basename(pickled))[0]
    shots, seed = shots_and_seed(stem)
    path = os.fspath(out) if out else os.path.join(dataset.dataset_dir, f"selection_{stem}.json")
    facts = {"dataset": name, "seed": seed, "split_sha256": split.sha256, "origin": f"{stem}.pkl sha256 {sha256}"}
    write_selection(path, *chosen, dataset.image_dir, shots, **facts)
    return Path(path)


def read_pickle(path: str) -> tuple[dict[str, list[Entry]], str]:
    """The entries of a pickled selection, and the file's hash.

    Raises:
        SelectionError: it is not a selection.
        FileNotFoundError: there is no such file.
    """
    if os.path.getsize(path) > MAX_BYTES:
        raise SelectionError(f"{path} is larger than any selection")
    with open(path, "rb") as file:
        content = file.read()
    try:
        data = SelectionUnpickler(io.BytesIO(content), len(content)).load()
    except Exception as error:  # a hostile or damaged pickle can raise anything
        raise SelectionError(f"{path} is not a selection that CoOp's code wrote: {error}") from error
    if not isinstance(data, dict) or not data.get("train") or not set(data) <= {"train", "val"}:
        raise SelectionError(f"{path} is not a selection: it should hold 'train' and 'val'")
    for items in data.values():
        if not isinstance(items, list) or not all(type(item) is Record and hasattr(item, "_impath") for item in items):
            raise SelectionError(f"{path} is not a selection: it should hold lists of Datum")
    return {part: [item.entry() for item in items] for part, items in data.items()}, hashlib.sha256(content).hexdigest()


def build(dataset: type[FewShotDataset], name: str, root: str) -> FewShotDataset:
    """The data set with all its images."""
    cfg = get_cfg_default()
    cfg.DATASET.NAME, cfg.DATASET.ROOT = name, root
    return dataset(cfg)


def relative(entry: Entry, marker: Sequence[str], path: str) -> Entry:
    """The entry with its path made relative to the image folder, wherever that was on the machine it comes from."""
    parts = PurePosixPath(entry[0].replace("\\", "/")).parts
    starts = [start for start in range(len(parts)) if parts[start : start + len(marker)] == tuple(marker)]
    if not starts:
        raise SelectionError(f"{path}: {entry[0]} does not lie in a folder {'/'.join(marker)}")
    return parse_entry(["/".join(parts[starts[-1] + len(marker) :]), *entry[1:]], path)


def shots_and_seed(stem: str) -> tuple[int, int]:
    """Number of shots and seed out of the name that CoOp's code gives its selections."""
    match = re.fullmatch(r"shot_(\d+)-seed_(-?\d+)", stem)
    if not match:
        raise SelectionError(f"{stem}.pkl: the name should be shot_N-seed_S.pkl, for the number of shots and the seed")
    return int(match[1]), int(match[2])
