"""The published data sets in tiny: items, class names, halves and shots are those of CoOp's data set files.

`coop_real.json` holds what CoOp's files make of the same folders, with a sorted `os.listdir`.
"""

import hashlib
import json
import os
from collections import Counter
from pathlib import Path

import pytest

from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, build_dataset
from datasets.sources import known_datasets
from tests.datasets.real_layouts import BUILDERS, build_layout

COOP = json.loads((Path(__file__).parent / "coop_real.json").read_text())
NAMES = list(BUILDERS)
VARIANTS = ["ImageNetV2", "ImageNetSketch", "ImageNetA", "ImageNetR"]
FEW_SHOT = [name for name in COOP if name not in VARIANTS]
CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "datasets"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name in NAMES:
        build_layout(name, folder)
    return folder


@pytest.fixture
def build(root, make_cfg):
    def make(name, **settings):
        cfg = make_cfg(root, name=name, **settings)
        if domains := DATASET_REGISTRY.get(name).domains:
            cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS = domains[:-1], domains[-1:]
        return build_dataset(cfg)

    return make


def rows(dataset, items):
    return [[os.path.relpath(item.impath, dataset.image_dir), item.label, item.classname] for item in items]


def sha256(content) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def paths(dataset, items):
    return [row[0] for row in rows(dataset, items)]


def test_all_data_sets_are_here():
    assert set(NAMES) == set(known_datasets())


@pytest.mark.parametrize("classes", ["all", "base", "new"])
@pytest.mark.parametrize("name", FEW_SHOT)
def test_items_and_class_names_are_coops(build, name, classes):
    dataset, expected = build(name, classes=classes), COOP[name][classes]
    assert dataset.classnames == expected["classnames"]
    assert sha256(rows(dataset, dataset.train_x)) == expected["train"]
    assert sha256(rows(dataset, dataset.test)) == expected["test"]
    if name != "ImageNet":  # CoOp validates on its test set
        assert sha256(rows(dataset, dataset.val)) == expected["val"]


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", FEW_SHOT)
def test_shots_are_coops(build, name, seed):
    dataset, expected = build(name, shots=2, seed=seed), COOP[name][f"shots2-seed{seed}"]
    assert paths(dataset, dataset.train_x) == expected["train"]
    assert len(dataset.val) == len(dataset.train_x)
    if name != "ImageNet":
        assert paths(dataset, dataset.val) == expected["val"]


@pytest.mark.parametrize("name", FEW_SHOT)
def test_halves_are_cut_after_the_shots(build, name):
    """Base and new classes together have the shots of all classes."""
    whole, base, new = (build(name, shots=2, classes=classes) for classes in ("all", "base", "new"))
    assert base.classnames + new.classnames == whole.classnames == new.all_classnames
    assert base.num_classes == (whole.num_classes + 1) // 2
    assert sorted(paths(base, base.train_x) + paths(new, new.train_x)) == sorted(paths(whole, whole.train_x))
    assert sorted(paths(base, base.val) + paths(new, new.val)) == sorted(paths(whole, whole.val))
    assert len({data.fewshot_sha256 for data in (whole, base, new)}) == 1


def test_imagenet_validates_on_held_out_training_images(build):
    dataset = build("ImageNet", shots=2, seed=1)
    train, val, test = ({item.impath for item in part} for part in (dataset.train_x, dataset.val, dataset.test))
    assert not train & val
    assert not val & test
    assert all(f"{os.sep}train{os.sep}" in path for path in val)
    assert set(Counter(item.label for item in dataset.val).values()) == {2}
    assert paths(dataset, dataset.val) == paths(dataset, build("ImageNet", shots=2, seed=1).val)
    assert paths(dataset, dataset.val) != paths(dataset, build("ImageNet", shots=2, seed=2).val)
    assert len(build("ImageNet", shots=8).val) == 6 * 2  # ten images, eight of them shots
    assert build("ImageNet").val == []


def test_imagenet_keeps_classes_of_one_name_apart(build):
    dataset = build("ImageNet")
    assert dataset.classnames.count("missile") == 2
    assert dataset.num_classes == 6


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_are_for_testing_only(build, name):
    dataset, expected = build(name, shots=2), COOP[name]["all"]
    assert dataset.classnames == expected["classnames"]
    assert sha256(rows(dataset, dataset.test)) == expected["test"]
    assert paths(dataset, dataset.train_x) == paths(dataset, dataset.test)
    assert dataset.val == []
    assert dataset.test_only
    assert dataset.fewshot_sha256 is None


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_written_and_the_split_has_a_hash(build, root, name):
    before = sorted(root.rglob("*"))
    first, second = build(name, shots=1), build(name, shots=1, seed=2)
    assert sorted(root.rglob("*")) == before
    assert first.split_sha256 == second.split_sha256
    assert len(first.split_sha256) == 64
    assert os.path.exists(first.split_path)


@pytest.mark.parametrize("name", ["ImageNet", "FGVCAircraft", "ImageNetA"])
def test_hash_without_split_file_follows_the_images_not_the_place(tmp_path, make_cfg, name):
    for folder in ("one", "two"):
        build_layout(name, tmp_path / folder)
    first, second = (build_dataset(make_cfg(tmp_path / folder, name=name)) for folder in ("one", "two"))
    assert first.split_sha256 == second.split_sha256
    image = Path(first.test[0].impath)
    if name == "FGVCAircraft":
        text = Path(first.dataset_dir) / "images_variant_test.txt"
        text.write_text("".join(text.read_text().splitlines(keepends=True)[1:]))
    else:
        image.rename(image.with_stem("other"))
    assert build_dataset(make_cfg(tmp_path / "one", name=name)).split_sha256 != first.split_sha256


@pytest.mark.parametrize("name", NAMES)
def test_config_file_names_the_data_set_and_its_facts(name):
    infos = known_datasets()
    files = {}
    for path in CONFIGS.glob("*.yaml"):
        cfg = get_cfg_default()
        cfg.merge_from_file(str(path))
        files[cfg.DATASET.NAME] = path.read_text()
    assert f"{infos[name].classes:,} " in files[name]
    for count in filter(None, infos[name].counts):
        assert f"{count:,}" in files[name]
    assert f"{infos[name].folder}/" in files[name]


def test_dropped_in_data_set_needs_nothing_but_dassl(tmp_path, make_cfg, monkeypatch):
    """A plain `DatasetBase` subclass, as in Dassl's own examples, is built by name like ours."""
    from dassl.data.datasets import DatasetBase, Datum

    class PlainDataset(DatasetBase):
        def __init__(self, cfg):
            items = [Datum(os.path.join(cfg.DATASET.ROOT, "x.png"), 0, 0, "thing")]
            super().__init__(train_x=items, test=items)

    monkeypatch.setitem(DATASET_REGISTRY._obj_map, "PlainDataset", PlainDataset)
    (tmp_path / "x.png").touch()
    assert build_dataset(make_cfg(tmp_path, name="PlainDataset")).classnames == ["thing"]
