"""A smoke run of every benchmark: two classes, a tiny model. The figures themselves are not looked at."""

import json

import pytest
from PIL import Image

from benchmarks.__main__ import main
from benchmarks.measure import ParityError, parity
from benchmarks.setup import build_trainer, class_names, random_batch, random_clip

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


def test_the_loaders_ratio_comes_with_equal_batches(tmp_path, capsys):
    output = tmp_path / "figures.json"
    argv = ["loader", "--count", "2", "--size", "96x64", "--rounds", "1", "--batch", "1", "--draft", "1"]
    assert main([*argv, "--output", str(output), "--opts", "INPUT.SIZE", "(32, 32)"]) == 0
    assert "same, bit for bit (4 batches)" in capsys.readouterr().out
    for row in json.loads(output.read_text())["rows"]:
        assert row["cached"]["ratio"]["median"] > 0
        assert row["draft 1"]["mean_difference"] > 0


def test_loaders_whose_batches_differ_are_an_error(monkeypatch, capsys, tmp_path):
    assert main(["loader", "--images", str(tmp_path)]) == 1
    assert f"no .jpg file in {tmp_path}" in capsys.readouterr().err
    monkeypatch.setattr("dassl.data.cache.ImageCache.get", lambda self, path: Image.new("RGB", (9, 9)))
    assert main(["loader", "--count", "1", "--size", "96x64", "--batch", "1"]) == 1
    assert "batches with and without the cache differ" in capsys.readouterr().err


def test_class_names_are_distinct():
    assert len(set(class_names(1000))) == 1000
