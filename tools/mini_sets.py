"""Pack the data sets of the benchmark in miniature out of what is held out of the mini corpus.

    python -m tools.mini_sets --corpus runs/mini --out assets/mini

It writes one file for each set of `mini_sets.yaml`: the drawings (lossless WebP) and `set.json`, which has the classes
and for train, val and test the images, each a class, a drawing and a view's number; `datasets.mini` makes the images. A
family's drawings of one class are all in one part as far as there are families enough; without enough of those,
packages or drawings are dealt, and val has further views of the training drawings. The same corpus makes the same
files.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from common.files import atomic_write
from datasets.mini import number
from datasets.splits import PARTS

SETS = Path(__file__).with_name("mini_sets.yaml")
SHARES = (0.5, 0.1)  # of a class's drawings that go to train and val
FEWEST = 4  # drawings of a class
NOT_SHIPPED = ("map", "wi")  # of the packages of `report`, those under a font's licence, which would have to come along
EPOCH = (1980, 1, 1, 0, 0, 0)  # of the archive's entries, so that the same drawings make the same file


def deal(drawings: dict[int, tuple[str, str]], seed: str) -> dict[str, list[int]]:
    """The drawings of one class, given with family and package, dealt to train, val and test.

    Whole families are dealt; whole packages where there are fewer than six families, single drawings where there are
    fewer than four packages. Val stays empty where there are fewer than six of what is dealt.
    """
    by_family, by_package, units = {}, {}, {}
    for index, (family, package) in drawings.items():
        by_family.setdefault(family, []).append(index)
        by_package.setdefault(package, []).append(index)
        units[f"{package}/{index}"] = [index]
    units = by_family if len(by_family) >= 6 else by_package if len(by_package) >= 4 else units
    order = sorted(units, key=lambda name: number(seed, name))
    train, val = (math.ceil(share * len(order)) for share in SHARES)
    val = val if len(order) >= 6 else 0
    bounds = {"train": order[:train], "val": order[train : train + val], "test": order[train + val :]}
    return {part: [index for name in names for index in units[name]] for part, names in bounds.items()}


def pack(corpus: Path, sets: dict, out: Path) -> dict[str, Counter]:
    """Write every set's archive; returns how many images each part has."""
    index = json.loads((corpus / "index.json").read_text())
    pixels = np.load(corpus / "pixels.npy", mmap_mode="r")
    counts = {}
    for title, wanted in sets.items():
        part = wanted.get("part", "report")
        rows = [row for row, found in enumerate(index["part"]) if found == part]
        rows = [row for row in rows if index["package"][row] not in NOT_SHIPPED]
        by_name: dict[str, dict[int, tuple[str, str]]] = {}
        for row in rows:
            by_name.setdefault(index["name"][row], {})[row] = index["family"][row], index["package"][row]
        classes = wanted["classes"]
        images: dict[str, list[list[int]]] = {part: [] for part in PARTS}
        used: dict[int, int] = {}  # row of the corpus: number of the drawing in the archive
        for label, name in enumerate(classes):
            if len(by_name.get(name, ())) < FEWEST:
                raise ValueError(f"{title}: the class {name!r} has fewer than {FEWEST} drawings")
            dealt = deal(by_name[name], name)  # the same in every set, so that none trains on what another tests
            for part, many in zip(PARTS, wanted["images"], strict=True):
                source, first = (dealt[part], 0) if dealt[part] else (dealt["train"], wanted["images"][0])
                for image in range(first, first + many):
                    drawing = used.setdefault(source[image % len(source)], len(used))
                    images[part].append([label, drawing, image // len(source)])
        content = {"name": title, "classes": classes, "images": images}
        content["drawings"] = ["/".join(index[key][row] for key in ("package", "icon", "name")) for row in used]
        write_archive(out / f"{title}.zip", content, [np.asarray(pixels[row]) for row in used])
        counts[title] = Counter({part: len(rows) for part, rows in images.items()}) | Counter(classes=len(classes))
    return counts


def write_archive(path: Path, content: dict, drawings: list[np.ndarray]) -> None:
    """One set's file."""
    with atomic_write(path) as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo("set.json", EPOCH), json.dumps(content), zipfile.ZIP_DEFLATED)
        for position, drawing in enumerate(drawings):
            buffer = io.BytesIO()
            Image.fromarray(drawing).save(buffer, "WEBP", lossless=True, quality=50, method=3)
            archive.writestr(zipfile.ZipInfo(f"{position}.webp", EPOCH), buffer.getvalue())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.mini_sets", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True, help="folder of tools.mini_corpus")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    args = parser.parse_args()
    for title, count in pack(args.corpus, yaml.safe_load(SETS.read_text(encoding="utf-8")), args.out).items():
        print(title, dict(count))


if __name__ == "__main__":
    main()
