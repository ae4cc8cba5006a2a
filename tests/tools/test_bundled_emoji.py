"""The script that makes the bundled emoji, on made-up icon packages."""

import io
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tools.icon_packages import FRUITS, MAMMALS, render, write_packages
from tools import bundled_data
from tools.bundled_data import (
    CONCEPT_KINDS,
    KIND_NAMES,
    PRETRAINING_STYLES,
    STYLES,
    Catalogue,
    Concept,
    IconPackageError,
    choose_concepts,
    clean_name,
    draw,
    read_icons,
    render_corpus,
    split_names,
    svg_document,
    write_emoji,
)
from tools.pretrain_clip import read_corpus

ASSETS = Path(__file__).resolve().parents[2] / "assets"


@pytest.fixture
def packages(tmp_path) -> Path:
    return write_packages(tmp_path / "node_modules")


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("Red-Panda", "red panda"),
        ("T-Rex", "t rex"),
        ("woman\u2019s hat", "woman's hat"),
        ("pi\u00f1ata", "pinata"),
        ("Japanese \u201chere\u201d button", "japanese here button"),
        ("A button (blood type)", "a button blood type"),
        ("Mrs. Claus", "mrs claus"),
    ],
)
def test_names_are_plain_words(label, name):
    assert clean_name(label) == name


def test_flags_skin_tones_and_variants_are_left_out(packages):
    icons = read_icons(packages, "noto", Catalogue.read(packages))
    names = {icon.name: icon.kind for icon in icons}
    assert names == {
        **dict.fromkeys([clean_name(name) for name in MAMMALS], "mammal"),
        **dict.fromkeys(FRUITS, "fruit"),
        "farmer": "person at work",
        "love letter": "mail",
    }
    assert len(icons) == len(names)


def test_icon_is_found_by_its_code_point(packages):
    """The package calls it tabby; its code point is the cat's."""
    cat = next(icon for icon in read_icons(packages, "noto", Catalogue.read(packages)) if icon.name == "cat")
    assert "noto tabby" in cat.svg


def test_missing_package_is_named(tmp_path):
    with pytest.raises(IconPackageError, match=r"emojibase-data.*bundled_data --help"):
        Catalogue.read(tmp_path)


def test_a_missing_package_is_one_line(packages, tmp_path, capsys):
    shutil.rmtree(packages / "@iconify-json" / "streamline-emojis")
    command = ["emoji", "--packages", str(packages), "--out", str(tmp_path / "emoji")]
    assert bundled_data.main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "streamline-emojis/icons.json does not exist" in error
    assert error.count("\n") == 1


def test_the_help_installs_every_package_in_the_version_of_the_attribution(packages):
    attribution = (ASSETS / "ATTRIBUTION.md").read_text(encoding="utf-8")
    for style in (*STYLES, *PRETRAINING_STYLES):
        (version,) = set(re.findall(f"`@iconify-json/{style}` ([0-9.]+)", attribution))
        assert f"@iconify-json/{style}@{version}" in bundled_data.__doc__


def test_drawing_has_its_own_box_and_no_current_color():
    svg = svg_document({"body": "<path fill='currentColor'/>", "left": 1, "width": 30}, {"width": 16, "height": 20})
    assert 'viewBox="1 0 30 20"' in svg
    assert "currentColor" not in svg


def test_transparent_drawing_lies_on_white(packages):
    buffer = io.BytesIO()
    Image.new("RGBA", (96, 96), (0, 0, 0, 0)).save(buffer, "PNG")
    pixels = draw(read_icons(packages, "noto", Catalogue.read(packages))[0], lambda svg: buffer.getvalue())
    assert pixels.shape == (64, 64, 3)
    assert (pixels == 255).all()


def test_split_is_by_kind_and_depends_on_its_seed():
    concepts = [Concept(f"{kind} {number}", kind) for kind in ("mammal", "fruit") for number in range(20)]
    parts = split_names(concepts, 0)
    assert {part: Counter(item.kind for item in items) for part, items in parts.items()} == {
        "train": {"mammal": 10, "fruit": 10},
        "val": {"mammal": 2, "fruit": 2},
        "test": {"mammal": 8, "fruit": 8},
    }
    assert sorted(item.name for items in parts.values() for item in items) == sorted(item.name for item in concepts)
    assert parts == split_names(concepts, 0) != split_names(concepts, 1)


def test_concepts_are_short_pretrained_and_no_kind(monkeypatch):
    monkeypatch.setattr(bundled_data, "CONCEPTS", 2)
    names = ["cat", "dog", "four words are many", "bird", "unseen", "seen once"]
    concepts = [*(Concept(name, "mammal") for name in names), Concept("red heart", "heart")]
    everything = set(names) | {"red heart"}
    pretrained = [everything - {"unseen"}, everything - {"unseen", "seen once"}]
    assert [item.name for item in choose_concepts(concepts, pretrained, 0)] == ["cat", "dog"]


def test_made_files(packages, tmp_path, monkeypatch):
    monkeypatch.setattr(bundled_data, "CONCEPTS", 5)
    out = tmp_path / "emoji"
    number = write_emoji(packages, out, render)
    images = sorted(path.relative_to(out / "images").as_posix() for path in out.rglob("*.webp"))
    assert len(images) == number == 4 * (len(MAMMALS) + len(FRUITS) - 1)  # one style has no fig
    assert "contrast/mammal/red_panda.webp" in images
    assert not [path for path in images if "fig" in path]
    splits = {path.name: json.loads(path.read_text()) for path in out.glob("split_emoji_*.json")}
    assert len(splits) == 8
    for content in splits.values():
        assert {row[0] for rows in content.values() for row in rows} <= set(images)
    kinds = [
        {part: [row[1:] for row in rows] for part, rows in splits[f"split_emoji_kinds_{style}.json"].items()}
        for style in STYLES.values()
    ]
    assert all(split == kinds[0] for split in kinds)
    assert Counter(row[0].split("/")[0] for row in splits["split_emoji_concepts.json"]["test"]) == {
        "fluent": 5,
        "flat": 5,
        "contrast": 5,
    }
    again = tmp_path / "again"
    write_emoji(packages, again, render)
    for path in out.rglob("*.*"):
        assert path.read_bytes() == (again / path.relative_to(out)).read_bytes()


def test_corpus_is_read_as_it_was_rendered(packages, tmp_path):
    number = render_corpus(packages, tmp_path / "corpus.npz", render)
    corpus = read_corpus(tmp_path / "corpus.npz")
    assert len(corpus) == number == len(PRETRAINING_STYLES) * (len(MAMMALS) + len(FRUITS) + 2)
    assert {emoji.style for emoji in corpus} == set(PRETRAINING_STYLES)
    assert corpus[0].pixels.shape == (64, 64, 3)
    assert corpus[0].pixels.dtype == np.uint8
    assert len({emoji.pixels.tobytes() for emoji in corpus}) == number


def test_no_shipped_style_is_pretrained_on():
    assert not set(STYLES) & set(PRETRAINING_STYLES)
    assert set(CONCEPT_KINDS) < set(KIND_NAMES)
    assert len(KIND_NAMES) == 24


def test_shipped_splits_are_the_tables_of_the_script():
    split = json.loads((ASSETS / "emoji" / "split_emoji_kinds_noto.json").read_text())
    labels = {label: name for rows in split.values() for _, label, name in rows}
    assert labels == dict(enumerate(KIND_NAMES))
    assert list(KIND_NAMES) == sorted(KIND_NAMES)
