"""The table of all data sets: classes, images, folder, size, licence, and whether they are there."""

import json
import os
from pathlib import Path

from tabulate import tabulate

from dassl.data.datasets import DATASET_REGISTRY
from datasets.sources import DatasetInfo, known_datasets, readable_size
from datasets.splitfile import PARTS

BUNDLED_ROOT = Path(__file__).resolve().parents[1] / "assets"
HEADERS = ("name", "classes", "images", "folder", "download", "licence", "found")


def overview(root: str) -> str:
    """All data sets as a table: the published ones, the bundled ones, and any that were added to this folder."""
    known, registered = known_datasets(), DATASET_REGISTRY.registered_names()
    doubled = {name for name in registered if name != name.lower() in registered}  # Folder is also called folder
    added = [name for name in registered if name not in known and name not in doubled]
    rows = [published_row(info, root) for info in known.values()] + [added_row(name, root) for name in added]
    return tabulate(rows, headers=HEADERS, maxcolwidths=[None] * 5 + [32, 40])


def published_row(info: DatasetInfo, root: str) -> tuple[str, ...]:
    """A row of the table for a data set that can be downloaded."""
    size = "by hand" if info.by_hand else readable_size(info.download_size)
    found = presence(root, info.folder, [path for path, _ in info.folders] + ([info.split] if info.split else []))
    return info.name, f"{info.classes:,}", f"{info.images:,}", f"{info.folder}/", size, info.licence, found


def added_row(name: str, root: str) -> tuple[str, ...]:
    """A row of the table for a bundled data set, or one of the user's."""
    dataset = DATASET_REGISTRY.get(name)
    folder, split = dataset.dataset_dir, getattr(dataset, "split_file", "")
    if not folder:
        return name, "", "", "yours", "", "yours", ""
    bundled = (BUNDLED_ROOT / folder).is_dir()
    base = str(BUNDLED_ROOT) if bundled else root
    classes, images = count_split(os.path.join(base, folder, split)) if base and split else ("?", "?")
    licence = "see assets/ATTRIBUTION.md" if bundled else "yours"
    found = "bundled (--root assets)" if bundled else presence(root, folder, [split] if split else [])
    return name, classes, images, f"{folder}/", "", licence, found


def presence(root: str, folder: str, names: list[str]) -> str:
    """Whether a data set's folder and what it needs are under the root; "-" without a root."""
    if not root:
        return "-"
    path = os.path.join(os.path.expanduser(root), folder)
    if not os.path.isdir(path):
        return "no"
    missing = [name for name in names if not os.path.exists(os.path.join(path, name))]
    return f"without {', '.join(missing)}" if missing else "yes"


def count_split(path: str) -> tuple[str, str]:
    """Numbers of classes and images in a split file; "?" if it cannot be read."""
    try:
        with open(path, encoding="utf-8") as file:
            split = json.load(file)
        rows = [row for part in PARTS for row in split[part]]
        return f"{len({label for _, label, _ in rows}):,}", f"{len(rows):,}"
    except (OSError, ValueError, KeyError, TypeError):
        return "?", "?"
