"""The mini corpus from made-up icon packages: names, styles, brands, what is held out, near copies, what is written."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.tools.icon_packages import write_json, write_packages
from tools import mini_corpus
from tools.mini_corpus import (
    Brands,
    Drawing,
    held_names,
    install,
    make_corpus,
    name_and_style,
    near_copies,
    read_drawings,
    read_flags,
    read_packages,
    render,
)
from tools.pretrain_clip import read_corpus

LINE = {"version": "1.0.0", "licence": "MIT", "family": "line", "style": "outline"}
ROUND = {"version": "1.0.0", "licence": "CC0-1.0", "family": "round", "style": "solid"}
PACKAGES = {
    "emojibase": "1.0.0",
    "pretrain": {"line": LINE, "twemoji": LINE | {"family": "twemoji", "style": "colour", "emoji": True}},
    "choose": {"round": ROUND},
    "brand_categories": {"line": ["Logos"]},
    "brand_affixes": ["logo"],
    "brands": ["acme"],
    "not_brands": ["leaf"],
    "brands_alone": ["leaf"],
}


def square(x: int, y: int, side: int = 8) -> dict:
    return {"body": f'<path d="M{x} {y}h{side}v{side}h-{side}z" fill="currentColor"/>'}


@pytest.fixture
def modules(tmp_path) -> Path:
    folder = write_packages(tmp_path / "node_modules")
    line = {
        "home": square(0, 0),
        "home-24": square(1, 1),
        "home-16": square(2, 2),
        "home-fill": square(3, 3),
        "leaf-green": square(4, 4),
        "leaf": square(5, 5),
        "zork-logo": square(6, 6),
        "umbrella-corp": square(7, 7),
        "acme-box": square(8, 8),
        "secret": square(9, 9) | {"hidden": True},
        "number-7": square(10, 10),
        "123": square(11, 11),
    }
    round_ = {"home": square(12, 12), "house": square(0, 0), "zork": square(13, 13), "umbrella-corp": square(14, 14)}
    for name, icons in (("line", line), ("round", round_)):
        write_json(folder / "@iconify-json" / name / "icons.json", {"icons": icons, "width": 24, "height": 24})
        info = {"name": name.title(), "author": {"name": "A. Painter", "url": "https://example.org"}}
        write_json(folder / "@iconify-json" / name / "info.json", info)
    write_json(folder / "@iconify-json" / "line" / "metadata.json", {"categories": {"Logos": ["umbrella-corp"]}})
    return folder


@pytest.mark.parametrize(
    ("icon", "package", "expected"),
    [
        ("arrow-left-24-filled", {"style": "outline"}, ("arrow left", "solid", 24)),
        ("home-alt-2", {"style": "solid"}, ("home", "solid", 2)),
        ("bell-bold-duotone", {"style": "outline", "strip": ["bold"]}, ("bell", "duotone", 0)),
        ("twotone-add-box", {"style": "solid", "prefixes": ["baseline", "twotone"]}, ("add box", "duotone", 0)),
        ("skin-light", {"style": "outline"}, ("skin light", "outline", 0)),
        ("bell-fill", {"style": "pixel"}, ("bell", "pixel", 0)),
        ("circle-number-5", {"style": "outline"}, ("", "", 0)),
        ("a-b-c-d-e-f", {"style": "outline"}, ("", "outline", 0)),
        ("outline", {"style": "outline"}, ("outline", "outline", 0)),
    ],
)
def test_names_lose_what_says_the_style(icon, package, expected):
    assert name_and_style(icon, package) == expected


def test_one_drawing_for_each_name_and_style_without_brands(modules):
    drawings = read_drawings(PACKAGES, modules)
    line = [(item.name, item.style, item.icon) for item in drawings if item.package == "line"]
    assert line == [
        ("home", "outline", "home"),
        ("home", "solid", "home-fill"),
        ("leaf green", "outline", "leaf-green"),
    ]
    # "zork" and "umbrella corp" are brands in one package, so in all.
    assert [item.name for item in drawings if item.package == "round"] == ["home", "house"]
    emoji = [item for item in drawings if item.package == "twemoji"]
    assert ("red panda", "mammal", "twemoji") in [(item.name, item.kind, item.style) for item in emoji]


def test_a_brands_name_counts_inside_longer_names_if_it_is_one_word(modules):
    brands = Brands(PACKAGES, modules)
    assert brands.has("round", "x", "zork tower")
    assert not brands.has("round", "x", "corp tower")
    assert not brands.has("round", "x", "leaf green")
    assert brands.has("round", "x", "leaf")


def test_held_out_names_are_made_of_words_that_are_seen():
    words = [f"w{number}" for number in range(30)]
    names = [*words, *(f"{first} {second}" for first in words for second in words if first != second)]
    drawings = [Drawing("pretrain", "p", "f", "outline", name, "", name, "") for name in [*names, "odd one"]]
    drawings.append(Drawing("pretrain", "e", "e", "e", names[40], "kind", "x", ""))
    held = held_names(drawings)
    seen = Counter(word for name in names if name not in held for word in set(name.split()))
    assert 50 < len(held) < 140
    assert all(seen[word] >= 3 for name in held for word in name.split())
    assert not held & {names[40], "odd one"}
    assert held == held_names(drawings[::-1])


def test_near_copies_are_those_of_held_out_drawings():
    pixels = np.full((4, 64, 64, 3), 255, np.uint8)
    pixels[0, 8:40, 8:40] = pixels[1, 8:40, 9:40] = 0
    pixels[2, 30:60, 30:60] = pixels[3, 30:60, 30:60] = 0
    assert near_copies(pixels, np.array([True, False, False, False])).tolist() == [False, True, False, False]
    assert not near_copies(pixels, np.zeros(4, bool)).any()


def test_corpus_is_packed_and_read_by_pretraining(modules, tmp_path):
    pytest.importorskip("resvg_py", reason="renders SVG")
    counts = make_corpus(PACKAGES, modules, tmp_path / "one")
    make_corpus(PACKAGES, modules, tmp_path / "two", workers=2)
    for name in ("pixels.npy", "index.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["index.json", "pixels.npy"]
    corpus = read_corpus(tmp_path / "one")
    icons = [(item.name, item.part) for item in corpus if not item.kind]
    # The line family's "home" is drawn as the held-out "house" is. The made-up emoji are blank.
    assert icons == [("home", "pretrain"), ("leaf green", "pretrain"), ("home", "choose"), ("house", "choose")]
    assert counts == {"pretrain": 2, "choose": 2}
    assert [item.held_out for item in corpus] == [False, False, True, True]
    assert corpus[0].pixels.shape == (64, 64, 3)


def test_drawings_are_dark_on_white():
    pytest.importorskip("resvg_py", reason="renders SVG")
    svg = mini_corpus.svg_document(square(0, 0, 12), {"width": 24, "height": 24})
    picture = render(svg)
    assert picture.shape == (64, 64, 3)
    assert (picture[:32, :32] == 34).all()
    assert (picture[33:] == 255).all()


def test_flags_go_by_their_countries(modules):
    entries = [{"label": "flag: Côte d\u2019Ivoire", "hexcode": "1F1E8-1F1EE"}, {"label": "cat", "hexcode": "1F431"}]
    write_json(modules / "emojibase-data" / "en" / "data.json", entries)
    icons = {"ci-1x1": square(0, 0), "ci-4x3": square(1, 1), "zz-4x3": square(0, 0)}
    write_json(modules / "@iconify-json" / "flag" / "icons.json", {"icons": icons})
    (drawing,) = read_flags("flag", LINE, modules)
    assert (drawing.name, drawing.icon, drawing.part) == ("cote d'ivoire", "ci-4x3", "flags")


def test_what_is_installed_is_not_fetched_again(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(mini_corpus.subprocess, "run", lambda command, check: commands.append(command))
    write_json(tmp_path / "node_modules" / "@iconify-json" / "line" / "package.json", {"version": "1.0.0"})
    write_json(tmp_path / "node_modules" / "emojibase-data" / "package.json", {"version": "0.9.0"})
    assert install(PACKAGES, tmp_path) == tmp_path / "node_modules"
    (command,) = commands
    assert command[-3:] == ["emojibase-data@1.0.0", "@iconify-json/twemoji@1.0.0", "@iconify-json/round@1.0.0"]


def test_shipped_list_holds_no_share_alike_and_no_family_twice(tmp_path):
    packages = read_packages()
    assert sum(len(packages[part]) for part in mini_corpus.PARTS) > 90
    for change, message in (
        ({"licence": "CC-BY-SA-4.0"}, "the licence CC-BY-SA-4.0"),
        ({"family": "round"}, "the family round is both pretrain and choose"),
    ):
        changed = PACKAGES | {"pretrain": {"line": LINE | change}}
        (tmp_path / "list.yaml").write_text(json.dumps(changed))  # JSON is YAML
        with pytest.raises(ValueError, match=message):
            read_packages(tmp_path / "list.yaml")


def test_attribution_names_the_author(modules):
    table = mini_corpus.attribution({"pretrain": {"line": LINE}}, modules)
    assert "| Line, A. Painter, https://example.org | `@iconify-json/line` 1.0.0 | MIT | pretrain |" in table
