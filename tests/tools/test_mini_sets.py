"""The miniature's data sets from a made-up corpus: how drawings are dealt, and what is packed."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from datasets.mini import Archive
from datasets.splits import PARTS
from tools.mini_sets import SETS, deal, pack

CLASSES = ["cat", "dog"]
WANTED = {"pets": {"images": [10, 4, 6], "classes": CLASSES}}


def write_corpus(folder: Path, families: int) -> Path:
    """Two names, each drawn by some families, a package each; the last drawing of a name is in colour."""
    rows = [(name, f"f{number}") for name in CLASSES for number in range(families)]
    pixels = np.full((len(rows), 64, 64, 3), 255, np.uint8)
    for row, (name, family) in enumerate(rows):
        pixels[row, 10 : 30 + 4 * row, 10:50] = 34
        if family == f"f{families - 1}":
            pixels[row, 10:30, 10:50] = (200, 20, 20) if name == "cat" else (20, 20, 200)
    index = {"name": [name for name, _ in rows], "family": [family for _, family in rows]}
    index |= {"package": index["family"], "icon": index["name"], "part": ["report"] * len(rows)}
    folder.mkdir()
    np.save(folder / "pixels.npy", pixels)
    (folder / "index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Archive:
    folder = tmp_path_factory.mktemp("sets")
    counts = pack(write_corpus(folder / "corpus", 8), WANTED, folder / "one")
    assert counts == {"pets": {"train": 20, "val": 8, "test": 12, "classes": 2}}
    pack(folder / "corpus", WANTED, folder / "two")
    assert (folder / "one" / "pets.zip").read_bytes() == (folder / "two" / "pets.zip").read_bytes()
    return Archive(folder / "one" / "pets.zip")


def test_families_are_dealt_whole():
    drawings = {number: (f"f{number // 3}", f"p{number}") for number in range(24)}
    dealt = deal(drawings, "pets/cat")
    assert sorted(row for rows in dealt.values() for row in rows) == list(range(24))
    families = [{row // 3 for row in dealt[part]} for part in PARTS]
    assert [len(found) for found in families] == [4, 1, 3]
    assert deal(drawings, "pets/cat") == dealt != deal(drawings, "pets/dog")


def test_few_families_are_dealt_by_package_and_have_no_val():
    dealt = deal({0: ("a", "a1"), 1: ("a", "a2"), 2: ("a", "a3"), 3: ("b", "b1")}, "pets/cat")
    assert [len(dealt[part]) for part in PARTS] == [2, 0, 2]


def test_no_drawing_is_in_two_parts(archive):
    content = archive.content
    assert content["classes"] == CLASSES
    drawings = {part: {drawing for _, drawing, _ in content["images"][part]} for part in PARTS}
    assert not drawings["train"] & (drawings["val"] | drawings["test"])
    assert not drawings["val"] & drawings["test"]
    assert set.union(*drawings.values()) == set(range(len(content["drawings"])))
    assert all(drawing.shape == (64, 64, 3) for drawing in archive.drawings())


def test_without_drawings_for_val_it_has_further_views(tmp_path):
    pack(write_corpus(tmp_path / "corpus", 4), WANTED, tmp_path)
    images = Archive(tmp_path / "pets.zip").content["images"]
    assert len({tuple(row) for part in ("train", "val") for row in images[part]}) == 28


def test_too_few_drawings_are_named(tmp_path):
    with pytest.raises(ValueError, match="pets: the class 'cow' has fewer than 4 drawings"):
        pack(write_corpus(tmp_path / "corpus", 4), {"pets": WANTED["pets"] | {"classes": ["cow"]}}, tmp_path)


def test_shipped_sets_are_large_enough():
    for title, wanted in yaml.safe_load(SETS.read_text()).items():
        classes = wanted["classes"]
        assert classes == sorted(set(classes)), title
        train, _, test = wanted["images"]
        assert train >= 32, title
        assert test * len(classes) >= 600, title
