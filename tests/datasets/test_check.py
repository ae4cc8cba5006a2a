"""Checking data sets on disk: the published ones in tiny, in order and out of order."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from dassl.data.datasets import DATASET_REGISTRY
from datasets import check as checking
from datasets.check import Report, check
from datasets.sources import DatasetInfo, known_datasets
from tests.datasets.real_layouts import BUILDERS, build_layout

ASSETS = Path(__file__).resolve().parents[2] / "assets"
SPLIT = [name for name, info in known_datasets().items() if info.split]
LISTS = [name for name, info in known_datasets().items() if checking.needed_files(info)]
VARIANTS = ("ImageNetV2", "ImageNetSketch", "ImageNetA", "ImageNetR")


def tiny(info: DatasetInfo, root: Path) -> DatasetInfo:
    """The table's row with the numbers of the tiny layout."""
    dataset = DATASET_REGISTRY.get(info.name)(checking.config_of(info.name, str(root), ""))
    counts = tuple(
        None if old is None else len(part or [])
        for old, part in zip(info.counts, (dataset.train_x, dataset.val, dataset.test), strict=True)
    )
    folders = tuple((path, checking.count_entries(root / info.folder / path)) for path, _ in info.folders)
    return dataclasses.replace(info, classes=dataset.num_classes, counts=counts, folders=folders)


class Case:
    """A tiny data set on disk."""

    def __init__(self, name: str, root: Path) -> None:
        self.name, self.root = name, root
        build_layout(name, root)
        self.info = tiny(known_datasets()[name], root)
        self.folder = root / self.info.folder

    def check(self, deep: bool = False) -> Report:
        return check(self.name, str(self.root), deep)

    def only_finding(self, deep: bool = False) -> str:
        """Problem and cure of the only finding."""
        report = self.check(deep)
        assert len(report.findings) == 1, list(report.lines())
        return f"{report.findings[0].problem} | {report.findings[0].cure}"


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def build(name: str) -> Case:
        case = Case(name, tmp_path)
        monkeypatch.setattr(checking, "known_datasets", lambda: {name: case.info})
        return case

    return build


@pytest.fixture
def eurosat(make) -> Case:
    return make("EuroSAT")


def test_every_published_data_set_is_in_the_table() -> None:
    assert set(BUILDERS) == set(known_datasets())


@pytest.mark.parametrize("name", known_datasets())
@pytest.mark.parametrize("deep", [False, True])
def test_a_data_set_in_order_is_ok(make, name: str, deep: bool) -> None:
    case = make(name)
    report = case.check(deep)
    text = "\n".join(report.lines())
    assert report.ok, text
    assert f"classes: {case.info.classes} (" in text
    assert case.info.counts[2] is None or f"{case.info.counts[2]} test" in text
    assert "split sha256: " in text
    assert ("train" in text.split("images:")[1].splitlines()[0]) == (name not in VARIANTS)


@pytest.mark.parametrize("name", known_datasets())
def test_a_missing_folder_of_images_comes_with_its_cure(make, name: str) -> None:
    case = make(name)
    path = case.folder / case.info.folders[0][0]
    shutil.rmtree(path)
    text = case.only_finding()
    assert f"there is no folder {path}" in text
    steps = case.info.by_hand.splitlines()
    cure = steps[1].strip() if steps else f"datasets download {name} --root {case.root}"
    assert cure in text


@pytest.mark.parametrize("name", LISTS)
def test_a_missing_list_or_split_file_comes_with_its_cure(make, name: str) -> None:
    case = make(name)
    needed = checking.needed_files(case.info)
    (case.folder / needed[-1]).unlink()
    assert case.only_finding() == (
        f"there is no file {case.folder / needed[-1]} | python -m datasets download {name} --root {case.root}"
    )


@pytest.mark.parametrize("name", SPLIT)
def test_missing_images_are_counted_and_the_first_ones_named(make, name: str) -> None:
    case = make(name)
    image_dir = case.folder / DATASET_REGISTRY.get(name).image_folder
    for row in json.loads((case.folder / case.info.split).read_text())["test"][:7]:
        (image_dir / row[0]).unlink()
    findings = case.check().findings
    assert f"7 images of {case.folder / case.info.split}" in findings[-1].problem
    assert "and 2 more" in findings[-1].problem


def test_a_flat_folder_with_too_few_images_is_noticed_at_once(make) -> None:
    case = make("OxfordPets")
    case.info = dataclasses.replace(case.info, folders=(("images", 7349),))
    assert "entries, at least 7349 are expected" in case.only_finding()


def test_numbers_that_are_not_the_published_ones_name_the_split(eurosat: Case) -> None:
    path = eurosat.folder / eurosat.info.split
    split = json.loads(path.read_text())
    split["test"].pop()
    path.write_text(json.dumps(split))
    report = eurosat.check()
    assert (
        f"there are {eurosat.info.counts[2] - 1} test images, {eurosat.info.counts[2]} are published"
        in report.findings[0].problem
    )
    assert f"move {path} aside" in report.findings[0].cure
    assert any(line.startswith("split sha256: ") for line in report.facts)


def test_another_number_of_classes_is_a_finding(eurosat: Case) -> None:
    eurosat.info = dataclasses.replace(eurosat.info, classes=10)
    assert "there are 5 classes, 10 are published" in eurosat.only_finding()


def test_an_image_that_cannot_be_decoded_is_found(eurosat: Case) -> None:
    split = json.loads((eurosat.folder / eurosat.info.split).read_text())
    first, other = split["train"][0], next(row for row in split["train"][1:] if row[1] == split["train"][0][1])
    (eurosat.folder / "2750" / other[0]).write_bytes(b"not an image")
    assert eurosat.check().ok, "one image per class is tried"
    text = eurosat.only_finding(deep=True)
    assert "1 images cannot be decoded" in text
    assert f"{other[0]} (UnidentifiedImageError)" in text
    good = (eurosat.folder / "2750" / first[0]).read_bytes()
    (eurosat.folder / "2750" / first[0]).write_bytes(good[: len(good) // 2])
    assert first[0] in eurosat.only_finding()


def test_a_folder_one_level_too_deep_is_to_be_moved(eurosat: Case) -> None:
    (eurosat.folder / "EuroSAT").mkdir()
    os.rename(eurosat.folder / "2750", eurosat.folder / "EuroSAT" / "2750")
    assert f"move {eurosat.folder / 'EuroSAT' / '2750'} to {eurosat.folder}" in eurosat.only_finding()


def test_a_name_in_another_case_is_pointed_out(make) -> None:
    case = make("Food101")
    os.rename(case.folder / "images", case.folder / "Images")
    if not (case.folder / "images").exists():
        assert "There is 'Images'" in case.only_finding()


def test_an_unfinished_download_is_a_finding(eurosat: Case) -> None:
    (eurosat.folder / ".download").mkdir()
    assert "a download did not finish" in eurosat.only_finding()


def test_a_root_one_level_off_is_corrected(eurosat: Case) -> None:
    report = check("EuroSAT", str(eurosat.folder))
    assert f"pass --root {eurosat.root}" in report.findings[0].problem


def test_a_data_set_class_that_fails_is_a_finding_and_no_crash(eurosat: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise AssertionError("len(data_loader) > 0")

    monkeypatch.setattr(DATASET_REGISTRY.get("EuroSAT"), "__init__", fail)
    assert "AssertionError: len(data_loader) > 0" in eurosat.only_finding()


@pytest.mark.parametrize("name", ["Digits", "EmojiKinds"])
def test_bundled_data_sets_are_ok(name: str) -> None:
    assert check(name, str(ASSETS)).ok
    report = check(name, str(ASSETS.parent))
    assert f"pass --root {ASSETS}" in report.findings[0].problem


def test_data_of_ones_own_is_checked_too(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "pets" / part / name).mkdir(parents=True)
            source = next((ASSETS / "digits" / "images").rglob("*.png"))
            shutil.copy(source, tmp_path / "pets" / part / name / "1.png")
    report = check("folder", str(tmp_path), path="pets")
    assert report.ok, list(report.lines())
    assert "images: 2 train, 0 val, 2 test" in report.facts


def test_a_check_draws_no_split_and_says_which_images_a_saved_one_leaves_out(tmp_path: Path, make_cfg) -> None:
    for name in ("a", "b"):
        (tmp_path / "x" / name).mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "x" / name / f"{number}.png")
    before = sorted(tmp_path.rglob("*"))
    report = check("folder", str(tmp_path), path="x")
    assert report.ok
    assert "images: 10 train, 4 val, 6 test" in report.facts
    assert any("has no split: a run draws one" in fact for fact in report.facts)
    assert sorted(tmp_path.rglob("*")) == before
    cfg = make_cfg(tmp_path, name="folder")
    cfg.DATASET.PATH = "x"
    drawn = DATASET_REGISTRY.get("folder")(cfg)
    Image.new("RGB", (8, 8)).save(tmp_path / "x" / "a" / "late.png")
    report = check("folder", str(tmp_path), path="x")
    assert report.ok
    assert f"1 images came after {drawn.split_path} was drawn and are left out" in report.facts


def own_parts(folder, **parts):
    """Images of two classes in train, val and test, by the number that their content follows from."""
    for part, numbers in parts.items():
        for label, name in enumerate(("a", "b")):
            (folder / part / name).mkdir(parents=True)
            for number in numbers:
                image = Image.new("RGB", (8, 8), (number, label, 0))
                image.save(folder / part / name / f"{part}{number}.png")


@pytest.mark.parametrize(
    ("parts", "found"),
    [
        ({"train": (1, 2), "test": (3, 2)}, "2 test images are copies of train or val images"),
        ({"train": (1,), "val": (2,), "test": (2, 3)}, "2 test images are copies of train or val images"),
        ({"train": (1, 2), "val": (2,), "test": (3,)}, "2 val images are copies of train images"),
        ({"train": (1, 2), "val": (3,), "test": (4, 5)}, ""),
    ],
)
def test_copies_between_the_parts_of_own_data_are_a_finding(tmp_path: Path, parts: dict, found: str) -> None:
    own_parts(tmp_path / "x", **parts)
    assert check("folder", str(tmp_path), path="x").ok
    report = check("folder", str(tmp_path), deep=True, path="x")
    assert [found in finding.problem for finding in report.findings] == ([True] if found else [])


def test_copies_in_a_published_split_are_told_and_no_finding(eurosat: Case) -> None:
    split = json.loads((eurosat.folder / eurosat.info.split).read_text())
    images = eurosat.folder / "2750"
    (images / split["test"][0][0]).write_bytes((images / split["train"][0][0]).read_bytes())
    report = eurosat.check(deep=True)
    assert report.ok
    assert any("test images are copies of train or val images" in fact for fact in report.facts)


def test_sixteen_bit_and_narrow_images_are_told(tmp_path: Path) -> None:
    own_parts(tmp_path / "x", train=(1, 2), test=(3,))
    Image.new("I;16", (8, 8), 40000).save(tmp_path / "x" / "train" / "a" / "train1.png")
    report = check("folder", str(tmp_path), deep=True, path="x")
    assert report.ok
    assert any("1 images; 16-bit images are scaled" in fact for fact in report.facts)
    Image.new("L", (1_000_000, 1)).save(tmp_path / "x" / "test" / "a" / "test3.png")
    (finding,) = check("folder", str(tmp_path), deep=True, path="x").findings
    assert "test3.png (1000000 x 1 pixels: too narrow" in finding.problem
