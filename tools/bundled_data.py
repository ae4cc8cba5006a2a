r"""Make the data sets that ship in `assets/`, and the emoji that the bundled CLIP is pretrained on.

    python -m tools.bundled_data digits --out assets/digits

    npm install --prefix icons @iconify-json/noto@1.2.9 @iconify-json/fluent-emoji@1.2.7 \
        @iconify-json/fluent-emoji-flat@1.2.6 @iconify-json/fluent-emoji-high-contrast@1.2.6 \
        @iconify-json/twemoji@1.2.5 @iconify-json/emojione@1.2.3 @iconify-json/emojione-monotone@1.2.1 \
        @iconify-json/streamline-emojis@1.2.4 @iconify-json/noto-v1@1.2.5 @iconify-json/fxemoji@1.2.2 \
        emojibase-data@17.0.0
    pip install resvg-py==0.5.0
    python -m tools.bundled_data emoji --packages icons/node_modules --out assets/emoji
    python -m tools.bundled_data corpus --packages icons/node_modules --out runs/emoji_corpus.npz

Digits are scikit-learn's handwritten ones: 8x8 counts from 0 to 16, inverted to dark on white, enlarged to 36x36
(bicubic) and framed in white to 48x48.

Emoji come from npm's packages `@iconify-json/<style>`, one drawing style each; `emojibase-data` gives every emoji's
name and subgroup from the Unicode standard. `emoji` writes those that all four styles above draw, as 64x64 images with
split files for kinds and for concepts; the split is by name, the same in every style, so that results on two styles
are about the same things. `corpus` renders the six styles of pretraining (`PRETRAINING_STYLES`), none of which
is shipped; `emoji` reads them too, for the concepts that they draw. The same versions give the same files again.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import random
import re
import sys
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.commandline import add_debug, guarded
from common.files import atomic_write

SPLIT_SEED = 0

# Digits
SIDE, INNER = 48, 36
TRAIN_PER_CLASS, VAL_PER_CLASS = 60, 30
DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

Entry = list[str | int]  # path below images/, label, class name

# Emoji
CANVAS, RENDERED, WEBP_QUALITY = 64, 96, 85
# Short name of each icon package, in paths and split files; the first is the source style, the rest the targets.
STYLES = {
    "noto": "noto",
    "fluent-emoji": "fluent",
    "fluent-emoji-flat": "flat",
    "fluent-emoji-high-contrast": "contrast",
}
SOURCE, *TARGETS = STYLES
# Styles of pretraining and how captions call each. The held-out one is never trained on: it measures how a run goes.
PRETRAINING_STYLES = {
    "twemoji": "flat drawing",
    "emojione": "colorful drawing",
    "emojione-monotone": "black and white drawing",
    "noto-v1": "cartoon",
    "streamline-emojis": "sketch",
    "fxemoji": "icon",
}
HELD_OUT_STYLE = "fxemoji"
UNUSED_GROUPS = {2, 9}  # hair and skin components, flags
UNUSED_SUBGROUPS = {"keycap"}  # digits are the business of the other corpus
PERSON_VARIANT = re.compile(r"^(wo)?m[ae]n ")
CONCEPTS, LONGEST_CONCEPT = 100, 3
TRAIN_SHARE, VAL_SHARE = 0.5, 0.1

# What the drawings of one Unicode subgroup have in common, in words.
# fmt: off
KINDS = {
    "animal-mammal": "mammal", "animal-bird": "bird", "animal-bug": "insect", "animal-marine": "sea creature",
    "animal-reptile": "reptile", "animal-amphibian": "frog", "plant-flower": "flower", "plant-other": "plant",
    "food-fruit": "fruit", "food-vegetable": "vegetable", "food-prepared": "meal", "food-sweet": "dessert",
    "food-asian": "asian dish", "drink": "drink", "dishware": "dishes", "transport-ground": "land vehicle",
    "transport-air": "aircraft", "transport-water": "boat", "place-building": "building", "place-other": "place",
    "place-geographic": "landscape", "place-religious": "place of worship", "place-map": "map",
    "clothing": "piece of clothing", "sport": "sport", "musical-instrument": "musical instrument", "tool": "tool",
    "office": "office supply", "time": "clock", "sky-weather": "sky", "book-paper": "book", "mail": "mail",
    "money": "money", "household": "household item", "light-video": "light", "computer": "computer",
    "phone": "telephone", "writing": "pen", "lock": "lock", "science": "science tool", "medical": "medical item",
    "heart": "heart", "arrow": "arrow", "zodiac": "zodiac sign", "game": "game", "event": "celebration",
    "arts-crafts": "art", "award-medal": "medal", "face-smiling": "smiling face", "face-concerned": "worried face",
    "face-negative": "angry face", "face-affection": "loving face", "face-unwell": "sick face",
    "person-role": "person at work", "person-activity": "active person", "person-sport": "athlete",
    "person-gesture": "gesturing person", "person-fantasy": "fantasy person", "family": "family",
    "geometric": "geometric shape", "alphanum": "lettered button", "av-symbol": "media button",
    "body-parts": "body part", "transport-sign": "traffic sign", "warning": "warning sign",
}
KIND_NAMES = (
    "arrow", "bird", "book", "building", "clock", "drink", "fruit", "game", "geometric shape", "heart",
    "household item", "insect", "land vehicle", "light", "mammal", "meal", "office supply", "piece of clothing",
    "sea creature", "sky", "sport", "tool", "vegetable", "worried face",
)
# Kinds whose members can be told apart by name; "three o'clock" and "red heart" are not among them.
CONCEPT_KINDS = (
    "bird", "building", "drink", "fruit", "game", "household item", "insect", "land vehicle", "light", "mammal",
    "meal", "office supply", "piece of clothing", "sea creature", "sport", "tool", "vegetable",
)
# fmt: on


class IconPackageError(FileNotFoundError):
    """An icon package is not where it should be."""


def render_digit(counts: np.ndarray) -> Image.Image:
    """One 8x8 digit with values 0 - 16 as a 48x48 grey image, dark on white."""
    grey = np.round(255 - counts * (255 / 16)).clip(0, 255).astype(np.uint8)
    image = Image.new("L", (SIDE, SIDE), 255)
    offset = (SIDE - INNER) // 2
    image.paste(Image.fromarray(grey).resize((INNER, INNER), Image.Resampling.BICUBIC), (offset, offset))
    return image


def split_digits(labels: list[int], seed: int) -> dict[str, list[int]]:
    """Deal image indices into train, val and test: the first two with a fixed number per class, the rest is test."""
    rng = random.Random(seed)
    parts: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for label in sorted(set(labels)):
        indices = [index for index, value in enumerate(labels) if value == label]
        for part, dealt in deal(indices, TRAIN_PER_CLASS, VAL_PER_CLASS, rng).items():
            parts[part] += sorted(dealt)
    return parts


def deal(items: list[Any], train: int, val: int, rng: random.Random) -> dict[str, list[Any]]:
    """Shuffle items in place, and cut them into train, val and the rest, which is test."""
    rng.shuffle(items)
    return {"train": items[:train], "val": items[train : train + val], "test": items[train + val :]}


def write_digits(out: Path) -> None:
    """Write every image and the split file below `out`."""
    from sklearn.datasets import load_digits  # only this maker needs it

    digits = load_digits()
    labels = [int(label) for label in digits.target]
    entries: list[Entry] = []
    for index, (counts, label) in enumerate(zip(digits.images, labels, strict=True)):
        name = DIGIT_NAMES[label]
        entries.append([f"digit_{name}/{index:04d}.png", label, f"digit {name}"])
        path = out / "images" / entries[-1][0]
        path.parent.mkdir(parents=True, exist_ok=True)
        render_digit(counts).save(path, optimize=True)
    parts = split_digits(labels, SPLIT_SEED)
    write_split(
        out / "split_digits.json", {part: [entries[index] for index in indices] for part, indices in parts.items()}
    )


def write_split(path: Path, content: dict[str, list[Entry]]) -> None:
    """Write a split file."""
    with atomic_write(path, "w") as file:
        file.write(json.dumps(content) + "\n")


@dataclass(frozen=True)
class Concept:
    """What one emoji shows, in any style."""

    name: str
    kind: str  # what it is one of, for example "mammal"

    def path(self, style: str) -> str:
        """Where its image in one style lies below `images/`."""
        return f"{STYLES[style]}/{file_name(self.kind)}/{file_name(self.name)}.webp"


def file_name(name: str) -> str:
    """A name without blanks and apostrophes."""
    return name.replace("'", "").replace(" ", "_")


@dataclass(frozen=True)
class Icon(Concept):
    """One emoji in one style."""

    style: str  # name of the icon package
    svg: str


def clean_name(label: str) -> str:
    """A name for captions: lower case ASCII words, hyphens read as spaces, brackets and punctuation left out.

    >>> clean_name("Face with Rolling-Eyes (new)")
    'face with rolling eyes new'
    """
    ascii_label = unicodedata.normalize("NFKD", label.replace("\u2019", "'")).encode("ascii", "ignore").decode()
    return " ".join(re.sub(r"[^a-z0-9' ]", " ", ascii_label.lower()).split())


def slug(text: str) -> str:
    """Letters and digits alone, so that two spellings of one name meet."""
    return re.sub(r"[^a-z0-9]", "", clean_name(text.replace("&", " and ")))


def read_json(path: Path) -> dict | list:
    """One JSON file of a package.

    Raises:
        IconPackageError: it is not there; the message has the command that installs the packages.
    """
    if not path.is_file():
        raise IconPackageError(f"{path} does not exist; python -m tools.bundled_data --help says how to install it")
    return json.loads(path.read_text(encoding="utf-8"))


class Catalogue:
    """Emoji names: find the meaning of an icon by its file name or code point."""

    def __init__(self, entries: list[dict], subgroups: dict[str, str]) -> None:
        self._by_slug: dict[str, Concept] = {}
        self._by_code: dict[str, Concept] = {}
        for entry in entries:
            label, group = entry["label"], entry.get("group")
            subgroup = subgroups.get(str(entry.get("subgroup")), "")
            if group is None or group in UNUSED_GROUPS or subgroup in UNUSED_SUBGROUPS:
                continue
            if ":" in label or PERSON_VARIANT.match(label):  # a gendered variant, or one named after a colon
                continue
            meaning = Concept(clean_name(label), KINDS.get(subgroup, subgroup.replace("-", " ")))
            self._by_slug[slug(label)] = meaning
            self._by_slug.setdefault(slug(re.sub(r"\bface\b|\bbutton\b", "", label)), meaning)
            self._by_code[entry["hexcode"].replace("-FE0F", "")] = meaning

    @classmethod
    def read(cls, packages: Path) -> Catalogue:
        """Read `emojibase-data` below a `node_modules` folder."""
        folder = packages / "emojibase-data"
        return cls(read_json(folder / "en" / "data.json"), read_json(folder / "meta" / "groups.json")["subgroups"])

    def find(self, icon: str, code: str = "") -> Concept | None:
        """Concept of an icon, None for what is not in the corpus."""
        if "skin-tone" in icon or icon.startswith("flag"):
            return None
        return self._by_slug.get(slug(icon)) or self._by_code.get(code.upper().replace("-FE0F", ""))


def read_icons(packages: Path, style: str, catalogue: Catalogue) -> list[Icon]:
    """The emoji of one style, each name once, in the order of the package."""
    folder = packages / "@iconify-json" / style
    content = read_json(folder / "icons.json")
    names_by_code = read_json(folder / "chars.json") if (folder / "chars.json").is_file() else {}
    codes = {name: code for code, name in names_by_code.items()}
    icons: dict[str, Icon] = {}
    for name, drawing in content["icons"].items():
        meaning = catalogue.find(name, codes.get(name, ""))
        if meaning and meaning.name not in icons:
            icons[meaning.name] = Icon(meaning.name, meaning.kind, style, svg_document(drawing, content))
    return list(icons.values())


def svg_document(drawing: dict, package: dict) -> str:
    """A drawing of an icon package as an SVG document; `currentColor` becomes nearly black."""
    width = drawing.get("width", package.get("width", 16))
    height = drawing.get("height", package.get("height", 16))
    box = f"{drawing.get('left', 0)} {drawing.get('top', 0)} {width} {height}"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box}" width="{RENDERED}" height="{RENDERED}">{drawing["body"]}</svg>'
    ).replace("currentColor", "#222")


def resvg(svg: str) -> bytes:
    """Render SVG to PNG with the resvg library (`pip install resvg-py`)."""
    import resvg_py  # only the maker of the data set needs it

    return bytes(resvg_py.svg_to_bytes(svg_string=svg, width=RENDERED, height=RENDERED))


def draw(icon: Icon, render: Callable[[str], bytes] = resvg) -> np.ndarray:
    """An icon on white, (CANVAS, CANVAS, 3) uint8."""
    drawing = Image.open(io.BytesIO(render(icon.svg))).convert("RGBA")
    page = Image.new("RGBA", drawing.size, (255, 255, 255, 255))
    page.alpha_composite(drawing)
    return np.asarray(page.convert("RGB").resize((CANVAS, CANVAS), Image.Resampling.LANCZOS))


def shared_concepts(icons: dict[str, list[Icon]]) -> list[Concept]:
    """What every style draws, of the kinds in the data set, sorted by kind and name."""
    names = set.intersection(*({icon.name for icon in drawn} for drawn in icons.values()))
    concepts = {Concept(icon.name, icon.kind) for icon in icons[SOURCE] if icon.name in names}
    return sorted((item for item in concepts if item.kind in KIND_NAMES), key=lambda item: (item.kind, item.name))


def split_names(concepts: list[Concept], seed: int) -> dict[str, list[Concept]]:
    """Deal concepts into train, val and test, in the same proportions for each kind."""
    rng = random.Random(seed)
    parts: dict[str, list[Concept]] = {"train": [], "val": [], "test": []}
    for kind in KIND_NAMES:
        members = [item for item in concepts if item.kind == kind]
        train, val = math.ceil(TRAIN_SHARE * len(members)), max(1, round(VAL_SHARE * len(members)))
        for part, dealt in deal(members, train, val, rng).items():
            parts[part] += sorted(dealt, key=lambda item: item.name)
    return parts


def kinds_split(parts: dict[str, list[Concept]], style: str) -> dict[str, list[Entry]]:
    """Split file of the task "which kind is it" in one style."""
    return {
        part: [[item.path(style), KIND_NAMES.index(item.kind), item.kind] for item in concepts]
        for part, concepts in parts.items()
    }


def choose_concepts(concepts: list[Concept], pretrained: list[set[str]], seed: int) -> list[Concept]:
    """Draw the classes of the task "which one is it", sorted by name.

    Only short names are drawn, none that is also a kind, and only what at least two pretraining styles draw.
    """
    able = [
        item
        for item in concepts
        if item.kind in CONCEPT_KINDS
        and len(item.name.split()) <= LONGEST_CONCEPT
        and item.name not in KINDS.values()
        and sum(item.name in names for names in pretrained) >= 2
    ]
    return sorted(random.Random(seed).sample(able, CONCEPTS), key=lambda item: item.name)


def concepts_split(concepts: list[Concept], styles: list[str]) -> dict[str, list[Entry]]:
    """Split file with one training image per concept, in the source style, and test images in the styles given."""
    return {
        "train": [[item.path(SOURCE), label, item.name] for label, item in enumerate(concepts)],
        "val": [],
        "test": [[item.path(style), label, item.name] for style in styles for label, item in enumerate(concepts)],
    }


def write_emoji(packages: Path, out: Path, render: Callable[[str], bytes] = resvg) -> int:
    """Write the data set of all four styles and return the number of images."""
    catalogue = Catalogue.read(packages)
    icons = {style: read_icons(packages, style, catalogue) for style in STYLES}
    pretrained = [{icon.name for icon in read_icons(packages, style, catalogue)} for style in PRETRAINING_STYLES]
    concepts = shared_concepts(icons)
    parts = split_names(concepts, SPLIT_SEED)
    chosen = choose_concepts(concepts, pretrained, SPLIT_SEED)
    files = {f"kinds_{suffix}": kinds_split(parts, style) for style, suffix in STYLES.items()}
    files["concepts"] = concepts_split(chosen, TARGETS)
    files |= {f"concepts_{STYLES[style]}": concepts_split(chosen, [style]) for style in TARGETS}
    for name, content in files.items():
        write_split(out / f"split_emoji_{name}.json", content)
    names = {item.name for item in concepts}
    drawn = [icon for style in STYLES for icon in icons[style] if icon.name in names]
    for icon in drawn:
        buffer = io.BytesIO()
        Image.fromarray(draw(icon, render)).save(buffer, "WEBP", quality=WEBP_QUALITY, method=6)
        with atomic_write(out / "images" / icon.path(icon.style)) as file:
            file.write(buffer.getvalue())
    return len(drawn)


def render_corpus(packages: Path, out: Path, render: Callable[[str], bytes] = resvg) -> int:
    """Draw every emoji of the six styles into one `.npz` file and return their number."""
    catalogue = Catalogue.read(packages)
    icons = [icon for style in PRETRAINING_STYLES for icon in read_icons(packages, style, catalogue)]
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        out,
        pixels=np.stack([draw(icon, render) for icon in icons]),
        names=np.array([icon.name for icon in icons]),
        kinds=np.array([icon.kind for icon in icons]),
        styles=np.array([icon.style for icon in icons]),
    )
    return len(icons)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.bundled_data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("digits", "emoji", "corpus"))
    parser.add_argument("--out", type=Path, required=True, help="folder to write; of the corpus an .npz file")
    parser.add_argument("--packages", type=Path, help="node_modules folder with the icon packages")
    add_debug(parser)
    args = parser.parse_args(argv)
    if args.what != "digits" and args.packages is None:
        parser.error("--packages is needed")
    return guarded(run, args)


def run(args: argparse.Namespace) -> None:
    """Write what is asked for."""
    if args.what == "digits":
        write_digits(args.out)
    elif args.what == "emoji":
        print(f"{write_emoji(args.packages, args.out)} images")
    else:
        print(f"{render_corpus(args.packages, args.out)} drawings")


if __name__ == "__main__":
    sys.exit(main())
