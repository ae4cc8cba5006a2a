"""Few-shot sampling: upstream's choice of images, frozen."""

import json
import pickle
import random
from pathlib import Path

import pytest

from dassl.data.datasets import DatasetBase, Datum, EmptySplitError

REFERENCE = json.loads((Path(__file__).parent / "reference" / "fewshot_indices.json").read_text())


@pytest.fixture
def datums(tmp_path):
    """A function from labels to `Datum` objects, all of one file; `domain` is the index."""
    file = tmp_path / "x.png"
    file.touch()
    return lambda labels: [Datum(str(file), label, index, f"class {label}") for index, label in enumerate(labels)]


class Bare(DatasetBase):
    def __init__(self):
        pass


@pytest.mark.parametrize("form", ["rng", "global"])
@pytest.mark.parametrize("case", REFERENCE["draws"], ids=lambda c: f"{c['num_shots']}-{c['repeat']}-seed{c['seed']}")
def test_the_same_images_as_upstream(case, form, datums):
    rng = random.Random(case["seed"]) if form == "rng" else None
    random.seed(case["seed"] if form == "global" else 99)
    drawn = []
    for labels, shots in (
        (REFERENCE["train_labels"], case["num_shots"]),
        (REFERENCE["val_labels"], min(case["num_shots"], 4)),
    ):
        chosen = Bare().generate_fewshot_dataset(datums(labels), num_shots=shots, repeat=case["repeat"], rng=rng)
        drawn.append([item.domain for item in chosen])
    assert drawn == [case["train"], case["val"]]


def test_with_a_generator_the_global_one_is_left_alone(datums):
    random.seed(3)
    before = random.getstate()
    Bare().generate_fewshot_dataset(datums([0, 0, 1, 1]), num_shots=1, rng=random.Random(1))
    assert random.getstate() == before
    Bare().generate_fewshot_dataset(datums([0, 0, 1, 1]), num_shots=1)
    assert random.getstate() != before


def test_below_one_shot_everything_comes_back(datums):
    first, second = datums([0, 1]), datums([0])
    assert Bare().generate_fewshot_dataset(first) is first
    assert Bare().generate_fewshot_dataset(first, second, num_shots=0) == (first, second)


def test_several_sources_give_several_lists(datums):
    chosen = Bare().generate_fewshot_dataset(datums([0, 0, 1, 1]), datums([0, 1, 1]), num_shots=1)
    assert [len(images) for images in chosen] == [2, 2]


@pytest.mark.parametrize(("repeat", "length", "words"), [(True, 9, "repeated"), (False, 6, "all of their images")])
def test_classes_with_too_few_images_are_said_once(datums, capsys, repeat, length, words):
    labels = [0, 1, 1, 2, 2, 2, 2]
    chosen = Bare().generate_fewshot_dataset(datums(labels), num_shots=3, repeat=repeat)
    assert len(chosen) == length
    printed = capsys.readouterr().out
    assert printed.count("2 of 3 classes have fewer than 3 images") == 1
    assert words in printed


def test_base_reads_classes_from_the_training_images(datums):
    images = datums([2, 0, 1, 0])
    data = DatasetBase(train_x=images, val=images[:1], test=images)
    assert data.num_classes == 3
    assert data.lab2cname == {0: "class 0", 1: "class 1", 2: "class 2"}
    assert data.classnames == ["class 0", "class 1", "class 2"]
    assert (data.train_x, data.train_u, data.val, data.test) == (images, None, images[:1], images)
    assert {label: len(items) for label, items in data.split_dataset_by_label(images).items()} == {2: 1, 0: 2, 1: 1}
    assert data.split_dataset_by_domain(images)[3] == [images[3]]


def test_no_training_images(datums):
    class Flowers(DatasetBase):
        dataset_dir = "/data/flowers"

    with pytest.raises(EmptySplitError, match=r"Flowers.*train_x.*/data/flowers"):
        Flowers(train_x=[], test=datums([0]))


def test_one_label_with_two_names(tmp_path):
    file = tmp_path / "x.png"
    file.touch()
    with pytest.raises(ValueError, match="'cat' and 'dog'"):
        DatasetBase(train_x=[Datum(str(file), 0, 0, "cat"), Datum(str(file), 0, 0, "dog")])


@pytest.mark.filterwarnings("ignore:No file found")
def test_a_datum_needs_its_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.png"):
        Datum(str(tmp_path / "nothing.png"), 1, 0, "cat")
    with pytest.raises(TypeError, match="string"):
        Datum(tmp_path, 1, 0, "cat")


def test_pickled_few_shot_files_of_dassl_load(datums):
    """Data set files written for Dassl keep their few-shot choice as a pickle of `Datum` objects."""
    text = pickle.dumps(datums([4])[0], protocol=0).decode("latin1")
    assert "dassl.data.datasets.base_dataset" in text
    assert all(name in text for name in ("_impath", "_label", "_domain", "_classname"))
    assert pickle.loads(text.encode("latin1")).label == 4


def test_domains_are_checked():
    class Rooms(DatasetBase):
        domains = ["art", "photo"]

        def __init__(self):
            pass

    Rooms().check_input_domains(["art"], ["photo"])
    with pytest.raises(ValueError, match="TARGET_DOMAINS is empty"):
        Rooms().check_input_domains(["art"], [])
    with pytest.raises(ValueError, match="sketch"):
        Rooms().check_input_domains(["art"], ["sketch"])
