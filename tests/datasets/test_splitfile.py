"""Split files that cannot be used are refused, saying which, where and what to do."""

import pytest

from datasets.splits import SplitFileError, SplitFileMissingError
from tests.datasets.toy_dataset import Toy


def drop_key(split):
    del split["val"]


def empty(part):
    return lambda split: split[part].clear()


def replace(part, index, row):
    def change(split):
        split[part][index] = row

    return change


def renumber(split):
    for rows in split.values():
        for row in rows:
            row[1] += row[1] >= 2


def same_name(split):
    for rows in split.values():
        for row in rows:
            row[2] = "thing 1" if row[1] == 3 else row[2]


def untrained(split):
    split["train"] = [row for row in split["train"] if row[1] != 4]


BAD_SPLITS = {
    "key": (drop_key, "must hold the lists train, val, test"),
    "empty train": (empty("train"), "no images in 'train'"),
    "empty test": (empty("test"), "no images in 'test'"),
    "short entry": (
        replace("train", 3, ["class 0/train_3.png", 0]),
        r"train\[3\]: expected \[path, label, class name\]",
    ),
    "no path": (replace("test", 0, ["", 0, "thing 0"]), r"test\[0\]: the image path is ''"),
    "no name": (
        replace("val", 1, ["class 0/val_1.png", 0, " "]),
        r"val\[1\]: label 0 of class 0/val_1.png has no class name",
    ),
    "null name": (replace("val", 1, ["class 0/val_1.png", 0, None]), "has no class name"),
    "label text": (replace("val", 0, ["class 0/val_0.png", "cat", "thing 0"]), "is 'cat'; labels are integers from 0"),
    "label below 0": (replace("val", 0, ["class 0/val_0.png", -1, "thing 0"]), "is -1; labels are integers"),
    "label true": (replace("val", 0, ["class 0/val_0.png", True, "thing 0"]), "is True; labels are integers"),
    "two names": (
        replace("test", 0, ["class 0/test_0.png", 0, "other"]),
        "label 0 is 'thing 0' and, for class 0/test_0.png, 'other'",
    ),
    "gap": (renumber, "labels run to 5 but 2 do not occur"),
    "same name": (same_name, "labels 1 and 3 are both called 'thing 1'"),
    "untrained class": (untrained, "no training images for thing 4"),
}


@pytest.mark.parametrize("case", BAD_SPLITS)
def test_bad_content_is_refused(toy, make_cfg, case):
    change, message = BAD_SPLITS[case]
    change(toy.split)
    toy.write()
    with pytest.raises(SplitFileError, match=message) as caught:
        Toy(make_cfg(toy.root))
    assert str(toy.folder / "split.json") in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", '"split"', '{"train": {}}'])
def test_other_content_is_refused(toy, make_cfg, text):
    (toy.folder / "split.json").write_text(text)
    with pytest.raises(SplitFileError, match=r"split\.json"):
        Toy(make_cfg(toy.root))


def test_missing_split_file_says_how_to_get_it(toy, make_cfg):
    (toy.folder / "split.json").unlink()
    with pytest.raises(SplitFileMissingError, match=r"split\.json does not exist\. Fetch it from the toy shop\."):
        Toy(make_cfg(toy.root))
    assert not (toy.folder / "split.json").exists()


def test_missing_images_are_counted_and_named(toy, make_cfg):
    for index in range(6):
        (toy.folder / "images" / "class 2" / f"train_{index}.png").unlink()
    message = r"6 images of .*split\.json are not in .*images: class 2/train_0\.png, .*train_4\.png and 1 more"
    with pytest.raises(SplitFileMissingError, match=message):
        Toy(make_cfg(toy.root))
