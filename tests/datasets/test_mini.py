"""The miniature's data sets: what ships, and how their images are made: once, whole, the same for everybody."""

import json
import multiprocessing
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.files import FolderLock
from dassl.data.datasets import DATASET_REGISTRY, build_dataset
from datasets import mini
from datasets.check import check
from datasets.mini import SETS, VARIANTS, Archive, MiniDataset, MiniVariant, make, view
from datasets.splits import DataRootError, SplitFileError
from tests.tools.test_mini_sets import write_corpus
from tools.mini_sets import pack

ROOT = Path(__file__).resolve().parents[2]
PETS = {"pets": {"images": [10, 4, 6], "classes": ["cat", "dog"]}}
NAMES = [f"Mini{name.title()}" for name in SETS] + [f"MiniObjects{name.title()}" for name in VARIANTS]
# classes, train, val, test: as docs/datasets.md says
COUNTS = {
    "MiniObjects": (100, 4000, 800, 1600),
    "MiniVehicles": (30, 1200, 240, 720),
    "MiniDevices": (42, 1680, 336, 672),
    "MiniPlaces": (45, 1800, 360, 720),
    "MiniAnimals": (45, 1800, 360, 720),
    "MiniFood": (40, 1600, 320, 720),
    "MiniSports": (35, 1400, 280, 700),
    "MiniArrows": (41, 1640, 328, 820),
    "MiniTuning": (52, 2080, 416, 832),
    **{f"MiniObjects{name.title()}": (100, 0, 0, 1121) for name in VARIANTS},
}


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Archive:
    """Two classes of 20 images each."""
    folder = tmp_path_factory.mktemp("pets")
    pack(write_corpus(folder / "corpus", 8), PETS, folder)
    return Archive(folder / "pets.zip")


@pytest.fixture
def pets(archive, monkeypatch) -> type[MiniDataset]:
    """Registered as MiniPets and MiniPetsPlain, for one test."""
    fields = {"archive": archive.path, "__module__": __name__}
    kinds = {
        "MiniPets": (MiniDataset, {"dataset_dir": "mini/pets"}),
        "MiniPetsPlain": (MiniVariant, {"dataset_dir": "mini/pets_plain", "variant": "plain"}),
    }
    classes = {name: type(name, (base,), fields | more) for name, (base, more) in kinds.items()}
    monkeypatch.setattr(DATASET_REGISTRY, "_obj_map", dict(DATASET_REGISTRY._obj_map) | classes)
    return classes["MiniPets"]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_all_are_registered_with_a_config():
    assert set(NAMES) == set(COUNTS) == {name for name in DATASET_REGISTRY.registered_names() if name[:4] == "Mini"}
    configs = {
        path.read_text().split('NAME: "')[1].split('"')[0]: path for path in ROOT.glob("configs/datasets/mini_*")
    }
    assert configs.pop("Digits").stem == "mini_digits"
    assert set(configs) == set(NAMES)
    for name, path in configs.items():
        assert path.stem == re.sub("(?<!^)([A-Z])", r"_\1", name).lower()


@pytest.mark.parametrize("name", NAMES)
def test_counts(name):
    entries = DATASET_REGISTRY.get(name).entries()
    classes = {label: classname for rows in entries.values() for _, label, classname in rows}
    assert (len(classes), *(len(entries[part]) for part in ("train", "val", "test"))) == COUNTS[name]
    assert [classes[label] for label in sorted(classes)] == sorted(set(classes.values()))
    paths = [impath for rows in entries.values() for impath, _, _ in rows]
    assert len({path.lower() for path in paths}) == len(paths)  # on a disk that does not tell case as well
    if not name.startswith("MiniObjects") or name == "MiniObjects":
        assert set(Counter(label for _, label, _ in entries["train"]).values()) == {40}
        drawings = {
            part: {path.split("/", 1)[1].rpartition("_")[0] for path, _, _ in rows} for part, rows in entries.items()
        }
        assert not drawings["test"] & (drawings["train"] | drawings["val"])


def test_no_set_trains_on_what_another_tests():
    archives = [Archive(DATASET_REGISTRY.get(f"Mini{name.title()}").archive) for name in SETS]
    dealt = {
        part: {each.content["drawings"][drawing] for each in archives for _, drawing, _ in each.content["images"][part]}
        for part in ("train", "val", "test")
    }
    assert not dealt["test"] & (dealt["train"] | dealt["val"])


def test_every_package_that_ships_is_credited():
    credited = (ROOT / "assets" / "ATTRIBUTION.md").read_text(encoding="utf-8")
    credited = set(re.findall(r"`@iconify-json/([\w-]+)` [\d.]+ \| [^|]+ \| (?:report|choose) \|", credited))
    shipped = {name.split("/")[0] for path in mini.ARCHIVES.glob("*.zip") for name in Archive(path).content["drawings"]}
    assert shipped <= credited


def test_a_shipped_set_is_made_and_checked(tmp_path):
    report = check("MiniObjectsPixel", str(tmp_path))
    assert report.ok, report.findings
    assert "images: 1121 test" in report.facts
    assert len(list((tmp_path / "mini" / "objects_pixel").rglob("*.jpg"))) == 1121


def test_the_same_images_everywhere(archive, tmp_path):
    for folder in ("one", "two"):
        make(archive, tmp_path / folder)
    made = files(tmp_path / "one")
    assert made == files(tmp_path / "two")
    assert len(made) == 41
    assert len(set(made.values())) == 41  # no two views are the same
    split = json.loads(made["split.json"])
    assert {part: len(rows) for part, rows in split.items()} == {"train": 20, "val": 8, "test": 12}
    assert Image.open(tmp_path / "one" / "images" / split["train"][0][0]).size == (64, 64)


def test_what_is_there_is_left_alone(pets, make_cfg, tmp_path):
    first = build_dataset(make_cfg(tmp_path, name="MiniPets", shots=4))
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    again = build_dataset(make_cfg(tmp_path, name="MiniPets", shots=4))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == times
    assert again.fewshot_sha256 == first.fewshot_sha256
    assert (len(first.train_x), len(first.val), len(first.test)) == (8, 8, 12)
    assert first.classnames == ["cat", "dog"]


def test_what_is_half_made_is_finished(archive, tmp_path):
    make(archive, tmp_path / "whole")
    make(archive, tmp_path / "half")
    whole = files(tmp_path / "whole")
    (tmp_path / "half" / "split.json").unlink()  # stopped in the middle ...
    images = sorted((tmp_path / "half").rglob("*.jpg"))
    for path in images[10:]:
        path.unlink()
    images[9].write_bytes(b"half an image")  # ... of one, with a disk that lost its end
    images[10].with_suffix(".unfinished").write_bytes(b"half an image")
    make(archive, tmp_path / "half")
    assert files(tmp_path / "half") == whole
    images[3].unlink()  # lost later
    make(archive, tmp_path / "half")
    assert files(tmp_path / "half") == whole


def test_images_of_another_version_are_made_anew(archive, tmp_path):
    make(archive, tmp_path)
    whole = files(tmp_path)
    image = next(tmp_path.rglob("*.jpg"))
    image.write_bytes(b"another view")
    (tmp_path / "split.json").write_text("{}")
    make(archive, tmp_path)
    assert files(tmp_path) == whole


def test_several_processes_at_once(archive, tmp_path, capfd):
    fork = multiprocessing.get_context("fork")
    runs = [fork.Process(target=make, args=(archive, tmp_path / "made")) for _ in range(3)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(60)
    assert [run.exitcode for run in runs] == [0, 0, 0]
    assert capfd.readouterr().out.count("Making the images") == 1
    make(archive, tmp_path / "alone")
    assert files(tmp_path / "made") == files(tmp_path / "alone")


def test_the_one_that_waits_gives_up_in_the_end(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(mini, "WAIT_SECONDS", 0.3)
    lock = FolderLock(tmp_path / "made" / ".lock")
    lock.acquire()
    try:
        with pytest.raises(OSError, match="made is in use by process"):
            make(archive, tmp_path / "made")
    finally:
        lock.release()


def test_a_root_that_cannot_be_written_is_named(pets, make_cfg, tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(mini, "wait_for", refuse)
    with pytest.raises(
        DataRootError, match=r"mini/pets are not there.*Permission denied.*--root that can be written to"
    ):
        build_dataset(make_cfg(tmp_path, name="MiniPets"))
    assert "can be written to" in check("MiniPets", str(tmp_path)).findings[0].problem


def test_a_file_where_the_folder_belongs_is_named(pets, make_cfg, tmp_path):
    (tmp_path / "mini").write_text("a file")
    with pytest.raises(DataRootError, match="mini/pets are not there and cannot be made"):
        build_dataset(make_cfg(tmp_path, name="MiniPets"))


def test_nothing_is_made_in_an_installed_package(pets, make_cfg, tmp_path, monkeypatch):
    assets, cache = tmp_path / "assets", tmp_path / "cache"
    monkeypatch.setattr(mini, "IS_INSTALLED", True)
    monkeypatch.setattr(mini, "ARCHIVES", assets / "mini")
    monkeypatch.setattr(mini, "CACHE", cache)
    for root, made in ((assets, cache), (tmp_path / "data", tmp_path / "data")):
        root.mkdir()
        dataset = pets(make_cfg(root, name="MiniPets"))
        assert all(Path(item.impath).is_relative_to(made) for item in dataset.test)
    assert list(assets.iterdir()) == []


def test_a_root_that_cannot_be_written_serves_once_the_images_are_there(pets, make_cfg, tmp_path, monkeypatch):
    build_dataset(make_cfg(tmp_path, name="MiniPets"))
    monkeypatch.setattr(mini, "wait_for", lambda lock: pytest.fail("it locks"))
    assert len(build_dataset(make_cfg(tmp_path, name="MiniPets")).test) == 12


def test_a_root_that_is_not_there_is_not_made(pets, make_cfg, tmp_path):
    with pytest.raises(DataRootError, match="nowhere does not exist"):
        build_dataset(make_cfg(tmp_path / "nowhere", name="MiniPets"))
    assert not (tmp_path / "nowhere").exists()


def test_a_variant_is_for_testing_only(pets, make_cfg, tmp_path):
    plain = build_dataset(make_cfg(tmp_path, name="MiniPetsPlain", shots=4))
    assert plain.test_only
    assert plain.classnames == ["cat", "dog"]
    photos = build_dataset(make_cfg(tmp_path, name="MiniPets"))
    drawing_of = [{Path(item.impath).stem.rpartition("_")[0] for item in each.test} for each in (plain, photos)]
    assert drawing_of[0] == drawing_of[1]
    assert len(plain.test) == len(drawing_of[0])
    assert [len(part) for part in json.loads((tmp_path / "mini/pets_plain/split.json").read_text()).values()][:2] == [
        0,
        0,
    ]
    new = build_dataset(make_cfg(tmp_path, name="MiniPetsPlain", classes="new"))
    assert new.classnames == ["dog"]
    cfg = make_cfg(tmp_path, name="MiniPetsPlain")
    cfg.DATASET.SPLIT_FILE = "split.json"
    with pytest.raises(SplitFileError, match="MiniPetsPlain is for testing only"):
        build_dataset(cfg)


def test_views():
    drawing = np.full((64, 64, 3), 255, np.uint8)
    drawing[20:40, 20:40] = 34
    photos = [np.asarray(view(drawing, "photo", seed)) for seed in range(5)]
    assert all(photo.shape == (64, 64, 3) and photo.std() > 10 for photo in photos)
    assert len({photo.tobytes() for photo in photos}) == 5
    assert (np.asarray(view(drawing, "photo", 3)) == photos[3]).all()
    assert len(np.unique(np.asarray(view(drawing, "pixel", 0)).reshape(16, 4, 16, 4, 3)[:, 0, :, 0], axis=0)) < 16
    edges = np.asarray(view(drawing, "edges", 0))
    assert edges[30, 30].min() > 200 > edges[19, 30].max()
    textured = np.asarray(view(drawing, "textured", 0))
    assert textured[:15].std() > 5
    assert textured[:15].mean() > 150 > textured[25:35, 25:35].mean()
    assert (np.asarray(view(drawing, "plain", 0)) == drawing).all()
