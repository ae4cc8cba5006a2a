"""Emoji as icon packages hold them: which are used, what they are called, and how they look.

The packages are npm's `@iconify-json/<style>`, one drawing style each; `emojibase-data` gives every emoji's name and
subgroup from the Unicode standard. Both are read from a `node_modules` folder.
"""

import io
import json
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

CANVAS, RENDERED = 64, 96
UNUSED_GROUPS = {2, 9}  # hair and skin components, flags
UNUSED_SUBGROUPS = {"keycap"}  # digits are the business of the other corpus
PERSON_VARIANT = re.compile(r"^(wo)?m[ae]n ")

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
# fmt: on


class IconPackageError(FileNotFoundError):
    """An icon package is not where it should be."""


@dataclass(frozen=True)
class Icon:
    """One emoji in one style.

    Attributes:
        style: name of the icon package.
        name: what it is called, the same in every style.
        kind: what it is one of, for example "mammal".
        svg: the drawing.
    """

    style: str
    name: str
    kind: str
    svg: str


@dataclass(frozen=True)
class Meaning:
    """Name and kind of an emoji."""

    name: str
    kind: str


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


def is_used(group: int | None, label: str) -> bool:
    """Whether an emoji is in the corpus: no flags, components, gendered variants or variants named after a colon."""
    return group is not None and group not in UNUSED_GROUPS and ":" not in label and not PERSON_VARIANT.match(label)


def read_json(path: Path) -> dict | list:
    """One JSON file of a package.

    Raises:
        IconPackageError: it is not there; the message has the command that installs the packages.
    """
    if not path.is_file():
        raise IconPackageError(f"{path} does not exist; python -m tools.make_emoji --help says how to install it")
    return json.loads(path.read_text(encoding="utf-8"))


class Catalogue:
    """Emoji names: find the meaning of an icon by its file name or code point."""

    def __init__(self, entries: list[dict], subgroups: dict[str, str]) -> None:
        self._by_slug: dict[str, Meaning] = {}
        self._by_code: dict[str, Meaning] = {}
        for entry in entries:
            subgroup = subgroups.get(str(entry.get("subgroup")), "")
            if not is_used(entry.get("group"), entry["label"]) or subgroup in UNUSED_SUBGROUPS:
                continue
            meaning = Meaning(clean_name(entry["label"]), KINDS.get(subgroup, subgroup.replace("-", " ")))
            self._by_slug[slug(entry["label"])] = meaning
            self._by_slug.setdefault(slug(re.sub(r"\bface\b|\bbutton\b", "", entry["label"])), meaning)
            self._by_code[entry["hexcode"].replace("-FE0F", "")] = meaning

    @classmethod
    def read(cls, packages: Path) -> "Catalogue":
        """Read `emojibase-data` below a `node_modules` folder."""
        folder = packages / "emojibase-data"
        return cls(read_json(folder / "en" / "data.json"), read_json(folder / "meta" / "groups.json")["subgroups"])

    def find(self, icon: str, code: str = "") -> Meaning | None:
        """Meaning of an icon, None for what is not in the corpus."""
        if "skin-tone" in icon or icon.startswith("flag"):
            return None
        return self._by_slug.get(slug(icon)) or self._by_code.get(code.upper().replace("-FE0F", ""))


def read_icons(packages: Path, style: str, catalogue: Catalogue) -> list[Icon]:
    """The emoji of one style, each name once, in the order of the package."""
    folder = packages / "@iconify-json" / style
    content = read_json(folder / "icons.json")
    codes = {name: code for code, name in (read_json(folder / "chars.json") if has_codes(folder) else {}).items()}
    icons: dict[str, Icon] = {}
    for name, drawing in content["icons"].items():
        meaning = catalogue.find(name, codes.get(name, ""))
        if meaning and meaning.name not in icons:
            icons[meaning.name] = Icon(style, meaning.name, meaning.kind, svg_document(drawing, content))
    return list(icons.values())


def has_codes(folder: Path) -> bool:
    """Whether a package lists code points."""
    return (folder / "chars.json").is_file()


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
