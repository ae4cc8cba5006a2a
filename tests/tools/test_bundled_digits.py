"""The bundled digits can be made again from scikit-learn's data, pixel for pixel."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from tools.bundled_data import split_digits, write_digits

DIGITS = Path(__file__).resolve().parents[2] / "assets" / "digits"


def test_rerun_reproduces_the_data_set(tmp_path):
    write_digits(tmp_path)
    assert (tmp_path / "split_digits.json").read_bytes() == (DIGITS / "split_digits.json").read_bytes()
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.png"))
    assert made == sorted(path.relative_to(DIGITS) for path in DIGITS.rglob("*.png"))
    for path in made:
        assert np.array_equal(np.asarray(Image.open(tmp_path / path)), np.asarray(Image.open(DIGITS / path))), path


def test_parts_are_disjoint_and_complete():
    entries = json.loads((DIGITS / "split_digits.json").read_text())
    paths = [row[0] for rows in entries.values() for row in rows]
    assert len(paths) == len(set(paths)) == 1797


def test_split_depends_on_its_seed():
    labels = [index % 2 for index in range(400)]
    assert split_digits(labels, 0) == split_digits(labels, 0) != split_digits(labels, 1)
    assert {part: len(indices) for part, indices in split_digits(labels, 0).items()} == {
        "train": 120,
        "val": 60,
        "test": 220,
    }
