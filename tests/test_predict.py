"""predict.py and load_run: trained prompts on one's own images."""

import csv
import io
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import predict
import train
from common import commandline
from common.unpickling import read_checkpoint
from prompting import PromptedCLIP, checkpoint
from tests.test_train import QUICK, arguments
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


# Exported runs: folders to share


@pytest.fixture(scope="module")
def shared(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared") / "digits"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", io.StringIO())
        assert checkpoint.main(["export", str(run), str(folder)]) == 0
    return folder


def test_an_exported_run_is_the_run(run, shared):
    images = predict.find_images([SEVENS])[:7]
    theirs, ours = (list(load_run(folder).predict(images)) for folder in (run, shared))
    assert theirs == ours
    before, after = (read_checkpoint(checkpoint.find_checkpoint(folder)) for folder in (run, shared))
    assert set(before) - set(after) <= {"optimizer", "scheduler"}
    for name, tensor in before["state_dict"].items():
        assert torch.equal(after["state_dict"][name], tensor)
    for name in set(after) - {"state_dict"}:
        assert after[name] == before[name], name


def test_an_exported_run_says_its_own_numbers_and_no_places(run, shared):
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    numbers = json.loads((shared / "metrics.json").read_text(encoding="utf-8"))
    assert numbers["metrics"] == results["metrics"]
    card = (shared / "README.md").read_text(encoding="utf-8")
    values = results["metrics"]["base"]
    assert f"| base | 5 | {values['num_images']} | {values['accuracy']:.2f} | {values['macro_f1']:.2f} |" in card
    for said in ("small demonstration model", "one seed", results["selection_rule"], results["data"]["split_sha256"]):
        assert said in card
    assert (shared / "classes.txt").read_text(encoding="utf-8").splitlines() == results["data"]["classnames"]
    for path in shared.iterdir():
        assert str(run).encode() not in path.read_bytes(), path


def test_an_exported_run_of_ones_own_data_says_no_places_either(run, tmp_path):
    own = tmp_path / "run"
    shutil.copytree(run, own)
    config = yaml.safe_load((own / "config.yaml").read_text(encoding="utf-8"))
    files = {"SPLIT_FILE": "/home/somebody/split.json", "SELECTION": "/home/somebody/selection.json"}
    config["DATASET"] |= {"NAME": "folder", "PATH": "/home/somebody/flowers", **files}
    (own / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    assert checkpoint.main(["export", str(own), str(tmp_path / "out")]) == 0
    assert not any(b"somebody" in path.read_bytes() for path in (tmp_path / "out").iterdir())
    kept = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text(encoding="utf-8"))["DATASET"]
    assert [kept[key] for key in ("PATH", *files)] == ["", "split.json", "selection.json"]


def test_the_pages_commands(run, tmp_path, capsys):
    page = Path("docs/checkpoints.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = re.findall(r"^    python (.+)", page.split("## Sharing trained prompts")[1].split("\n## ")[0], re.M)
    mains = {"-m": checkpoint.main, "predict.py": predict.main, "train.py": train.main}
    assert [shlex.split(command)[0] for command in commands] == list(mains)
    places = {"RUN": run, "OUT": tmp_path / "out", "EVALUATED": tmp_path / "evaluated"}
    options = {"train.py": ["--seed", "1", "DATASET.SUBSAMPLE_CLASSES", "base", *QUICK]}
    for command in commands:
        name, *words = [str(places.get(word, word)) for word in shlex.split(command)]
        words = words[1:] if name == "-m" else words
        assert mains[name](words + options.get(name, [])) == 0, capsys.readouterr().err
    first, again = (json.loads((folder / "results.json").read_text()) for folder in (run, places["EVALUATED"]))
    assert first["metrics"]["base"]["confusion"] == again["metrics"]["base"]["confusion"]


def test_an_exported_run_is_read_from_the_hubs_cache(shared, tmp_path, monkeypatch, capsys):
    pytest.importorskip("huggingface_hub", reason="an optional extra")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    place = tmp_path / "models--some--digits"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("b" * 40)
    shutil.copytree(shared, place / "snapshots" / ("b" * 40))
    assert predict.main(["--model-dir", "hf:some/digits", f"{SEVENS}/0007.png", "--top", "1", "--device", "cpu"]) == 0
    assert "digit" in capsys.readouterr().out
    assert predict.main(["--model-dir", "hf:some/other", f"{SEVENS}/0007.png"]) == 2
    assert re.search(
        r"error: hf:some/other: config.yaml is not in the cache .*could not be down.*\n$", capsys.readouterr().err
    )


def test_exports_that_are_refused(run, shared, tmp_path, capsys):
    unfinished = tmp_path / "unfinished"
    shutil.copytree(run, unfinished, ignore=lambda *_: ["results.json"])
    for source, target, message in (
        (run, shared, f"{shared} exists and is not overwritten: give another name"),
        (unfinished, tmp_path / "new", f"{unfinished} has no results.json: give the --output-dir of a finished run"),
    ):
        assert checkpoint.main(["export", str(source), str(target)]) == 1
        assert f"error: {message}\n" == capsys.readouterr().err
    other = json.loads((run / "results.json").read_text()) | {"trainer": "CoOp"}
    (unfinished / "results.json").write_text(json.dumps(other))
    assert checkpoint.main(["export", str(unfinished), str(tmp_path / "new")]) == 1
    assert "results.json is not about" in capsys.readouterr().err
    (unfinished / "results.json").write_text("[1")
    assert checkpoint.main(["export", str(unfinished), str(tmp_path / "new")]) == 1
    assert "results.json is damaged" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["unfinished"]


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-9], lambda data: data.replace(b'\\"epoch\\": ', b'\\"epoch\\":x')]
)
def test_a_damaged_export_is_named(shared, tmp_path, damage, capsys):
    shutil.copytree(shared, tmp_path / "copy")
    path = tmp_path / "copy" / checkpoint.SHARED
    path.write_bytes(damage(path.read_bytes()))
    assert predict.main(["--model-dir", str(path.parent), f"{SEVENS}/0007.png"]) == 2
    assert f'error: "{path}" is not a checkpoint, or it is damaged' in capsys.readouterr().err
    assert predict.main(["--model-dir", str(shared), "--load-epoch", "77", f"{SEVENS}/0007.png"]) == 2
    assert "alone, not 77" in capsys.readouterr().err


class Hub:
    """Stands in for huggingface_hub.HfApi."""

    pushed = {}

    def create_repo(self, repository):
        if repository == "some/taken":
            raise OSError("409 Client Error: it exists\nand more")
        return f"https://hub/{repository}"

    def upload_folder(self, repo_id, folder_path):
        self.pushed[repo_id] = sorted(path.name for path in Path(folder_path).iterdir())


def test_push(run, tmp_path, monkeypatch, capsys):
    hub = pytest.importorskip("huggingface_hub", reason="an optional extra")
    monkeypatch.setattr(hub, "HfApi", Hub)
    assert checkpoint.main(["export", str(run), str(tmp_path / "out"), "--push", "some/digits"]) == 0
    files = ["README.md", "classes.txt", "config.yaml", "metrics.json", checkpoint.SHARED]
    assert Hub.pushed == {"some/digits": files}
    assert "Pushed to https://hub/some/digits" in capsys.readouterr().out
    assert 'load_run("hf:some/digits")' in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert checkpoint.main(["export", str(run), str(tmp_path / "second"), "--push", "some/taken"]) == 1
    said = capsys.readouterr().err
    assert "some/taken was not pushed (409 Client Error: it exists)" in said
    assert f"hf upload some/taken {tmp_path}/second" in said


# One's own images


def test_other_classes_and_probabilities(run):
    classifier = load_run(run, device="cpu")
    assert classifier.classnames[0] == "digit zero"
    (one,) = classifier.predict([f"{SEVENS}/0007.png"], classes=["digit seven", "digit one", "digit two"])
    assert [name for name, _ in one.ranking] != []
    assert sum(p for _, p in one.ranking) == pytest.approx(1, abs=1e-5)
    assert [p for _, p in one.ranking] == sorted((p for _, p in one.ranking), reverse=True)
    assert classifier.classnames == ("digit seven", "digit one", "digit two")


def test_by_default_the_runs_own_classes_whatever_was_asked_before(run):
    classifier, image = load_run(run, "cpu"), f"{SEVENS}/0007.png"
    (first,) = classifier.predict([image])
    list(classifier.predict([image], classes=["cat", "dog"]))
    assert list(classifier.predict([image])) == [first]


def test_calls_that_take_turns_keep_their_classes(run):
    images, lists = predict.find_images([SEVENS])[:3], (None, ["cat", "dog", "koala"])
    alone = [list(load_run(run, "cpu").predict(images, classes, batch_size=1)) for classes in lists]
    classifier = load_run(run, "cpu")
    calls = (classifier.predict(images, classes, batch_size=1) for classes in lists)
    assert list(zip(*calls, strict=True)) == list(zip(*alone, strict=True))


def test_the_text_is_computed_once_for_all_batches(run, monkeypatch):
    classifier, calls = load_run(run, "cpu"), []
    compute = classifier.model.text_features
    monkeypatch.setattr(classifier.model, "text_features", lambda *given: calls.append(1) or compute(*given))
    list(classifier.predict(predict.find_images([SEVENS])[:3], batch_size=1))
    assert len(calls) == 1


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
    table = capsys.readouterr().out
    assert "\r" not in table
    rows = list(csv.DictReader(io.StringIO(table)))
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


@pytest.mark.parametrize("device", ["cuda:1", "cpu:0", "mps"])
def test_a_device_that_would_not_be_the_one_used_is_refused(run, device, capsys):
    for places in (["--model-dir", str(run)], ["--backbone", "bundled:tiny_clip", "--classes", "cat,dog"]):
        assert predict.main([*places, f"{SEVENS}/0007.png", "--device", device]) == 2
        assert f"error: --device is '{device}': use cpu or cuda, and CUDA_VISIBLE_DEVICES=N" in capsys.readouterr().err


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
