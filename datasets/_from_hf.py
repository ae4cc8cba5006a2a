"""Images and labels of a Hugging Face data set as files and a table for DATASET.NAME csv; run by `datasets from-hf`.

The library is called `datasets`, as this folder is. So this file runs in a process of its own with `python -I`, which
puts neither the current folder nor PYTHONPATH on the path: there `datasets` is the installed library, and nothing of
ours can be imported. Images are written as the bytes that the data set holds, so nothing is encoded again.
"""

from __future__ import annotations

import csv
import io
import os
import sys
from pathlib import Path

PARTS = {"train": "train", "validation": "val", "valid": "val", "val": "val", "dev": "val", "test": "test"}


class ExportError(ValueError):
    """A data set that cannot be written as images with labels."""


def export(name: str, out: Path, subset: str, label: str) -> str:
    """Write OUT/images/PART/*.jpg and, last, OUT/images.csv; returns what was written, in words."""
    try:
        from datasets import ClassLabel, Image, load_dataset
    except ImportError as error:
        raise ExportError(f"this takes the library of Hugging Face: pip install datasets ({error})") from error
    loaded = load_dataset(name, subset or None)
    parts = {PARTS[split]: images for split, images in loaded.items() if split in PARTS}
    if "train" not in parts:
        raise ExportError(f"{name} has the splits {', '.join(loaded)}, and no train")
    features = parts["train"].features
    image = only([key for key, kind in features.items() if isinstance(kind, Image)], "columns of images", name, "")
    classes = [key for key, kind in features.items() if isinstance(kind, ClassLabel) and key != "domain"]
    label = label or only(classes, "columns of classes", name, "--label COLUMN chooses one")
    if label not in features:
        raise ExportError(f"{name} has no column {label!r}; there are: {', '.join(features)}")
    if not isinstance(features[label], ClassLabel) and getattr(features[label], "dtype", "") != "string":
        raise ExportError(f"the column {label!r} of {name} holds neither classes with names nor names")
    columns = [label, *(["domain"] if "domain" in features else [])]
    names = {key: getattr(features[key], "names", None) for key in columns}
    rows = []
    for part, images in parts.items():
        (out / "images" / part).mkdir(parents=True, exist_ok=True)
        for number, item in enumerate(images.cast_column(image, Image(decode=False))):
            values = [item[key] if names[key] is None else name_of(names[key], item[key]) for key in columns]
            if None in values:  # a test split whose labels are kept secret has -1 or nothing
                continue
            content = item[image]["bytes"]
            content = Path(item[image]["path"]).read_bytes() if content is None else content
            path = Path("images", part, f"{number:06d}.{suffix_of(content)}")
            (out / path).write_bytes(content)
            rows.append([path.as_posix(), values[0], part, *values[1:]])
    header, found = ["image", "classname", "split", *columns[1:]], {row[2] for row in rows}
    if "test" not in found and "val" in found:  # as on ImageNet, what is to validate is the test set
        rows = [[*row[:2], "test" if row[2] == "val" else row[2], *row[3:]] for row in rows]
    elif "test" not in found:  # without that column, a split is drawn on first use and saved
        header, *rows = ([*row[:2], *row[3:]] for row in (header, *rows))
    with open(out / "images.csv.part", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    os.replace(out / "images.csv.part", out / "images.csv")
    return f"{len(rows)} images of {len({row[1] for row in rows})} classes"


def only(found: list[str], what: str, name: str, cure: str) -> str:
    """The one column that can be meant."""
    if len(found) != 1:
        raise ExportError(f"{name} has {len(found)} {what} ({', '.join(found) or 'none'}){cure and ': '}{cure}")
    return found[0]


def name_of(names: list[str], label: int | None) -> str | None:
    """The class name of a label; None where there is no label."""
    return None if label is None or label < 0 else names[label]


def suffix_of(content: bytes) -> str:
    """The file name's ending for an image's bytes."""
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        return {"JPEG": "jpg", "TIFF": "tif"}.get(image.format, str(image.format).lower())


def main(arguments: list[str]) -> int:
    """NAME OUT SUBSET LABEL; every error is one line, since the library and the network raise anything."""
    name, out, subset, label = arguments
    try:
        done = export(name, Path(out), subset, label)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"error: {reason[:500]}", file=sys.stderr)
        return 1
    print(f"{done}: {Path(out) / 'images.csv'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
