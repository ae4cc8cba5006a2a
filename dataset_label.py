"""What a run's data set is called in output paths, results.json, tables and predictions.

Published and bundled data sets go by DATASET.NAME. Those of one's own all have the NAME folder or csv: they go by
DATASET.LABEL, else by the last part of DATASET.PATH. Needs nothing but the names of the literature's data sets.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from reporting.names import DATASETS, canonical_dataset

OWN_DATA = ("folder", "csv")  # DATASET.NAME, in any case
MAX_LENGTH = 80
BUNDLED = re.compile(r"digits|emoji(kinds|concepts)(fluent|flat|contrast)?")


def dataset_label(settings: Mapping[str, Any], root: str = "") -> str:
    """The data set's name for people and paths: letters, digits, and "._+-" within.

    Args:
        settings: the section DATASET of a configuration, or what a data set's file has of it.
        root: the data root, where the settings do not have it; of use where DATASET.PATH is empty.

    Raises:
        ValueError: DATASET.LABEL cannot be part of a path, or is a published data set's name.
    """
    name, label = str(settings["NAME"]), str(settings.get("LABEL") or "")
    if label:
        if label != _safe(label):
            raise ValueError(
                f"DATASET.LABEL is {label!r}: use letters, digits and . _ + - within, {MAX_LENGTH} at most"
            )
        if name.lower() in OWN_DATA and _is_taken(label):
            raise ValueError(
                f"DATASET.LABEL is {label!r}, as tables call a published or bundled data set: take another"
            )
        return label
    if name.lower() not in OWN_DATA:
        return name
    folders = (str(settings.get("ROOT") or root), str(settings.get("PATH") or ""))
    place = os.path.abspath(os.path.join(*map(os.path.expanduser, folders)))
    label = _safe(re.sub(r"\.csv$", "", os.path.basename(place), flags=re.IGNORECASE))
    if not label:
        return name
    return f"{name}_{label}" if _is_taken(label) else label


def _is_taken(label: str) -> bool:
    """Whether tables would take it for a published data set ("flowers" is OxfordFlowers) or a bundled one."""
    return canonical_dataset(label) in DATASETS or BUNDLED.fullmatch(re.sub(r"[^a-z]", "", label.lower())) is not None


def _safe(text: str) -> str:
    """The text as one part of a path that no terminal or shell obeys."""
    text = "".join(character if character.isalnum() or character in "._+-" else "_" for character in text)
    return text.strip("._+-" if text.strip("._+-") else text)[:MAX_LENGTH]
