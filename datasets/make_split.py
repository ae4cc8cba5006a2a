"""Draw a new split of a data set from its original annotation, under a name that no published split has.

    python -m datasets make-split OxfordPets --root DATA --seed 7

writes DATA/oxford_pets/split_own_seed7.json; a run uses it only when told to: DATASET.SPLIT_FILE split_own_seed7.json.
"""

import os
import random
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY
from datasets.check import settings
from datasets.fewshot import FewShotDataset, NoNewSplitError
from datasets.locate import find_image_dir
from datasets.newfile import write_new_text
from datasets.splitfile import build_split, dump_split


def make_split(name: str, root: str | os.PathLike[str], seed: int, path: str = "") -> Path:
    """Draw a split and write it beside the data.

    Args:
        name: DATASET.NAME.
        root: the data root.
        seed: seed of the draw.
        path: DATASET.PATH, for `folder` and `csv`; if empty, the root is the folder or the table itself.

    Returns:
        The split file. The same split may be made again; a different file of that name is never replaced.

    Raises:
        NoNewSplitError: the data set's split is official, or not a file.
        FileNotFoundError: the data set's folder, its annotation, or images are not there.
        FileExistsError: there is a file of that name with other content.
        PermissionError: the folder cannot be written to.
        ValueError: the name is unknown, the seed negative, or the annotation cannot be used.
    """
    dataset = few_shot_class(name)
    if seed < 0:
        raise ValueError(f"the seed is {seed}: a split that can be made again needs one from 0")
    cfg = settings(name, os.fspath(root), path)
    source, folder = dataset.find_source(cfg.DATASET.ROOT, cfg), dataset.find_folder(cfg.DATASET.ROOT, cfg)
    entries = dataset.draw_split(source, random.Random(seed))
    build_split(entries, find_image_dir(folder, dataset.image_folder), f"the annotation in {source}")
    split_path = os.path.join(folder, dataset.own_split_file(source, seed))
    write_new_text(split_path, dump_split(entries))
    return Path(split_path)


def few_shot_class(name: str) -> type[FewShotDataset]:
    """The data set of that name.

    Raises:
        ValueError: there is none.
        NoNewSplitError: it does not work with split files.
    """
    dataset = DATASET_REGISTRY.get(name)
    if not (isinstance(dataset, type) and issubclass(dataset, FewShotDataset)):
        raise NoNewSplitError(f"{name} does not work with split files")
    return dataset
