"""python -m datasets from-hf, with a stand-in for the library in the process that exports."""

import csv
import subprocess
import sys

import pytest

from datasets import __main__ as command
from results.schema import REPOSITORY
from tests.datasets.trap_images import trap_images

STAND_IN = """
import os
class ClassLabel:
    dtype = "int64"
    def __init__(self, names): self.names = names
class Value:
    dtype = "string"
class Image:
    def __init__(self, decode=True): pass
class Split(list):
    def cast_column(self, name, kind): return self
def load_dataset(name, subset):
    if name == "gone": raise OSError("no such data set\\non the Hub")
    assert subset in (None, "small") and os.environ["HF_DATASETS_TRUST_REMOTE_CODE"] == "0"
    content = open(os.environ["STAND_IN_IMAGE"], "rb").read()
    features = {"img": Image(), "fine": ClassLabel(["a cat", "dog, big"]), "domain": Value()}
    if subset: features["coarse"] = ClassLabel(["animal"])
    splits = {}
    for split, labels in {"train": [0, 1, 1], "validation": [0, 1], "test": [-1]}.items():
        rows = [{"img": {"bytes": content, "path": None}, "fine": x, "domain": "art", "coarse": 0} for x in labels]
        splits[split] = Split(rows)
        splits[split].features = features
    if name == "one": del splits["validation"]
    return splits
"""
RUN = (
    "import runpy, sys; sys.path.insert(0, sys.argv[1]); del sys.argv[:2]; runpy.run_path(sys.argv[0], {}, '__main__')"
)


@pytest.fixture
def from_hf(tmp_path, monkeypatch, capfd):
    """Run the command; returns status, stdout and stderr."""
    (tmp_path / "library").mkdir()
    (tmp_path / "library/datasets.py").write_text(STAND_IN)
    (tmp_path / "one.jpeg").write_bytes(image_bytes())
    monkeypatch.setenv("STAND_IN_IMAGE", str(tmp_path / "one.jpeg"))
    monkeypatch.setattr(command, "ISOLATED", (sys.executable, "-I", "-c", RUN, str(tmp_path / "library")))

    def run(*arguments):
        status = command.main(["from-hf", *map(str, arguments)])
        return status, *capfd.readouterr()

    return run


def image_bytes():
    return next(iter(trap_images().values()))


def rows_of(folder):
    with open(folder / "images.csv", encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_images_keep_their_bytes_and_what_has_secret_labels_is_left_out(from_hf, tmp_path, capfd):
    status, output, _ = from_hf("owner/pets", tmp_path / "data/pets")
    assert status == 0
    assert "5 images of 2 classes" in output
    assert "DATASET.PATH pets/images.csv" in output
    header, *rows = rows_of(tmp_path / "data/pets")
    assert header == ["image", "classname", "split", "domain"]
    assert [row[1:] for row in rows[1:4]] == [["dog, big", "train", "art"]] * 2 + [["a cat", "test", "art"]]
    assert all((tmp_path / "data/pets" / row[0]).read_bytes() == image_bytes() for row in rows)
    # it is a data set for training as it is
    assert command.main(["check", "csv", "--root", f"{tmp_path}/data", "--path", "pets/images.csv"]) == 0
    assert "images: 3 train" in capfd.readouterr().out


def test_one_split_has_no_column_for_it(from_hf, tmp_path):
    assert from_hf("one", tmp_path / "out")[0] == 0
    assert rows_of(tmp_path / "out")[0] == ["image", "classname", "domain"]


def test_of_several_columns_of_classes_one_is_chosen(from_hf, tmp_path):
    status, _, error = from_hf("owner/pets", tmp_path / "out", "--subset", "small")
    assert (status, error) == (
        1,
        "error: owner/pets has 2 columns of classes (fine, coarse): --label COLUMN chooses one\n",
    )
    status, _, error = from_hf("owner/pets", tmp_path / "out", "--subset", "small", "--label", "fin")
    assert "has no column 'fin'; there are: img, fine, domain, coarse" in error
    assert from_hf("owner/pets", tmp_path / "out", "--subset", "small", "--label", "coarse")[0] == 0
    assert {row[1] for row in rows_of(tmp_path / "out")[1:]} == {"animal"}


def test_what_cannot_be_is_one_line(from_hf, tmp_path, monkeypatch):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/mine.txt").touch()
    assert from_hf("owner/pets", tmp_path / "taken")[::2] == (
        1,
        f"error: {tmp_path}/taken exists: choose another OUT, or move it away\n",
    )
    assert from_hf("gone", tmp_path / "out")[::2] == (1, "error: no such data set on the Hub\n")
    (tmp_path / "library/datasets.py").write_text("raise ImportError('broken')")
    assert "pip install datasets (broken)" in from_hf("owner/pets", tmp_path / "out")[2]
    assert not (tmp_path / "out").exists()


def test_isolated_python_does_not_find_this_folder():
    code = "import importlib.util as u; s = u.find_spec('datasets'); print(s and s.origin)"
    environment = {"PYTHONPATH": str(REPOSITORY)}
    found = subprocess.run(
        [*command.ISOLATED, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    assert found.returncode == 0
    assert str(REPOSITORY / "datasets") not in found.stdout
