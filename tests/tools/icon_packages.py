"""Made-up icon packages on disk, in the layout of the real ones, and a renderer that needs no library."""

import io
import json
import zlib
from pathlib import Path

from PIL import Image

from tools.bundled_data import PRETRAINING_STYLES, STYLES

SUBGROUPS = {"1": "animal-mammal", "2": "food-fruit", "3": "flag", "4": "person-role", "5": "keycap", "6": "mail"}
FRUITS = ["apple", "pear", "plum", "kiwi", "fig", "lime", "quince", "mango"]
MAMMALS = ["Red-Panda", "cat", "dog", "ox", "yak", "bat", "elk", "lynx", "puma", "hare"]
OTHERS = [
    ("flag: Chad", 9, 3, "1F1F9-1F1E9"),
    ("woman farmer", 1, 4, "1F469-200D-1F33E"),
    ("farmer", 1, 4, "1F9D1-200D-1F33E"),
    ("keycap: 1", 8, 5, "0031-FE0F-20E3"),
    ("love letter", 7, 6, "1F48C"),
]


def catalogue_entries() -> list[dict]:
    """Emoji as `emojibase-data` lists them."""
    rows = [(name, 3, 1, f"1F4{number:02d}") for number, name in enumerate(MAMMALS)]
    rows += [(name, 4, 2, f"1F3{number:02d}") for number, name in enumerate(FRUITS)]
    keys = ("label", "group", "subgroup", "hexcode")
    return [dict(zip(keys, row, strict=True)) for row in [*rows, *OTHERS]]


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_packages(folder: Path) -> Path:
    """All packages; the high-contrast style lacks one fruit, and one icon goes by its code point alone."""
    write_json(folder / "emojibase-data" / "en" / "data.json", catalogue_entries())
    write_json(folder / "emojibase-data" / "meta" / "groups.json", {"subgroups": SUBGROUPS})
    for style in [*STYLES, *PRETRAINING_STYLES]:
        names = [entry["label"].lower().replace(": ", "-").replace(" ", "-") for entry in catalogue_entries()]
        names = ["tabby" if name == "cat" else name for name in names if (style, name) != (last_style(), "fig")]
        icons = {name: {"body": f"<path id='{style} {name}' fill='currentColor'/>"} for name in names}
        icons["dog-medium-skin-tone"] = {"body": "<path/>"}
        write_json(folder / "@iconify-json" / style / "icons.json", {"icons": icons, "width": 32, "height": 32})
        write_json(folder / "@iconify-json" / style / "chars.json", {"1f401": "tabby"})
    return folder


def last_style() -> str:
    return list(STYLES)[-1]


def render(svg: str) -> bytes:
    """A PNG in a colour that hangs on the drawing."""
    number = zlib.crc32(svg.encode())
    buffer = io.BytesIO()
    Image.new("RGBA", (96, 96), (number % 256, number // 256 % 256, number // 65536 % 256, 255)).save(buffer, "PNG")
    return buffer.getvalue()
