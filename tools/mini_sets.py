"""Make the data sets of the benchmark in miniature from what is held out of the mini corpus.

    python -m tools.mini_sets pack --corpus runs/mini --out runs/mini_sets
    python -m tools.mini_sets unpack runs/mini_sets/objects.zip --out data/objects

`pack` writes one file for each set of `mini_sets.yaml`: the drawings (lossless WebP) and `set.json`, which has the
classes and for train, val and test the images, each a class, a drawing and a view's number. A family's drawings of one
class are all in one part as far as there are families enough; without enough of those, packages or drawings are dealt,
and val has further views of the training drawings.

`unpack` makes the images: views of the drawings as if photographed (tilted, smaller, in other colours, on a
shaded and noisy ground), which pretraining has none of, drawn by a seed made of set, drawing and view. It
writes them as JPEG with a split file of CoOp's format, `split.json`. A set may have variants of its test images, other
views of the same drawings: plain (as pretraining has them), inverted, edges, pixel; `--variant` unpacks one.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import yaml
from PIL import Image, ImageFilter

from common.files import atomic_write

SETS = Path(__file__).with_name("mini_sets.yaml")
PARTS = ("train", "val", "test")
SHARES = (0.5, 0.1)  # of a class's drawings that go to train and val
FEWEST = 4  # drawings of a class
SIDE = 64
GREY = 24  # a drawing whose channels differ by less than this has no colours of its own
VARIANTS = ("photo", "plain", "inverted", "edges", "pixel")
EPOCH = (1980, 1, 1, 0, 0, 0)  # of the archive's entries, so that the same drawings make the same file


def number(*parts: object) -> int:
    """A number that hangs on the arguments alone."""
    return zlib.crc32("/".join(map(str, parts)).encode())


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
        rows = [row for row, part in enumerate(index["part"]) if part == wanted.get("part", "report")]
        by_name: dict[str, dict[int, tuple[str, str]]] = {}
        for row in rows:
            by_name.setdefault(index["name"][row], {})[row] = index["family"][row], index["package"][row]
        classes = wanted.get("classes") or sorted(name for name, found in by_name.items() if len(found) >= FEWEST)
        images: dict[str, list[list[int]]] = {part: [] for part in PARTS}
        used: dict[int, int] = {}  # row of the corpus: number of the drawing in the archive
        for label, name in enumerate(classes):
            if len(by_name.get(name, ())) < FEWEST:
                raise ValueError(f"{title}: the class {name!r} has fewer than {FEWEST} drawings")
            dealt = deal(by_name[name], f"{title}/{name}")
            for part, many in zip(PARTS, wanted["images"], strict=True):
                source, first = (dealt[part], 0) if dealt[part] else (dealt["train"], wanted["images"][0])
                for image in range(first, first + many):
                    drawing = used.setdefault(source[image % len(source)], len(used))
                    images[part].append([label, drawing, image // len(source)])
        content = {"name": title, "classes": classes, "template": wanted.get("template", "a photo of a {}.")}
        content |= {"variants": ["photo", *wanted.get("variants", [])], "images": images}
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


def cut_out(drawing: np.ndarray, ink: np.ndarray | None) -> np.ndarray:
    """A drawing on white as (SIDE, SIDE, 4) from 0 to 1, transparent where white, in `ink` if it has no colours."""
    pixels = drawing.astype(np.float32) / 255
    spread = drawing.max(-1).astype(int) - drawing.min(-1)
    if spread.max() < GREY and ink is not None:
        cover = (1 - pixels.mean(-1, keepdims=True)) / max(1e-3, 1 - pixels.mean(-1).min())
        return np.concatenate([np.broadcast_to(ink, pixels.shape), cover], -1).astype(np.float32)
    cover = np.clip(4 * (1 - pixels.min(-1, keepdims=True)), 0, 1)
    return np.concatenate([pixels, cover], -1)


def photograph(drawing: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """A drawing as if photographed: tilted, scaled, in another colour, on a shaded, noisy and lighter ground."""
    ground, end, ink = rng.uniform(0, 1, 3), rng.uniform(-0.3, 0.3, 3), rng.uniform(0, 1, 3)
    while (ground + end / 2).mean() - ink.mean() < 0.35:
        ground, ink = rng.uniform(0, 1, 3), rng.uniform(0, 1, 3)
    picture = Image.fromarray((cut_out(drawing, ink) * 255).round().astype(np.uint8), "RGBA")
    zoom, angle = rng.uniform(0.7, 1.05), rng.uniform(-20, 20)
    size = round(SIDE * zoom)
    picture = picture.resize((size, size), Image.Resampling.BICUBIC).rotate(
        angle, Image.Resampling.BICUBIC, expand=True
    )
    slack = max(0, SIDE - size)
    left, top = (round((SIDE - picture.width) / 2 + rng.uniform(-slack / 2, slack / 2)) for _ in range(2))
    row, column = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    turn = rng.uniform(0, 2 * np.pi)
    shade = (np.cos(turn) * column + np.sin(turn) * row)[..., None]
    stains = rng.normal(0, 255, (8, 8)).astype(np.float32)
    stains = np.asarray(Image.fromarray(stains).resize((SIDE, SIDE), Image.Resampling.BICUBIC))[..., None] / 255
    back = ground + end * shade + rng.uniform(0.02, 0.08) * stains
    page = Image.fromarray((back.clip(0, 1) * 255).astype(np.uint8))
    page.paste(picture, (left, top), picture)
    page = page.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.9)))
    noise = rng.normal(0, rng.uniform(2, 10), (SIDE, SIDE, 3))
    return Image.fromarray((np.asarray(page, np.float32) + noise).clip(0, 255).astype(np.uint8))


def view(drawing: np.ndarray, variant: str, seed: int) -> Image.Image:
    """One view of a drawing, (SIDE, SIDE, 3) uint8."""
    if variant == "photo":
        return photograph(drawing, np.random.default_rng(seed))
    plain = Image.fromarray(drawing)
    if variant == "inverted":
        return Image.fromarray(255 - drawing)
    if variant == "edges":
        return Image.fromarray(255 - np.asarray(plain.convert("L").filter(ImageFilter.FIND_EDGES))).convert("RGB")
    if variant == "pixel":
        return plain.resize((16, 16), Image.Resampling.BOX).resize((SIDE, SIDE), Image.Resampling.NEAREST)
    return plain


def unpack(archive: Path, out: Path, variant: str = "photo") -> dict[str, int]:
    """Write a set's images and its split file; of a variant other than photo the test images only.

    Raises:
        ValueError: the set has no such variant.
    """
    with zipfile.ZipFile(archive) as file:
        content = json.loads(file.read("set.json"))
        if variant not in content["variants"]:
            raise ValueError(f"{archive} has no variant {variant!r}; choose from: {', '.join(content['variants'])}")
        drawings = [
            np.asarray(Image.open(io.BytesIO(file.read(f"{position}.webp"))).convert("RGB"))
            for position in range(len(content["drawings"]))
        ]
    split: dict[str, list] = {part: [] for part in PARTS}
    for part, rows in content["images"].items():
        if variant != "photo":
            # Views of one drawing differ by their seed alone, which only a photograph has.
            rows = sorted({(label, drawing, 0) for label, drawing, _ in rows}) if part == "test" else []
        for label, drawing, which in rows:
            path = out / "images" / part / f"{drawing:04d}_{which}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            seed = number(content["name"], content["drawings"][drawing], which)
            view(drawings[drawing], variant, seed).save(path, quality=92)
            split[part].append([f"{part}/{path.name}", label, content["classes"][label]])
    with atomic_write(out / "split.json", "w") as file:
        json.dump(split, file)
    return {part: len(rows) for part, rows in split.items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.mini_sets", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="what", required=True)
    packing = commands.add_parser("pack", help="write one archive for each set")
    packing.add_argument("--corpus", type=Path, required=True, help="folder of tools.mini_corpus")
    unpacking = commands.add_parser("unpack", help="write one set's images")
    unpacking.add_argument("archive", type=Path, help="written by pack")
    unpacking.add_argument("--variant", choices=VARIANTS, default="photo", help="of the images")
    for command in (packing, unpacking):
        command.add_argument("--out", type=Path, required=True, help="folder to write to")
    args = parser.parse_args()
    if args.what == "pack":
        for title, count in pack(args.corpus, yaml.safe_load(SETS.read_text(encoding="utf-8")), args.out).items():
            print(title, dict(count))
    else:
        print(unpack(args.archive, args.out, args.variant))


if __name__ == "__main__":
    main()
