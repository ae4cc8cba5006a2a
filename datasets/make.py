"""What the commands write: a new split, and few-shot selections drawn here or by CoOp's code.

    python -m datasets make-split OxfordPets --root DATA --seed 7
    python -m datasets export-selection Caltech101 --root DATA --shots 16 --seed 1
    python -m datasets import-selection Caltech101 DATA/caltech-101/split_fewshot/shot_16-seed_1.pkl --root DATA

The same may be made again; a different file of the same name is never replaced.
"""

import os
import random
import re
from pathlib import Path, PurePosixPath
from typing import Any

from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY
from datasets.fewshot import FewShotDataset, NoNewSplitError
from datasets.folders import find_image_dir
from datasets.selection import SelectionError, read_pickle, select, write_selection
from datasets.splits import Entry, Split, build_split, dump_split, parse_entry, write_new_text

StrPath = str | os.PathLike[str]


def config_of(name: str, root: str, path: str = "") -> Any:
    """A configuration for the data set with all its images; `path` is DATASET.PATH, for `folder` and `csv`."""
    cfg = get_cfg_default()
    cfg.DATASET.NAME, cfg.DATASET.ROOT, cfg.DATASET.NUM_SHOTS, cfg.SEED = name, root, -1, 1
    if path and "PATH" in cfg.DATASET:
        cfg.DATASET.PATH = path
    return cfg


def few_shot_class(name: str) -> type[FewShotDataset]:
    """The data set of that name, which must work with split files."""
    dataset = DATASET_REGISTRY.get(name)
    if not (isinstance(dataset, type) and issubclass(dataset, FewShotDataset)):
        raise NoNewSplitError(f"{name} does not work with split files")
    return dataset


def make_split(name: str, root: StrPath, seed: int, path: str = "") -> Path:
    """Draw a split from the original annotation and write it beside the data, under a name that no published one has.

    `path` is DATASET.PATH, for `folder` and `csv`; if empty, the root is the folder or the table itself. A run uses
    the split only when told to (DATASET.SPLIT_FILE).

    Raises:
        NoNewSplitError: the data set's split is official, or not a file.
        FileNotFoundError: the data set's folder, its annotation, or images are not there.
        FileExistsError: there is a file of that name with other content.
    """
    dataset = few_shot_class(name)
    if seed < 0:
        raise ValueError(f"the seed is {seed}: a split that can be made again needs one from 0")
    cfg = config_of(name, os.fspath(root), path)
    source, folder = dataset.find_source(cfg), dataset.find_folder(cfg)
    entries = dataset.draw_split(source, random.Random(seed))
    build_split(entries, find_image_dir(folder, dataset.image_folder), f"the annotation in {source}")
    split_path = os.path.join(folder, dataset.drawn_split_file(source, seed))
    write_new_text(split_path, dump_split(entries))
    return Path(split_path)


def export_selection(name: str, root: str, shots: int, seed: int, path: str = "", out: StrPath | None = None) -> Path:
    """Draw few-shot images as a run does, and write them to `out`.

    Without `out` it is `selection_drawn_16shots_seed1.json` in the data set's folder; `path` is DATASET.PATH.

    Raises:
        SelectionError: the data set is for testing only, shots are below 1, or the seed is negative.
        FileExistsError: there is a file of that name with other content.
    """
    if shots < 1 or seed < 0:
        raise SelectionError(f"{shots} shots with seed {seed}: a selection needs shots from 1 and a seed from 0")
    cfg = config_of(name, root, path)
    cfg.DATASET.NUM_SHOTS, cfg.SEED = shots, seed
    dataset = trainable(name, cfg)
    path = os.fspath(out or os.path.join(dataset.dataset_dir, f"selection_drawn_{shots}shots_seed{seed}.json"))
    facts = {"dataset": name, "seed": seed, "split_sha256": dataset.split_sha256, "origin": "drawn by seed"}
    write_selection(path, dataset.train_x, dataset.val or [], dataset.image_dir, shots, **facts)
    return Path(path)


def import_selection(name: str, pickled: StrPath, root: StrPath, out: StrPath | None = None) -> Path:
    """Turn `shot_N-seed_S.pkl`, as CoOp's code wrote it, into JSON that DATASET.SELECTION can name.

    Without `out` it is `selection_shot_N-seed_S.json` in the data set's folder. Images and split must be there.

    Raises:
        SelectionError: the pickle is not such a selection, or does not fit the split.
        FileExistsError: there is a file of that name with other content.
    """
    pickled = os.fspath(pickled)
    parts, sha256 = read_pickle(pickled)
    dataset = trainable(name, config_of(name, os.fspath(root)))
    split = Split(dataset.train_x, dataset.val, dataset.test, dataset.all_classnames, dataset.split_sha256)
    marker = PurePosixPath(type(dataset).dataset_dir, dataset.image_folder).parts
    train, val = ([relative(entry, marker, pickled) for entry in parts.get(part, [])] for part in ("train", "val"))
    chosen = select(train, val, split, dataset.image_dir, pickled)
    stem = os.path.splitext(os.path.basename(pickled))[0]
    match = re.fullmatch(r"shot_(\d+)-seed_(-?\d+)", stem)
    if not match:
        raise SelectionError(f"{stem}.pkl: the name should be shot_N-seed_S.pkl, for the number of shots and the seed")
    path = os.fspath(out or os.path.join(dataset.dataset_dir, f"selection_{stem}.json"))
    facts = {"dataset": name, "seed": int(match[2]), "split_sha256": split.sha256}
    facts["origin"] = f"{stem}.pkl sha256 {sha256}"
    write_selection(path, *chosen, dataset.image_dir, int(match[1]), **facts)
    return Path(path)


def trainable(name: str, cfg: Any) -> FewShotDataset:
    """The data set as the configuration has it; one that is for testing only is refused."""
    dataset = few_shot_class(name)(cfg)
    if dataset.test_only:
        raise SelectionError(f"{type(dataset).__name__} is for testing only: it has no few-shot images")
    return dataset


def relative(entry: Entry, marker: tuple[str, ...], path: str) -> Entry:
    """The entry with its path made relative to the image folder, wherever that was on the machine it comes from."""
    parts = PurePosixPath(entry[0].replace("\\", "/")).parts
    starts = [start for start in range(len(parts)) if parts[start : start + len(marker)] == marker]
    if not starts:
        raise SelectionError(f"{path}: {entry[0]} does not lie in a folder {'/'.join(marker)}")
    return parse_entry(["/".join(parts[starts[-1] + len(marker) :]), *entry[1:]], path)
