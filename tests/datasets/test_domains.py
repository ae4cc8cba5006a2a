"""PACS, OfficeHomeDG, VLCS and DomainNet as Dassl reads them, two remote sensing sets by their lists; all in tiny."""

import importlib
import json
import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest

import train
from dassl.data.datasets import DATASET_REGISTRY, build_dataset
from datasets.__main__ import main
from datasets.domains import TABLE
from datasets.splits import DataRootError, SplitFileError, SplitFileMissingError
from results.schema import dataset_label
from tests.datasets.real_layouts import build_layout

REPOSITORY = Path(__file__).resolve().parents[2]
DOMAINS = {row.name: row.domains for row in TABLE}
CLASSES = {
    "PACS": ["dog", "elephant", "guitar", "house", "person"],
    "OfficeHomeDG": ["alarm_clock", "bike", "tv", "table", "webcam"],
    "VLCS": ["bird", "car", "chair", "dog", "person"],
    "DomainNet": ["The_Eiffel_Tower", "aircraft_carrier", "airplane", "t-shirt", "zigzag"],
}
# Of one domain in the tiny layouts: images that train, validate and test
COUNTS = {"PACS": (30, 10, 40), "OfficeHomeDG": (30, 10, 40), "VLCS": (30, 10, 15), "DomainNet": (30, 10, 10)}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name in (*DOMAINS, "RESISC45", "UCMerced"):
        build_layout(name, folder)
    return folder


@pytest.fixture
def build(root, make_cfg):
    def make(name, source=(), target=(), **settings):
        cfg = make_cfg(root, name=name, **settings)
        cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS = source, target
        return build_dataset(cfg)

    return make


def paths(dataset, items):
    return [os.path.relpath(item.impath, dataset.image_dir) for item in items]


@pytest.mark.parametrize("name", DOMAINS)
def test_sources_train_and_validate_and_targets_test(build, name):
    first, second, target = DOMAINS[name][:3]
    dataset = build(name, (second, first), (target,))
    train, val, test = COUNTS[name]
    assert dataset.classnames == CLASSES[name]
    missing = name == "DomainNet" and 2  # painting has no t-shirts
    assert [len(part) for part in (dataset.train_x, dataset.val, dataset.test)] == [2 * train, 2 * val, test - missing]
    assert [item.domain for item in dataset.train_x] == [0] * train + [1] * train
    for items, domain in ((dataset.train_x[:train], second), (dataset.val[val:], first), (dataset.test, target)):
        assert {path.split("/")[0].lower() for path in paths(dataset, items)} == {domain}
    assert dataset.domains == sorted(DOMAINS[name])
    assert not set(paths(dataset, dataset.train_x)) & set(paths(dataset, [*dataset.val, *dataset.test]))


def test_the_image_of_pacs_that_dassl_leaves_out_is_left_out(build):
    assert len(build("PACS", ("sketch",), ("photo",)).train_x) == 30
    assert len(build("PACS", ("photo",), ("sketch",)).test) == 40


def test_two_parts_of_a_target_domain_are_tested_together(build):
    dataset = build("OfficeHomeDG", ("art",), ("product",))
    assert Counter(path.split("/")[1] for path in paths(dataset, dataset.test)) == {"train": 30, "val": 10}


@pytest.mark.parametrize("name", DOMAINS)
def test_shots_are_drawn_per_class_from_all_source_domains_together(build, name):
    source, target = DOMAINS[name][:2], DOMAINS[name][2:]
    drawn = [build(name, source, target, shots=4, seed=seed, classes="all") for seed in (1, 1, 2)]
    assert Counter(item.label for item in drawn[0].train_x) == dict.fromkeys(range(5), 4)
    assert {item.domain for item in drawn[0].train_x} == {0, 1}
    assert paths(drawn[0], drawn[0].train_x) == paths(drawn[1], drawn[1].train_x) != paths(drawn[2], drawn[2].train_x)
    base, new = (build(name, source, target, shots=4, classes=classes) for classes in ("base", "new"))
    assert base.classnames + new.classnames == CLASSES[name]
    assert sorted(paths(base, base.train_x) + paths(new, new.train_x)) == sorted(paths(drawn[0], drawn[0].train_x))


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ((), ("sketch",), r"SOURCE_DOMAINS is empty; choose from \['art_painting', 'cartoon', 'photo', 'sketch'\]"),
        (("photo",), (), "TARGET_DOMAINS is empty"),
        (("photo",), ("sketches",), r"\['art_painting', 'cartoon', 'photo', 'sketch'\], but got \[sketches\]"),
        (("photo", "sketch"), ("sketch",), "name sketch more than once: a domain is either trained on or tested on"),
        (("photo", "photo"), ("sketch",), "name photo more than once"),
    ],
)
def test_domains_that_cannot_be_are_refused(build, source, target, message):
    with pytest.raises(ValueError, match=message):
        build("PACS", source, target)


def test_a_domain_without_a_class_cannot_be_the_only_source(build):
    with pytest.raises(SplitFileError, match=r"trained on painting\): no training images for t-shirt"):
        build("DomainNet", ("painting",), ("real",))


def test_what_is_missing_or_malformed_is_named(tmp_path, make_cfg):
    def build(name, **settings):
        cfg = make_cfg(tmp_path, name=name)
        cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS = DOMAINS[name][:1], DOMAINS[name][1:2]
        cfg.DATASET.merge_from_list([text for pair in settings.items() for text in pair])
        return build_dataset(cfg)

    build_layout("PACS", tmp_path)
    build_layout("VLCS", tmp_path)
    with pytest.raises(SplitFileError, match="leave DATASET.SPLIT_FILE out"):
        build("PACS", SPLIT_FILE="x.json")
    os.rename(tmp_path / "VLCS/LABELME/test", tmp_path / "VLCS/LABELME/tests")
    with pytest.raises(DataRootError, match="LABELME has no folder 'test'"):
        build("VLCS")
    (tmp_path / "pacs/images/cartoon/dog/pic_000.jpg").unlink()
    with pytest.raises(SplitFileMissingError, match=r"1 images of .* are not in .*: cartoon/dog/pic_000.jpg"):
        build("PACS")
    path = tmp_path / "pacs/splits/cartoon_train_kfold.txt"
    path.write_text("cartoon/dog/pic_001.jpg 1\ncartoon/dog/pic_002.jpg 0\n")
    with pytest.raises(SplitFileError, match=r"cartoon_train_kfold.txt, line 2: expected .* found 'cartoon/dog/pic"):
        build("PACS")
    path.unlink()
    with pytest.raises(SplitFileMissingError, match="does not exist. Get it from .* datasets download PACS"):
        build("PACS")


def test_shots_that_depend_on_the_domains_are_not_exported(root, capsys):
    assert main(["export-selection", "PACS", "--root", str(root), "--shots", "1", "--seed", "1"]) == 1
    assert "follow from DATASET.SOURCE_DOMAINS" in capsys.readouterr().err


def test_runs_to_different_targets_have_different_names():
    assert dataset_label({"NAME": "PACS", "TARGET_DOMAINS": ("sketch",)}) == "PACS_sketch"
    assert dataset_label({"NAME": "PACS", "TARGET_DOMAINS": ("photo", "sketch")}) == "PACS_photo+sketch"
    assert dataset_label({"NAME": "PACS", "TARGET_DOMAINS": ("sketch",), "LABEL": "from_photo"}) == "from_photo"
    assert dataset_label({"NAME": "csv", "PATH": "pacs.csv", "TARGET_DOMAINS": ("sketch",)}) == "pacs"


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("RESISC45", ["airplane", "baseball diamond", "beach", "freeway", "sea ice"]),
        ("UCMerced", ["agricultural", "baseball diamond", "beach", "mobile home park", "storage tanks"]),
    ],
)
def test_remote_sensing_follows_its_lists(build, name, classes):
    dataset = build(name)
    assert dataset.classnames == classes
    assert dataset.template == "a centered satellite photo of {}."
    assert [len(part) for part in (dataset.train_x, dataset.val, dataset.test)] == [30, 10, 10]
    for part, items in (("train", dataset.train_x), ("val", dataset.val), ("test", dataset.test)):
        path = os.path.join(dataset.dataset_dir, type(dataset).lists.format(part))
        with open(path, encoding="utf-8") as file:
            assert [os.path.basename(item.impath) for item in items] == file.read().split()
    shots = build(name, shots=2, classes="base")
    assert Counter(item.label for item in shots.train_x) == {0: 2, 1: 2, 2: 2}


def test_a_remote_sensing_list_with_something_else_is_refused(tmp_path, make_cfg):
    build_layout("UCMerced", tmp_path)
    (tmp_path / "ucmerced/uc_merced-val.txt").write_text("<html>")
    with pytest.raises(SplitFileError, match=r"uc_merced-val.txt: expected names as .* found '<html>'"):
        build_dataset(make_cfg(tmp_path, name="UCMerced"))


@pytest.mark.parametrize(
    ("module", "name"), [("pacs", "PACS"), ("office_home_dg", "OfficeHomeDG"), ("ucmerced", "UCMerced")]
)
def test_they_can_be_imported_from_the_modules_that_forks_have(module, name):
    assert getattr(importlib.import_module(f"datasets.{module}"), name) is DATASET_REGISTRY.get(name)


def test_the_documented_loop_leaves_each_domain_out_and_a_run_is_called_after_its_target(root, tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    text = (REPOSITORY / "docs/datasets.md").read_text(encoding="utf-8")
    loop = text[text.index('    domains="art') : text.index("    done\n")] + "    done\n"
    said = subprocess.run(
        ["bash", "-c", 'python() { echo "$@"; }\n' + loop], capture_output=True, text=True, check=True
    )
    commands = [line.split() for line in said.stdout.splitlines()]
    targets = [line[line.index("--target-domains") + 1] for line in commands]
    assert targets == list(DOMAINS["PACS"])
    words = dict(zip(DOMAINS["PACS"], commands, strict=True))["sketch"][1:]
    values = {"--root": root, "--output-dir": tmp_path, "DATASET.NUM_SHOTS": 1}
    values["--config-file"] = "configs/trainers/CoOp/tiny_c4_ep50_batch32.yaml"
    for key, value in values.items():
        words[words.index(key) + 1] = str(value)
    assert train.main(["--device", "cpu", *words, "OPTIM.MAX_EPOCH", "1"]) == 0
    record = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert record["dataset"] == "PACS_sketch"
    assert record["config"]["DATASET"]["SOURCE_DOMAINS"] == ["art_painting", "cartoon", "photo"]
    assert record["metrics"]["all"]["num_images"] == 40
