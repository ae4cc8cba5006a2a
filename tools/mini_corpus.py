r"""Make the corpus of drawings and names that `bundled:mini_clip` is pretrained and measured on.

    pip install resvg-py==0.5.0
    python -m tools.mini_corpus --cache icons --out runs/mini

One command: npm installs the packages of `mini_packages.yaml`, versions as given there, below `--cache` (what is there
already is not fetched again); names are cleaned, the drawings rendered at 64 px, near copies of what is held out
dropped. The same versions give the same corpus: `pixels.npy`, (N, 64, 64, 3) uint8, and `index.json`, a list for each
column: part, package, family, style, name, kind, icon. The parts:

    pretrain      trained on
    held name     drawn by the same families, but the name is held out: its words occur in other names only
    choose        held-out families that decide where a run stops and which seed ships
    report        held-out families of the reported figures and data sets
    flags         the same, countries' flags

`--attribution` prints the packages as the table of `assets/ATTRIBUTION.md` instead.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import re
import subprocess
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from common.files import atomic_write
from tools.bundled_data import CANVAS, RENDERED, Catalogue, clean_name, read_icons, read_json, svg_document

PACKAGES = Path(__file__).with_name("mini_packages.yaml")
PARTS = ("pretrain", "choose", "report", "flags")
HELD_NAME = "held name"
LICENCES = {"MIT", "ISC", "Apache-2.0", "CC0-1.0", "CC-BY-3.0", "CC-BY-4.0", "OFL-1.1", "Unlicense"}
# The words at the end of an icon's name that say how it is drawn.
STYLE_WORDS = {
    "outline": "outline", "outlined": "outline", "line": "outline", "linear": "outline", "broken": "outline",
    "thin": "outline", "light": "outline", "o": "outline", "filled": "solid", "fill": "solid", "solid": "solid",
    "bold": "solid", "f": "solid", "baseline": "solid", "duotone": "duotone", "twotone": "duotone",
}  # fmt: skip
STRIPPED = {"outline", "outlined", "filled", "fill", "solid", "duotone", "twotone", "linear", "broken"}
STRIPPED |= {"remix", "alt", "alternate"}
MAX_WORDS = 5
USUAL_SIZE = 24  # of several sizes of one drawing, the nearest to it
COPY_SIDE, COPY_DISTANCE = 16, 16.0  # root mean square difference of grey values from 0 to 255, at 16 x 16
HELD_COMPOUNDS, HELD_WORDS = 10, 20  # one of so many names is held out, of several words and of one
SEEN_IN = 3  # names that a held-out name's words occur in


@dataclass(frozen=True)
class Drawing:
    """One icon."""

    part: str
    package: str
    family: str
    style: str  # outline, solid, duotone, colour or pixel; of an emoji, its package
    name: str
    kind: str  # of an emoji, what it is one of
    icon: str  # what the package calls it
    svg: str


def read_packages(path: Path = PACKAGES) -> dict:
    """The list of packages, checked.

    Raises:
        ValueError: a licence that does not permit this use, or a family on two sides.
    """
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    side: dict[str, str] = {}
    for part in PARTS:
        for name, package in content.get(part, {}).items():
            if package["licence"] not in LICENCES:
                raise ValueError(f"{path}: {name} has the licence {package['licence']}, not one of {sorted(LICENCES)}")
            if package["family"] != "noto" and side.setdefault(package["family"], part) != part:
                raise ValueError(f"{path}: the family {package['family']} is both {side[package['family']]} and {part}")
    return content


def install(packages: dict, cache: Path) -> Path:
    """Have npm install what is lacking, exactly as listed; returns the node_modules folder."""
    modules, wanted = cache / "node_modules", {"emojibase-data": str(packages["emojibase"])}
    for part in PARTS:
        wanted |= {f"@iconify-json/{name}": package["version"] for name, package in packages.get(part, {}).items()}
    found = {name: modules / name / "package.json" for name in wanted}
    installed = {name: json.loads(path.read_text())["version"] for name, path in found.items() if path.is_file()}
    if lacking := [f"{name}@{version}" for name, version in wanted.items() if installed.get(name) != version]:
        cache.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--prefix", str(cache), "--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run([*command, "--save-exact", *lacking], check=True)
    return modules


def name_and_style(icon: str, package: dict) -> tuple[str, str, int]:
    """What an icon shows, how, and the size or variant in its name ("" where the name says nothing).

    >>> name_and_style("arrow-left-24-filled", {"style": "outline"})
    ('arrow left', 'solid', 24)
    """
    numbers, styles = [0], []
    for prefix in package.get("prefixes", []):
        if icon.startswith(f"{prefix}-"):
            icon, styles = icon.removeprefix(f"{prefix}-"), [prefix]
            break
    words = icon.split("-")
    stripped = STRIPPED | set(package.get("strip", []))
    while len(words) > 1 and (words[-1] in stripped or re.fullmatch(r"\d{1,2}(px)?", words[-1])):
        word = words.pop()
        if word[0].isdigit():
            if words[-1] in ("number", "letter"):
                return "", "", 0
            numbers.append(int(word.removesuffix("px")))
        else:
            styles.append(word)
    name = clean_name(" ".join(words))
    if not re.search("[a-z]", name) or len(name.split()) > MAX_WORDS:
        name = ""
    said = [STYLE_WORDS[word] for word in reversed(styles) if word in STYLE_WORDS]
    fixed = package["style"] in ("colour", "pixel") or not said
    style = package["style"] if fixed else "duotone" if "duotone" in said else said[-1]
    return name, style, max(numbers)


class Brands:
    """Which icons are marks of brands: by the packages' own categories, by affixes ("logo-", "-brand"), and by name.

    A name found in one package counts in all; one of a single word counts inside longer names too.
    """

    def __init__(self, packages: dict, modules: Path) -> None:
        affixes = self._affixes = set(packages.get("brand_affixes", []))
        self._alone = set(packages.get("brands_alone", []))
        self._marks: dict[str, set[str]] = {}
        names = set(packages.get("brands", []))
        for part in PARTS[:3]:
            for name, package in packages.get(part, {}).items():
                folder = modules / "@iconify-json" / name
                icons = read_json(folder / "icons.json")["icons"]
                marks = {icon for icon in icons if set(icon.split("-")) & affixes}
                if categories := packages.get("brand_categories", {}).get(name):
                    listed = read_json(folder / "metadata.json")["categories"]
                    marks |= {icon for category in categories for icon in listed[category]}
                self._marks[name] = marks
                for icon in marks:
                    words = name_and_style(icon, package)[0].split()
                    names.add(" ".join(word for word in words if word not in affixes))
        self._names = names - set(packages.get("not_brands", [])) - {""}

    def has(self, package: str, icon: str, name: str) -> bool:
        """Whether a package's icon is a brand's, or goes by a brand's name."""
        words = set(name.split())
        return (
            icon in self._marks[package]
            or name in self._alone
            or not self._names.isdisjoint({name, *words})
            or not self._affixes.isdisjoint(words)
        )


def read_package(name: str, package: dict, part: str, modules: Path, brands: Brands) -> list[Drawing]:
    """The drawings of one package, one for each name and style, sorted."""
    content = read_json(modules / "@iconify-json" / name / "icons.json")
    best: dict[tuple[str, str], tuple[tuple[int, int, str], str]] = {}
    for icon, drawing in content["icons"].items():
        shown, style, number = name_and_style(icon, package)
        if not shown or drawing.get("hidden") or brands.has(name, icon, shown):
            continue
        rank = (abs(number - USUAL_SIZE) if number >= 10 else 0, len(icon), icon)
        best[shown, style] = min(best.get((shown, style), (rank, icon)), (rank, icon))
    return [
        Drawing(part, name, package["family"], style, shown, "", icon, svg_document(content["icons"][icon], content))
        for (shown, style), (_, icon) in sorted(best.items())
    ]


def read_flags(name: str, package: dict, modules: Path) -> list[Drawing]:
    """A package of flags by two-letter country codes; wide flags where there are square ones too."""
    entries = read_json(modules / "emojibase-data" / "en" / "data.json")
    countries = {}
    for entry in entries:
        if entry["label"].startswith("flag: ") and len(entry["hexcode"]) == 11:
            code = "".join(chr(int(part, 16) - 0x1F1E6 + ord("a")) for part in entry["hexcode"].split("-"))
            countries[code] = clean_name(entry["label"].removeprefix("flag: "))
    content = read_json(modules / "@iconify-json" / name / "icons.json")
    named = {icon.removesuffix("-4x3"): icon for icon in content["icons"]}
    return [
        Drawing(
            "flags", name, package["family"], package["style"], countries[code], "flag", named[code],
            svg_document(content["icons"][named[code]], content),
        )
        for code in sorted(named) if code in countries
    ]  # fmt: skip


def read_drawings(packages: dict, modules: Path) -> list[Drawing]:
    """All drawings in the order of the list, held-out names marked."""
    brands, catalogue, drawings = Brands(packages, modules), Catalogue.read(modules), []
    for part in PARTS:
        for name, package in packages.get(part, {}).items():
            if part == "flags":
                drawings += read_flags(name, package, modules)
            elif package.get("emoji"):
                drawings += [
                    Drawing(part, name, package["family"], name, icon.name, icon.kind, icon.name, icon.svg)
                    for icon in read_icons(modules, name, catalogue)
                ]
            else:
                drawings += read_package(name, package, part, modules, brands)
    held = held_names(drawings)
    return [
        replace(item, part=HELD_NAME) if item.part == "pretrain" and item.name in held else item for item in drawings
    ]


def held_names(drawings: list[Drawing]) -> set[str]:
    """Names that are not trained on although their words are: one in ten of several words, one in twenty of one.

    Emoji's names are not among them: the weights that pretraining starts from know those.
    """
    emoji = {item.name for item in drawings if item.kind}
    names = {item.name for item in drawings if item.part == "pretrain" and not item.kind}
    drawn = sorted(
        name
        for name in names - emoji
        if zlib.crc32(name.encode()) % (HELD_COMPOUNDS if " " in name else HELD_WORDS) == 0
    )
    seen = Counter(word for name in names - set(drawn) for word in set(name.split()))
    return {name for name in drawn if all(seen[word] >= SEEN_IN for word in name.split())}


def render(svg: str) -> np.ndarray:
    """A drawing on white, (CANVAS, CANVAS, 3) uint8, by the resvg library."""
    import resvg_py  # only this maker needs it

    svg = svg.replace(f'width="{RENDERED}" height="{RENDERED}">', f'width="{CANVAS}" height="{CANVAS}">', 1)
    picture = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=CANVAS, height=CANVAS))))
    page = Image.new("RGBA", (CANVAS, CANVAS), (255, 255, 255, 255))
    page.alpha_composite(picture.convert("RGBA"), ((CANVAS - picture.width) // 2, (CANVAS - picture.height) // 2))
    return np.asarray(page.convert("RGB"))


def near_copies(pixels: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """Which of the other drawings are within COPY_DISTANCE of one that is held out, (N,) bool."""
    cell = CANVAS // COPY_SIDE
    small = np.empty((len(pixels), COPY_SIDE**2), np.float32)
    for start in range(0, len(pixels), 2048):
        grey = np.asarray(pixels[start : start + 2048], np.float32).mean(-1)
        small[start : start + 2048] = (
            grey.reshape(-1, COPY_SIDE, cell, COPY_SIDE, cell).mean((2, 4)).reshape(-1, COPY_SIDE**2)
        )
    square = (small**2).sum(1)
    others, held, copies = np.flatnonzero(~held_out), np.flatnonzero(held_out), np.zeros(len(pixels), bool)
    for part in np.array_split(others, max(1, len(others) // 2048)) if len(held) else []:
        nearest = (square[held][:, None] - 2 * small[held] @ small[part].T).min(0) + square[part]
        copies[part] = nearest < COPY_DISTANCE**2 * COPY_SIDE**2
    return copies


def make_corpus(
    packages: dict, modules: Path, out: Path, drawer: Callable[[str], np.ndarray] = render, workers: int = 1
) -> Counter:
    """Write the corpus; returns how many drawings each part has."""
    drawings = read_drawings(packages, modules)
    out.mkdir(parents=True, exist_ok=True)
    all_file, file = out / "all.npy", out / "pixels.npy"
    pixels = np.lib.format.open_memmap(all_file, mode="w+", dtype=np.uint8, shape=(len(drawings), CANVAS, CANVAS, 3))
    with multiprocessing.Pool(workers) if workers > 1 else _Here() as pool:
        for number, picture in enumerate(pool.imap(drawer, (item.svg for item in drawings), 64)):
            pixels[number] = picture
            if number % 10000 == 0:
                print(f"{number} of {len(drawings)} drawn", flush=True)
    blank = np.array([picture.min() == picture.max() for picture in pixels])
    copies = near_copies(pixels, np.array([item.part != "pretrain" for item in drawings]) & ~blank)
    kept = np.flatnonzero(~blank & ~copies)
    print(f"{blank.sum()} blank, {copies.sum()} near copies of held-out drawings left out")
    packed = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=(len(kept), *pixels.shape[1:]))
    for start in range(0, len(kept), 4096):
        packed[start : start + 4096] = pixels[kept[start : start + 4096]]
    packed.flush()
    rows = [asdict(drawings[number]) for number in kept]
    columns = {field.name: [row[field.name] for row in rows] for field in fields(Drawing) if field.name != "svg"}
    with atomic_write(out / "index.json", "w") as index:
        json.dump(columns, index)
    all_file.unlink()
    return Counter(columns["part"])


class _Here:
    """A pool of no workers."""

    def __enter__(self) -> _Here:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def imap(self, function: Callable, items: Iterable, chunk: int) -> Iterable:
        """One after the other."""
        return map(function, items)


def attribution(packages: dict, modules: Path) -> str:
    """The packages as a Markdown table."""
    lines = ["| drawings | package | licence | part |", "|---|---|---|---|"]
    for part in PARTS:
        for name, package in sorted(packages.get(part, {}).items()):
            info = read_json(modules / "@iconify-json" / name / "info.json")
            author = info["author"]
            who = f"{info['name']}, {author['name']}, {author.get('url', '')}".rstrip(", ")
            licence = package["licence"].replace("-", " ")
            lines.append(f"| {who} | `@iconify-json/{name}` {package['version']} | {licence} | {part} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.mini_corpus", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cache", type=Path, required=True, help="folder that npm installs below")
    parser.add_argument("--out", type=Path, help="folder to write the corpus to (1.5 GB, at first twice that)")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw")
    parser.add_argument("--attribution", action="store_true", help="print the table of packages instead")
    args = parser.parse_args()
    packages = read_packages()
    modules = install(packages, args.cache)
    if args.attribution:
        print(attribution(packages, modules))
    elif args.out is None:
        parser.error("--out is needed")
    else:
        print(dict(make_corpus(packages, modules, args.out, workers=args.workers)))


if __name__ == "__main__":
    main()
