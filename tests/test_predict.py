"""predict.py and load_run: trained prompts on one's own images."""

import csv
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import predict
import train
from common import commandline
from prompting import PromptedCLIP
from tests.test_train import arguments
from trainers import load_run
from trainers.predictor import read_rgb, zero_shot

IMAGES = "assets/digits/images"
SEVENS = f"{IMAGES}/digit_seven"
KINDS = {"Grey.PNG": "L", "colour.jpg": "RGB", "cmyk.jpeg": "CMYK", "palette.gif": "P", "alpha.webp": "RGBA"}


@pytest.fixture(autouse=True)
def repository_folder(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


@pytest.fixture(scope="module")
def run(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(request.config.rootpath)
        assert train.main(arguments("BMIP", folder, "DATASET.SUBSAMPLE_CLASSES", "base")) == 0
    return folder


def test_accuracy_equals_the_run(run):
    """The same test images through load_run give the run's own accuracy."""
    results = json.loads((run / "results.json").read_text())
    split = json.loads(Path("assets/digits/split_digits.json").read_text())
    base = [
        (f"assets/digits/images/{p}".replace("images/images", "images"), name)
        for p, label, name in split["test"]
        if label < 5
    ]
    predictions = list(load_run(run).predict([path for path, _ in base], top=1, batch_size=100))
    right = sum(p.ranking[0][0] == name for p, (_, name) in zip(predictions, base, strict=True))
    assert 100 * right / len(base) == pytest.approx(results["metrics"]["base"]["accuracy"])


def test_other_classes_and_probabilities(run):
    classifier = load_run(run, device="cpu")
    assert classifier.classnames[0] == "digit zero"
    (one,) = classifier.predict([f"{SEVENS}/0007.png"], classes=["digit seven", "digit one", "digit two"])
    assert [name for name, _ in one.ranking] != []
    assert sum(p for _, p in one.ranking) == pytest.approx(1, abs=1e-5)
    assert [p for _, p in one.ranking] == sorted((p for _, p in one.ranking), reverse=True)
    assert classifier.classnames == ("digit seven", "digit one", "digit two")


def test_batch_size_changes_nothing(run):
    images = predict.find_images([SEVENS])[:7]
    alone, together = (list(load_run(run).predict(images, batch_size=n)) for n in (1, 7))
    for a, b in zip(alone, together, strict=True):
        assert [name for name, _ in a.ranking] == [name for name, _ in b.ranking]
        torch.testing.assert_close(torch.tensor([p for _, p in a.ranking]), torch.tensor([p for _, p in b.ranking]))


def test_formats(run, capsys):
    command = ["--model-dir", str(run), SEVENS, "--top", "2", "--device", "cpu", "--format"]
    assert predict.main([*command, "text"]) == 0
    text = capsys.readouterr().out.splitlines()
    assert predict.main([*command, "json"]) == 0
    objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert predict.main([*command, "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(text) == len(objects) == len(rows) / 2 == len(predict.find_images([SEVENS]))
    assert text[0].startswith(objects[0]["image"] + ": " + objects[0]["ranking"][0]["class"])
    assert float(rows[0]["probability"]) == pytest.approx(objects[0]["ranking"][0]["probability"], abs=1e-6)


def test_zero_shot_with_a_class_file(tmp_path, capsys):
    (tmp_path / "classes.txt").write_text("digit seven\ndigit one\n", encoding="utf-8")
    command = ["--backbone", "bundled:tiny_clip", "--classes-file", str(tmp_path / "classes.txt"), f"{SEVENS}/0007.png"]
    assert predict.main([*command, "--template", "a photo of the {}.", "--format", "json"]) == 0
    (prediction,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {entry["class"] for entry in prediction["ranking"]} == {"digit seven", "digit one"}


def test_a_folder_with_odd_names_and_kinds_of_images(run, tmp_path, capsys):
    folder = tmp_path / "my pictures é"
    folder.mkdir()
    image = Image.open(f"{SEVENS}/0007.png")
    for name, mode in {
        "Grey.PNG": "L",
        "colour.jpg": "RGB",
        "cmyk.jpeg": "CMYK",
        "palette.gif": "P",
        "alpha.webp": "RGBA",
    }.items():
        image.convert(mode).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    (folder / "._Grey.PNG").write_text("what macOS leaves beside a file")
    assert predict.main(["--model-dir", str(run), str(folder), "--top", "1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_a_damaged_image_is_named(run, tmp_path, capsys):
    bad = tmp_path / "bad.png"
    shutil.copy(f"{SEVENS}/0007.png", bad)
    bad.write_bytes(bad.read_bytes()[:80])
    assert predict.main(["--model-dir", str(run), str(bad)]) == 1
    assert "bad.png is not a readable image" in capsys.readouterr().err


@pytest.fixture
def three(tmp_path):
    """Three files, the second of which is no image."""
    files = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    for file in files:
        shutil.copy(f"{SEVENS}/0007.png", file)
    files[1].write_bytes(b"no image")
    return files


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_an_unreadable_image_among_others_has_an_error_and_they_have_answers(run, three, batch_size):
    good, bad, other = load_run(run).predict(three, batch_size=batch_size)
    assert (bad.path, bad.ranking) == (str(three[1]), [])
    assert "b.png is not a readable image" in bad.error
    assert (good.error, other.error) == ("", "")
    assert [name for name, _ in good.ranking] == [name for name, _ in other.ranking]


@pytest.mark.parametrize("form", ["text", "json", "csv"])
def test_its_row_carries_the_error_in_every_format(run, three, capsys, form):
    assert predict.main(["--model-dir", str(run), *map(str, three), "--top", "1", "--format", form]) == 1
    out, err = capsys.readouterr()
    assert err.splitlines()[-1].startswith("error: 1 of 3 images could not be read")
    if form == "text":
        rows = [line.partition(": ")[2] for line in out.splitlines()]
        assert [row.startswith("error: not a readable image") for row in rows] == [False, True, False]
    elif form == "json":
        rows = [json.loads(line) for line in out.splitlines()]
        assert [bool(row.get("error")) for row in rows] == [not row["ranking"] for row in rows] == [False, True, False]
    else:
        rows = list(csv.DictReader(io.StringIO(out)))
        assert [bool(row["error"]) for row in rows] == [not row["class"] for row in rows] == [False, True, False]


def lying_down(path):
    """A photo that only its EXIF orientation turns upright; returns its pixels as people see them."""
    pixels = np.zeros((48, 48, 3), np.uint8)
    pixels[:24] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    return pixels


def test_photos_are_upright_without_a_run_and_as_the_run_had_them_with_one(run, tmp_path):
    pixels = lying_down(tmp_path / "phone.png")
    np.testing.assert_array_equal(np.asarray(read_rgb(tmp_path / "phone.png")), pixels)
    assert zero_shot("bundled:tiny_clip", ["cat", "dog"], device="cpu").upright
    assert not load_run(run).upright
    other = tmp_path / "run"
    shutil.copytree(run, other)
    config = (other / "config.yaml").read_text()
    assert "EXIF_ORIENTATION: false" in config
    (other / "config.yaml").write_text(config.replace("EXIF_ORIENTATION: false", "EXIF_ORIENTATION: true"))
    assert load_run(other).upright


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["polar_bear", "cat", "Polar bear"], "'polar_bear' .class 0. and 'Polar bear' .class 2. give the same prompt"),
        (["cat", "_"], "class 1.*no word"),
        (["cat", "---"], "class 1.*no word"),
        (["!?", "cat"], "class 0.*no word"),
        (["cat", "caf\udce9"], "class 1.*UTF-8"),
    ],
)
def test_class_names_that_cannot_be_told_apart_are_refused(run, names, message):
    with pytest.raises(ValueError, match=message):
        list(load_run(run).predict([f"{SEVENS}/0007.png"], classes=names))
    with pytest.raises(ValueError, match=message):
        zero_shot("bundled:tiny_clip", names, device="cpu")


def test_the_line_of_the_class_file_is_named(tmp_path, capsys):
    (tmp_path / "classes.txt").write_text("Crane\n\ncat\ncrane\n", encoding="utf-8")
    command = ["--backbone", "bundled:tiny_clip", "--classes-file", str(tmp_path / "classes.txt"), SEVENS]
    assert predict.main(command) == 2
    assert "classes.txt, line 1) and 'crane' (" in capsys.readouterr().err


def test_zero_top_is_refused(run, capsys):
    assert predict.main(["--model-dir", str(run), SEVENS, "--top", "0"]) == 2
    assert "must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("form", predict.FORMATS)
def test_names_steer_no_terminal_and_are_no_formulas(form, capsys):
    names = ["=1+1", "\x1b[2Jcat", "\x9bdog\nline"]
    with commandline.printable_output():
        predict.write([predict.Prediction("@a.png", [(name, 0.25) for name in names])], form)
    out = capsys.readouterr().out
    assert all(character.isprintable() or character in "\r\n" for character in out)
    if form == "json":
        assert [entry["class"] for entry in json.loads(out)["ranking"]] == names
    if form == "csv":
        rows = list(csv.reader(io.StringIO(out)))[1:]
        assert [row[2] for row in rows] == ["'=1+1", "\\x1b[2Jcat", "\\x9bdog\\nline"]
        assert {row[0] for row in rows} == {"'@a.png"}


@pytest.mark.parametrize(
    ("value", "status", "said"), [("inf", 2, "error: the logits of .*0007.png are"), ("0", 0, "zero")]
)
def test_numbers_that_mean_nothing_are_said(value, status, said, run, monkeypatch, capsys):
    features = PromptedCLIP.image_features
    monkeypatch.setattr(PromptedCLIP, "image_features", lambda self, *given: features(self, *given) * 0 + float(value))
    assert predict.main(["--model-dir", str(run), f"{SEVENS}/0007.png", "--device", "cpu"]) == status
    assert re.search(said, capsys.readouterr().err)
