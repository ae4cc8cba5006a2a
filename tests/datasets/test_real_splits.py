"""New splits, made on purpose and under a name of their own; and what a run does with them."""

import hashlib
import json
import os
import random
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dassl.data.datasets import build_dataset
from datasets.__main__ import make_split
from datasets.fewshot import NoNewSplitError
from datasets.splits import (
    AnnotationError,
    SplitFileError,
    SplitFileMissingError,
    read_split,
    split_classes,
    split_trainval,
)
from tests.datasets.real_layouts import build_layout

COOP = json.loads((Path(__file__).parent / "coop_real.json").read_text())
DRAWN = [name for name in COOP if "new split, seed 5" in COOP[name]]


def sha256(content) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@pytest.mark.parametrize("name", DRAWN)
def test_new_split_is_what_coop_draws_with_that_seed(tmp_path, name):
    build_layout(name, tmp_path)
    published = next(tmp_path.rglob("split_zhou_*.json"))
    before = published.read_bytes()
    path = make_split(name, tmp_path, 5)
    assert path == published.with_name("split_own_seed5.json")
    split, expected = json.loads(path.read_text()), COOP[name]["new split, seed 5"]
    assert split["train"][:3] == expected["first"]
    assert {part: sha256(rows) for part, rows in split.items()} == {part: expected[part] for part in split}
    assert published.read_bytes() == before
    assert sorted(item.name for item in path.parent.glob(".*.tmp")) == []


def test_new_split_is_used_only_when_named(tmp_path, make_cfg):
    build_layout("OxfordPets", tmp_path)
    cfg = make_cfg(tmp_path, name="OxfordPets")
    published = build_dataset(cfg)
    path = make_split("OxfordPets", tmp_path, 1)
    assert build_dataset(cfg).split_sha256 == published.split_sha256
    for named in (path.name, str(path)):
        cfg.DATASET.SPLIT_FILE = named
        own = build_dataset(cfg)
        assert own.split_sha256 == hashlib.sha256(path.read_bytes()).hexdigest() != published.split_sha256
        assert os.path.basename(own.split_path) == "split_own_seed1.json"
    cfg.DATASET.SPLIT_FILE = "split_own_seed2.json"
    with pytest.raises(SplitFileMissingError, match=r"split_own_seed2\.json does not exist\..*make-split"):
        build_dataset(cfg)


def test_missing_split_is_not_made_up(tmp_path, make_cfg):
    build_layout("EuroSAT", tmp_path)
    path = tmp_path / "eurosat" / "split_zhou_EuroSAT.json"
    path.unlink()
    with pytest.raises(SplitFileMissingError) as caught:
        build_dataset(make_cfg(tmp_path, name="EuroSAT"))
    assert "https://drive.google.com/file/d/1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o" in str(caught.value)
    assert f"python -m datasets download EuroSAT --root {tmp_path}" in str(caught.value)
    assert not path.exists()


def test_the_same_split_may_be_made_again_and_another_is_never_replaced(tmp_path):
    build_layout("EuroSAT", tmp_path)
    with ThreadPoolExecutor(4) as pool:
        made = set(pool.map(lambda _: make_split("EuroSAT", tmp_path, 3), range(8)))
    (path,) = made
    content = path.read_bytes()
    assert make_split("EuroSAT", tmp_path, 3).read_bytes() == content
    assert make_split("EuroSAT", tmp_path, 4).read_bytes() != content
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="exists with other content"):
        make_split("EuroSAT", tmp_path, 3)
    assert path.read_text() == "mine"


@pytest.mark.parametrize("name", ["FGVCAircraft", "ImageNet", "ImageNetA", "Digits"])
def test_official_splits_are_not_drawn_anew(tmp_path, name):
    root = Path(__file__).resolve().parents[2] / "assets"
    if name != "Digits":
        build_layout(name, root := tmp_path)
    with pytest.raises(NoNewSplitError, match=f"{name} comes with its split"):
        make_split(name, root, 1)


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("OxfordPets", "annotations/trainval.txt"),
        ("StanfordCars", "devkit/cars_meta.mat"),
        ("OxfordFlowers", "cat_to_name.json"),
        ("SUN397", "ClassName.txt"),
        ("UCF101", "ucfTrainTestlist/classInd.txt"),
    ],
)
def test_missing_annotation_is_named(tmp_path, name, lost):
    build_layout(name, tmp_path)
    path = next(tmp_path.glob(f"*/{lost}"))
    path.unlink()
    with pytest.raises(SplitFileMissingError, match=str(path)):
        make_split(name, tmp_path, 1)


@pytest.mark.parametrize(
    ("name", "file", "line", "message"),
    [
        ("OxfordPets", "annotations/test.txt", "Abyssinian_100 one", "expected lines as 'Abyssinian_100 1 1 1'"),
        ("SUN397", "Testing_01.txt", "/x/xylophone/sun_1.jpg", "xylophone/sun_1.jpg is not in ClassName.txt"),
        ("UCF101", "ucfTrainTestlist/testlist01.txt", "Juggling/v_Juggling.avi", "is not in classInd.txt"),
    ],
)
def test_unusable_annotation_is_refused(tmp_path, name, file, line, message):
    build_layout(name, tmp_path)
    path = next(tmp_path.glob(f"*/{file}"))
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(AnnotationError, match=message):
        make_split(name, tmp_path, 1)


def test_annotation_of_other_images_makes_no_split(tmp_path):
    build_layout("OxfordPets", tmp_path)
    (tmp_path / "oxford_pets" / "images" / "Bengal_3.jpg").unlink()
    with pytest.raises(SplitFileMissingError, match=r"1 images .*: Bengal_3\.jpg"):
        make_split("OxfordPets", tmp_path, 1)
    assert not list(tmp_path.rglob("split_own*"))


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder_is_said(tmp_path):
    build_layout("EuroSAT", tmp_path)
    (tmp_path / "eurosat").chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(PermissionError, match="cannot write"):
        make_split("EuroSAT", tmp_path, 1)


def test_negative_seed_is_refused(tmp_path):
    with pytest.raises(ValueError, match="seed is -1"):
        make_split("EuroSAT", tmp_path, -1)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_too_few_images_to_deal_out(count):
    entries = [(f"{number}.jpg", 0, "cat") for number in range(count)]
    with pytest.raises(AnnotationError, match=f"'cat' has {count} images"):
        split_classes(entries, random.Random(1))
    if count < 3:
        with pytest.raises(AnnotationError, match=f"'cat' has {count} images"):
            split_trainval(entries, random.Random(1))


@pytest.mark.parametrize("count", [4, 5, 7, 10, 41])
def test_every_image_is_dealt_once(count):
    entries = [(f"{label}/{number}.jpg", label, f"class {label}") for label in (1, 0) for number in range(count)]
    parts = split_classes(entries, random.Random(1))
    assert sorted(entry for part in parts.values() for entry in part) == sorted(entries)
    assert len(parts["train"]) == 2 * round(count / 2)
    assert len(parts["val"]) == 2 * round(count / 5)


def test_bad_split_of_ones_own_is_refused_as_any(tmp_path, make_cfg):
    build_layout("EuroSAT", tmp_path)
    path = make_split("EuroSAT", tmp_path, 1)
    split = json.loads(path.read_text())
    split["train"] = [row for row in split["train"] if row[1] != 2]
    other = path.with_name("other.json")
    other.write_text(json.dumps(split))
    cfg = make_cfg(tmp_path, name="EuroSAT")
    cfg.DATASET.SPLIT_FILE = "other.json"
    with pytest.raises(SplitFileError, match="no training images for Highway or Road"):
        build_dataset(cfg)
    assert read_split(str(path), str(tmp_path / "eurosat" / "2750"), "").classnames[2] == "Highway or Road"
