"""The bundled digits: files, classes, halves, and the shots that CoOp's code draws."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dassl.data.datasets import build_dataset
from datasets.standard import Digits

NAMES = [f"digit {word}" for word in ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]]
SPLIT_SHA256 = "4ad9c827739d4ba7855d2ab50b368c96ce60012356437c13ef8dcc21477847a8"
# What Dassl's generate_fewshot_dataset draws after random.seed(seed), train first, then val with min(shots, 4).
COOP = json.loads((Path(__file__).parent / "coop_selection.json").read_text())


def numbers(items) -> list[int]:
    return [int(Path(item.impath).stem) for item in items]


def test_all_images_and_names(make_cfg):
    digits = build_dataset(make_cfg())
    assert isinstance(digits, Digits)
    assert digits.classnames == digits.all_classnames == NAMES
    assert (len(digits.train_x), len(digits.val), len(digits.test)) == (600, 300, 897)
    assert sorted(numbers([*digits.train_x, *digits.val, *digits.test])) == list(range(1797))
    assert set(Counter(item.label for item in digits.train_x).values()) == {60}
    assert digits.split_sha256 == SPLIT_SHA256
    assert digits.fewshot_sha256 is None
    assert digits.template.format(digits.classnames[7]) == "a photo of the digit seven."


def test_images_are_dark_strokes_on_white(make_cfg):
    pixels = np.asarray(Image.open(build_dataset(make_cfg()).test[0].impath))
    assert pixels.shape == (48, 48)
    assert (pixels[[0, -1]] == 255).all()
    assert pixels.min() < 40


@pytest.mark.parametrize(("classes", "names", "tests"), [("base", NAMES[:5], 451), ("new", NAMES[5:], 446)])
def test_base_and_new_classes(make_cfg, classes, names, tests):
    digits = build_dataset(make_cfg(classes=classes))
    assert digits.classnames == names
    assert digits.all_classnames == NAMES
    assert len(digits.test) == tests
    assert all(digits.classnames[item.label] == item.classname for item in [*digits.train_x, *digits.val, *digits.test])


@pytest.mark.parametrize("case", [name for name in COOP if not name.startswith("16")])
def test_shots_are_those_of_coop(make_cfg, case):
    shots, seed = map(int, case.split("-"))
    digits = build_dataset(make_cfg(shots=shots, seed=seed))
    assert numbers(digits.train_x) == COOP[case]["train"]
    assert numbers(digits.val) == COOP[case]["val"]
    assert len(digits.test) == 897


@pytest.mark.parametrize("case", [name for name in COOP if name.startswith("16")])
@pytest.mark.parametrize("classes", ["all", "base", "new"])
def test_sixteen_shots_by_hash(make_cfg, case, classes):
    """The hash is of the draw before base or new classes are taken, so the three agree."""
    digits = build_dataset(make_cfg(shots=16, seed=int(case.split("-")[1]), classes=classes))
    assert digits.fewshot_sha256 == COOP[case]["sha"]
    assert set(Counter(item.label for item in digits.train_x).values()) == {16}
    assert set(Counter(item.label for item in digits.val).values()) == {4}
