"""look.py: the features, errors and attention of finished runs, held to their results.json."""

import csv
import io
import json
import re
import shlex
import shutil

import numpy as np
import pytest
from PIL import Image

import look
import train
from prompting import checkpoint
from tests.test_train import ALL_SPLITS, arguments
from tests.trainers.small_runs import data_root
from trainers import load_run

COMMON = (*ALL_SPLITS, "OPTIM.MAX_EPOCH", "1", "TEST.FIT_TEMPERATURE", "False")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, request):
    """Folders of small finished runs, by trainer."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(request.config.rootpath)
        patch.setattr(train, "collect_env_info", str)
        for trainer in ("BMIP", "ZeroshotCLIP"):
            assert train.main(arguments(trainer, folder / trainer, *COMMON, root=data_root())) == 0
    return folder


@pytest.fixture(autouse=True)
def repository_folder(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


def metrics(run):
    return json.loads((run / "results.json").read_text(encoding="utf-8"))["metrics"]


def page():
    with open("docs/look.md", encoding="utf-8") as file:
        return file.read()


def documented(command, **places):
    """The page's command as words, with these in place of its names."""
    (line,) = [line.strip() for line in page().splitlines() if line.startswith(f"    python {command}")]
    return [str(places.get(word, word)) for word in shlex.split(line)[1 + len(command.split()) :]]


@pytest.mark.parametrize("trainer", ["BMIP", "ZeroshotCLIP"])
def test_features_classify_as_the_run_did(trainer, runs, tmp_path, capsys, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in (runs / trainer).rglob("*")}
    words = [
        "features",
        *documented("look.py features", RUN=runs / trainer, **{"features.npz": tmp_path / "features.npz"}),
    ]
    assert look.main(words) == 0
    assert "accuracy by class split: base" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (runs / trainer).rglob("*")} == before
    keys = [line.split("_")[1].split("`")[0] for line in page().splitlines() if line.startswith("| `<part>_")]
    with np.load(tmp_path / "features.npz", allow_pickle=False) as file:
        parts = {part: {key: file[f"{part}_{key}"] for key in keys} for part in ("base", "new", "all")}
        few = {part: {key: file[f"{part}_{key}"] for key in keys} for part in ("train", "val")}
        assert len(file.files) == 25
    (code,) = re.findall(r"```python\n(.*?)```", page(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "look.md", "exec"), {})
    assert 100 * float(capsys.readouterr().out) == pytest.approx(metrics(runs / trainer)["new"]["accuracy"])
    for split, part in parts.items():
        right = (part["images"] @ part["texts"].T).argmax(axis=1) == part["labels"]
        assert 100 * right.mean() == pytest.approx(metrics(runs / trainer)[split]["accuracy"])
    for part in (*parts.values(), *few.values()):
        named = [name.replace(" ", "_") for name in part["classnames"][part["labels"]]]
        assert [path.split("/")[-2] for path in part["paths"]] == named
        assert part["images"].dtype == part["texts"].dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(part["images"], axis=1), 1, atol=1e-5)
    assert len(few["train"]["labels"]) == 10
    assert not {*few["train"]["paths"]} & {*few["val"]["paths"], *parts["all"]["paths"]}


def test_what_is_no_run_and_an_output_that_exists_are_refused(runs, tmp_path, capsys):
    assert look.main(["features", str(tmp_path), "-o", str(tmp_path / "f.npz")]) == 2
    assert "holds no run" in capsys.readouterr().err
    (tmp_path / "f.npz").write_text("mine")
    assert look.main(["features", str(runs / "BMIP"), "-o", str(tmp_path / "f.npz")]) == 2
    assert "f.npz exists already" in capsys.readouterr().err
    assert (tmp_path / "f.npz").read_text() == "mine"


def test_errors_are_those_of_results_json(runs, tmp_path, capsys):
    words = ["errors", *documented("look.py errors", RUN=runs / "BMIP", **{"errors.html": tmp_path / "errors.html"})]
    assert look.main(words) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    confidence = [float(row["confidence"]) for row in rows]
    assert confidence == sorted(confidence, reverse=True)
    found = metrics(runs / "BMIP")
    names = list(found["all"]["per_class"])
    for split in ("base", "new", "all"):
        own = [row for row in rows if row["split"] == split]
        wrong = (1 - found[split]["accuracy"] / 100) * found[split]["num_images"]
        assert len(own) == pytest.approx(wrong)
        for true, counts in zip(found[split]["per_class"], found[split]["confusion"], strict=True):
            own_class = [row["predicted"] for row in own if row["true"] == true]
            for other, count in zip(found[split]["per_class"], counts, strict=True):
                assert own_class.count(other) == (0 if other == true else count)
    assert all(row["path"].split("/")[-2].replace("_", " ") == row["true"] for row in rows)
    assert {row["true"] for row in rows} <= set(names)
    page = (tmp_path / "errors.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/jpeg;base64,') == min(100, len(rows))
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert look.main(["errors", str(runs / "BMIP"), "--split", "new", "-o", str(tmp_path / "new.csv")]) == 0
    assert list(csv.DictReader((tmp_path / "new.csv").open())) == [row for row in rows if row["split"] == "new"]


def test_names_are_no_formulas_and_no_markup(runs, tmp_path, monkeypatch, capsys):
    hostile = [look.Mistake("@\x1b.png", "=1+1", "<script>", 0.5, 0.1, "base")]
    monkeypatch.setattr(look, "mistakes", lambda *_: hostile)
    assert look.main(["errors", str(runs / "BMIP"), "--html", str(tmp_path / "errors.html")]) == 0
    row = list(csv.reader(io.StringIO(capsys.readouterr().out)))[1]
    assert row[:3] == ["'@\\x1b.png", "'=1+1", "<script>"]
    page = (tmp_path / "errors.html").read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "cannot be read" in page


def test_errors_need_the_predictions_and_the_data_of_the_run(runs, tmp_path, capsys):
    shutil.copy(runs / "BMIP" / "config.yaml", tmp_path)
    assert look.main(["errors", str(tmp_path)]) == 2
    assert re.search(r"error: .*predictions.npz is not there.*--eval-only", capsys.readouterr().err)
    assert look.main(["errors", str(runs / "BMIP"), "--root", "assets"]) == 2  # all of the test images
    assert re.search(r"error: .*are not those of the images under assets: .*--root", capsys.readouterr().err)
    assert look.main(["errors", str(runs / "ZeroshotCLIP"), "--split", "old"]) == 2
    assert "--split old: the run was tested on base, new, all" in capsys.readouterr().err


def test_words_of_a_run(runs, capsys):
    assert checkpoint.main(["words", *documented("-m prompting.checkpoint words", RUN=runs / "BMIP")]) == 0
    first, second, note = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"context 1: a</w> 0\.\d{4}(  \S+ \d\.\d{4}){2}", first)
    assert second.startswith("context 2: photo</w> ")
    assert "2 deeper layers are left out" in note


def test_attention_of_a_run_is_drawn(runs, tmp_path, capsys):
    image, target = "assets/digits/images/digit_seven/0007.png", tmp_path / "attention.png"
    places = {"RUN": runs / "BMIP", "IMAGE": image, "attention.png": target}
    assert look.main(["attention", *documented("look.py attention", **places)]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["layer"] for row in rows] == ["0", "1", "2", "3"]
    shares = [[float(row[part]) for part in ("cls", "patches", "prompts")] for row in rows]
    assert [sum(parts) for parts in shares] == pytest.approx([1] * 4, abs=1e-5)
    assert all(0 < prompts < 1 for _, _, prompts in shares)
    assert [bool(row["gate"]) for row in rows] == [False, True, True, False]
    with Image.open(target) as drawn:
        assert drawn.format == "PNG"
    # the gates are those that the fast path read on its way to the logits
    classifier = load_run(runs / "BMIP", "cpu")
    list(classifier.predict([image]))
    fast = classifier.model.prompt_learner.gate_values()
    assert [float(rows[layer]["gate"]) for layer in (1, 2)] == pytest.approx(
        [fast["vision/1"], fast["vision/2"]], abs=1e-5
    )


def test_plain_clip_has_no_prompts_to_attend_to(runs, tmp_path, capsys):
    command = ["attention", str(runs / "ZeroshotCLIP"), "assets/digits/images/digit_seven/0007.png"]
    assert look.main([*command, "-o", str(tmp_path / "attention.svg")]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(float(row["prompts"]), row["gate"]) for row in rows] == [(0, "")] * 4
    svg = (tmp_path / "attention.svg").read_text(encoding="utf-8")
    assert svg.startswith("<?xml")
    assert look.main([*command, "-o", str(tmp_path / "b.svg"), "--layers", "4"]) == 2
    assert "--layers 4: this image tower has layers 0 to 3" in capsys.readouterr().err
    assert look.main([*command, "-o", str(tmp_path / "b.gif")]) == 2
    assert "b.gif: the name must end in .png or .svg" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["attention.svg"]
