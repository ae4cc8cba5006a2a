"""The zero-shot figures of the miniature: which drawings the views are judged by, and the tables."""

import numpy as np

from datasets.mini import VARIANTS
from prompting.weight_files import ASSETS
from tools.mini_figures import table, view_rows
from tools.pretrain_clip import Drawing


def icon(name: str, package: str, part: str) -> Drawing:
    pixels = np.full((64, 64, 3), 255, np.uint8)
    pixels[10:30, 10 : 20 + 5 * len(name)] = 34
    return Drawing(pixels, name, "", "outline", package, part)


def test_views_are_judged_by_names_that_are_known_and_that_several_families_draw():
    corpus = [icon(name, "a", "pretrain") for name in ("cat", "bell", "clock")]
    corpus += [icon(name, package, "choose") for name in ("cat", "bell", "anchor") for package in ("b", "c")]
    corpus += [icon("clock", "b", "choose"), icon("cat", "d", "report")]
    checkpoint = ASSETS / "tiny_clip.pt"
    rows = view_rows(corpus, [checkpoint])
    assert [title for title, _ in rows] == [
        f"{variant} (4, 2)" for variant in ("plain", "photo", *(name for name in VARIANTS if name != "plain"))
    ]
    assert all(0 <= float(cell) <= 100 for _, cells in rows for cell in cells)
    text = table("view", [checkpoint, checkpoint], [("plain (4, 2)", ["1.0", "2.0"])])
    assert text == "| view | tiny_clip | tiny_clip |\n|---|---|---|\n| plain (4, 2) | 1.0 | 2.0 |"
