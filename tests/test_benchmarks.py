"""A smoke run of every benchmark: two classes, a tiny model. The figures themselves are not looked at."""

import json

import pytest

from benchmarks.__main__ import main
from benchmarks.measure import ParityError, parity
from benchmarks.seeds import main as seeds_main
from benchmarks.setup import build_trainer, class_names, random_batch, random_clip
from benchmarks.splits import main as splits_main

SHALLOW = {
    "BMIP": ["TRAINER.BMIP.PROMPT_DEPTH", "3"],
    "MaPLe": ["TRAINER.MAPLE.PROMPT_DEPTH", "3"],
    "PromptSRC": ["TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION", "3", "TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT", "3"],
    "CoOp": ["TRAINER.COOP.N_CTX", "4"],
    "CoCoOp": ["TRAINER.COCOOP.N_CTX", "4"],
}


@pytest.mark.parametrize("what", ["train", "eval"])
@pytest.mark.parametrize("trainer", SHALLOW)
def test_ratio_comes_with_parity(what, trainer, tmp_path, capsys):
    output = tmp_path / "figures.json"
    argv = [what, "--trainer", trainer, "--classes", "2", "--backbone", "tiny", "--rounds", "1", "--batch", "2"]
    assert main([*argv, "--output", str(output), "--opts", *SHALLOW[trainer]]) == 0
    assert trainer in capsys.readouterr().out
    (row,) = json.loads(output.read_text())["rows"]
    assert row["ratio"]["median"] > 0
    assert row["max_logit_difference"] <= 1e-4
    assert row["min_gradient_cosine"] >= 0.999999


def test_memory_is_measured_in_a_process_of_its_own(capsys):
    argv = ["memory", "--trainer", "CoOp", "--classes", "2", "--backbone", "tiny", "--path", "fast"]
    assert main([*argv, "--opts", *SHALLOW["CoOp"]]) == 0
    assert "fast [MiB]" in capsys.readouterr().out


def test_paths_that_do_not_agree_are_an_error():
    model = random_clip("tiny")
    built = {
        path: build_trainer("CoOp", model, 3, path, "cpu", ["TRAINER.COOP.PREC", "fp32"]) for path in ("fast", "plain")
    }
    built["plain"].model.layout = built["plain"].model.prompt_learner.layout(["cat", "dog", "bear"])
    with pytest.raises(ParityError, match="do not agree"):
        parity(built, random_batch(built["fast"], 2))


def test_reuse_over_class_splits_comes_with_equal_metrics(tmp_path, capsys):
    output = tmp_path / "figures.json"
    argv = ["--trainer", "CoOp", "MaPLe", "--backbone", "tiny", "--images", "1", "--rounds", "1"]
    assert splits_main([*argv, "--output", str(output)]) == 0
    rows = {row["trainer"]: row for row in json.loads(output.read_text())}
    assert rows["CoOp"]["ratio_known"]["median"] > 0
    assert rows["MaPLe"]["ratio"]["median"] > 0
    assert "one pass [s]" in capsys.readouterr().out


def test_several_seeds_come_with_parity(tmp_path, capsys):
    output = tmp_path / "figures.json"
    argv = [
        "--trainer",
        "BMIP",
        "--seeds",
        "2",
        "--classes",
        "2",
        "--backbone",
        "tiny",
        "--batch",
        "2",
        "--rounds",
        "1",
    ]
    assert seeds_main([*argv, "--output", str(output)]) == 0
    (row,) = json.loads(output.read_text())
    assert row["ratio"]["median"] > 0
    assert row["max_loss_difference"] <= 1e-4
    assert row["min_gradient_cosine"] >= 0.999999
    assert "together" in capsys.readouterr().out


def test_class_names_are_distinct():
    assert len(set(class_names(1000))) == 1000
