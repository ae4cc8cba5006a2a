"""The miniature's data sets from a made-up corpus: how drawings are dealt, what is packed, what the views are."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tools.mini_sets import PARTS, SETS, deal, pack, unpack, view

CLASSES = ["cat", "dog"]
WANTED = {"pets": {"images": [10, 4, 6], "variants": ["plain", "inverted"], "classes": CLASSES}}


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
def archive(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    counts = pack(write_corpus(folder / "corpus", 8), WANTED, folder / "one")
    assert counts == {"pets": {"train": 20, "val": 8, "test": 12, "classes": 2}}
    pack(folder / "corpus", WANTED, folder / "two")
    assert (folder / "one" / "pets.zip").read_bytes() == (folder / "two" / "pets.zip").read_bytes()
    return folder / "one" / "pets.zip"


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


def test_no_image_is_in_two_parts(archive, tmp_path):
    assert unpack(archive, tmp_path) == {"train": 20, "val": 8, "test": 12}
    split = json.loads((tmp_path / "split.json").read_text())
    assert {label: name for rows in split.values() for _, label, name in rows} == {0: "cat", 1: "dog"}
    drawings = {part: {Path(path).stem.split("_")[0] for path, _, _ in split[part]} for part in PARTS}
    assert not drawings["train"] & (drawings["val"] | drawings["test"])
    assert not drawings["val"] & drawings["test"]
    paths = [tmp_path / "images" / path for rows in split.values() for path, _, _ in rows]
    assert len({path.read_bytes() for path in paths}) == len(paths) == 40
    assert Image.open(paths[0]).size == (64, 64)


def test_without_drawings_for_val_it_has_further_views(tmp_path):
    pack(write_corpus(tmp_path / "corpus", 4), WANTED, tmp_path)
    unpack(tmp_path / "pets.zip", tmp_path / "out")
    split = json.loads((tmp_path / "out" / "split.json").read_text())
    names = {part: {Path(path).name for path, _, _ in split[part]} for part in PARTS}
    assert len(names["train"] | names["val"]) == 28


def test_unpacking_again_makes_the_same_images(archive, tmp_path):
    for folder in ("one", "two"):
        unpack(archive, tmp_path / folder)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.jpg"))
    assert all((tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes() for file in files)


def test_a_variant_has_each_test_drawing_once(archive, tmp_path):
    counts = unpack(archive, tmp_path, "inverted")
    assert counts["train"] == counts["val"] == 0 < counts["test"] <= 12
    split = json.loads((tmp_path / "split.json").read_text())
    image = np.asarray(Image.open(tmp_path / "images" / split["test"][0][0]))
    assert image[:5, :5].max() < 20
    with pytest.raises(ValueError, match="no variant 'edges'; choose from: photo, plain, inverted"):
        unpack(archive, tmp_path, "edges")


def test_views():
    drawing = np.full((64, 64, 3), 255, np.uint8)
    drawing[20:40, 20:40] = 34
    photos = [np.asarray(view(drawing, "photo", seed)) for seed in range(5)]
    assert all(photo.shape == (64, 64, 3) and photo.std() > 10 for photo in photos)
    assert len({photo.tobytes() for photo in photos}) == 5
    assert len(np.unique(np.asarray(view(drawing, "pixel", 0)).reshape(16, 4, 16, 4, 3)[:, 0, :, 0], axis=0)) < 16
    edges = np.asarray(view(drawing, "edges", 0))
    assert edges[30, 30].min() > 200 > edges[19, 30].max()
    assert (np.asarray(view(drawing, "plain", 0)) == drawing).all()


def test_too_few_drawings_are_named(tmp_path):
    with pytest.raises(ValueError, match="pets: the class 'cow' has fewer than 4 drawings"):
        pack(write_corpus(tmp_path / "corpus", 4), {"pets": WANTED["pets"] | {"classes": ["cow"]}}, tmp_path)


def test_shipped_sets_are_large_enough():
    for title, wanted in yaml.safe_load(SETS.read_text()).items():
        classes = wanted.get("classes", [])
        assert classes == sorted(set(classes)), title
        train, _, test = wanted["images"]
        assert train >= 32, title
        assert not classes or test * len(classes) >= 600, title
