r"""Make `assets/emoji`: emoji in four drawing styles as 64x64 images, with split files for kinds and for concepts.

    npm install --prefix icons @iconify-json/noto@1.2.9 @iconify-json/fluent-emoji@1.2.7 \
        @iconify-json/fluent-emoji-flat@1.2.6 @iconify-json/fluent-emoji-high-contrast@1.2.6 emojibase-data@17.0.0
    pip install resvg-py==0.5.0
    python -m tools.make_emoji --packages icons/node_modules --out assets/emoji

The six packages of the pretraining styles (`tools/emoji_corpus.py`) come the same way. The same versions give the same
files again. An image is in the data set if all four styles draw it. The split is by name, the same in every style, so
that results on two styles are about the same things.
"""

import argparse
import io
import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dassl.utils import atomic_write
from tools.emoji_corpus import STYLES as PRETRAINING_STYLES
from tools.emoji_icons import KINDS, Catalogue, Icon, draw, read_icons, resvg

# Short name of each icon package, in paths and split files; the first is the source style, the rest the targets.
STYLES = {
    "noto": "noto",
    "fluent-emoji": "fluent",
    "fluent-emoji-flat": "flat",
    "fluent-emoji-high-contrast": "contrast",
}
SOURCE, *TARGETS = STYLES
# fmt: off
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
CONCEPTS, LONGEST_CONCEPT = 100, 3
TRAIN_SHARE, VAL_SHARE = 0.5, 0.1
SPLIT_SEED = 0
QUALITY = 85

Entry = list[str | int]
Parts = dict[str, list[Entry]]


@dataclass(frozen=True)
class Concept:
    """What one emoji shows, in any style."""

    name: str
    kind: str

    def path(self, style: str) -> str:
        """Where its image in one style lies below `images/`."""
        return f"{STYLES[style]}/{file_name(self.kind)}/{file_name(self.name)}.webp"


def file_name(name: str) -> str:
    """A name without blanks and apostrophes."""
    return name.replace("'", "").replace(" ", "_")


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
        rng.shuffle(members)
        train, val = math.ceil(TRAIN_SHARE * len(members)), max(1, round(VAL_SHARE * len(members)))
        bounds = (0, train, train + val, len(members))
        for part, start, stop in zip(parts, bounds, bounds[1:], strict=False):
            parts[part] += sorted(members[start:stop], key=lambda item: item.name)
    return parts


def kinds_split(parts: dict[str, list[Concept]], style: str) -> Parts:
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


def concepts_split(concepts: list[Concept], styles: list[str]) -> Parts:
    """Split file with one training image per concept, in the source style, and test images in the styles given."""
    return {
        "train": [[item.path(SOURCE), label, item.name] for label, item in enumerate(concepts)],
        "val": [],
        "test": [[item.path(style), label, item.name] for style in styles for label, item in enumerate(concepts)],
    }


def write_image(icon: Icon, path: Path, render: Callable[[str], bytes]) -> None:
    """Draw an icon into a WebP file."""
    buffer = io.BytesIO()
    Image.fromarray(draw(icon, render)).save(buffer, "WEBP", quality=QUALITY, method=6)
    with atomic_write(path) as file:
        file.write(buffer.getvalue())


def write_splits(icons: dict[str, list[Icon]], pretrained: list[set[str]], out: Path) -> list[Concept]:
    """Write the split files and return every concept that has images."""
    concepts = shared_concepts(icons)
    parts = split_names(concepts, SPLIT_SEED)
    files = {f"kinds_{suffix}": kinds_split(parts, style) for style, suffix in STYLES.items()}
    chosen = choose_concepts(concepts, pretrained, SPLIT_SEED)
    files["concepts"] = concepts_split(chosen, TARGETS)
    files |= {f"concepts_{STYLES[style]}": concepts_split(chosen, [style]) for style in TARGETS}
    for name, content in files.items():
        with atomic_write(out / f"split_emoji_{name}.json", "w") as file:
            file.write(json.dumps(content) + "\n")
    return concepts


def make(packages: Path, out: Path, render: Callable[[str], bytes] = resvg) -> int:
    """Write the data set and return the number of images."""
    catalogue = Catalogue.read(packages)
    icons = {style: read_icons(packages, style, catalogue) for style in STYLES}
    pretrained = [{icon.name for icon in read_icons(packages, style, catalogue)} for style in PRETRAINING_STYLES]
    concepts = {item.name: item for item in write_splits(icons, pretrained, out)}
    drawn = [icon for style in STYLES for icon in icons[style] if icon.name in concepts]
    for icon in drawn:
        write_image(icon, out / "images" / concepts[icon.name].path(icon.style), render)
    return len(drawn)


def main() -> None:
    """Read the command line and write the data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="node_modules folder with the icon packages")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, for example assets/emoji")
    arguments = parser.parse_args()
    print(f"{make(arguments.packages, arguments.out)} images")


if __name__ == "__main__":
    main()
