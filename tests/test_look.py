"""look.py: the features, errors and attention of finished runs, held to their results.json."""

import json
import re
import shlex

import numpy as np
import pytest

import look
import train
from tests.test_train import ALL_SPLITS, arguments
from tests.trainers.small_runs import data_root

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
    (line,) = [line.strip() for line in page().splitlines() if line.startswith(f"    python look.py {command}")]
    return [str(places.get(word, word)) for word in shlex.split(line)[2:]]


@pytest.mark.parametrize("trainer", ["BMIP", "ZeroshotCLIP"])
def test_features_classify_as_the_run_did(trainer, runs, tmp_path, capsys, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in (runs / trainer).rglob("*")}
    words = documented("features", RUN=runs / trainer, **{"features.npz": tmp_path / "features.npz"})
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
