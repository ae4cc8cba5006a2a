"""Write down which few-shot images a seed draws: as JSON, to look at, to publish, or to train on elsewhere.

    python -m datasets export-selection Caltech101 --root DATA --shots 16 --seed 1

writes DATA/caltech-101/selection_drawn_16shots_seed1.json. A run with the same shots and seed draws the same images
without it; with DATASET.SELECTION it takes them from the file, which is held to the split by its hash.
"""

import os
from pathlib import Path

from datasets.check import settings
from datasets.make_split import few_shot_class
from datasets.selection import SelectionError, write_selection


def export_selection(
    name: str, root: str, shots: int, seed: int, path: str = "", out: str | os.PathLike[str] | None = None
) -> Path:
    """Draw few-shot images as a run does, and write them to a file.

    Args:
        name: DATASET.NAME.
        root: the data root.
        shots: DATASET.NUM_SHOTS.
        seed: the run's seed.
        path: DATASET.PATH, for `folder` and `csv`.
        out: file to write; by default in the data set's folder.

    Returns:
        The file written. The same selection may be written again; a different file of that name is never replaced.

    Raises:
        SelectionError: the data set is for testing only, shots are below 1, or the seed is negative.
        FileExistsError: there is a file of that name with other content.
    """
    if shots < 1 or seed < 0:
        raise SelectionError(f"{shots} shots with seed {seed}: a selection needs shots from 1 and a seed from 0")
    cfg = settings(name, root, path)
    cfg.DATASET.NUM_SHOTS, cfg.SEED = shots, seed
    dataset = few_shot_class(name)(cfg)
    if dataset.test_only:
        raise SelectionError(f"{name} is for testing only: it has no few-shot images")
    target = out or os.path.join(dataset.dataset_dir, f"selection_drawn_{shots}shots_seed{seed}.json")
    facts = {"dataset": name, "seed": seed, "split_sha256": dataset.split_sha256, "origin": "drawn by seed"}
    write_selection(os.fspath(target), dataset.train_x, dataset.val or [], dataset.image_dir, shots, **facts)
    return Path(target)
