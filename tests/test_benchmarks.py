"""A smoke run of every benchmark: two classes, a tiny model. The figures themselves are not looked at."""

import json

import pytest
import torch
from PIL import Image

from benchmarks import runs
from benchmarks.__main__ import main
from benchmarks.measure import (
    ParityError,
    build_trainer,
    class_names,
    covered_share,
    device_utilisation,
    extrapolate,
    only_classes,
    parity,
    random_batch,
    random_clip,
)
from benchmarks.steps import count_training, training_flops
from prompting.tokens import encode

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


# The most kernels of a training step; neither the number of classes nor the lengths of their names add any.
MAX_KERNELS = {
    "BMIP": 1320,
    "BMIP TRAINER.BMIP.GATE official": 1135,
    "MaPLe": 805,
    "CoOp TRAINER.COOP.N_CTX 16": 545,
    "PromptSRC": 940,
}


@pytest.mark.parametrize("method", MAX_KERNELS)
def test_kernels_of_a_step_do_not_creep_up(method):
    trainer, *options = method.split()
    few, many = (count_training(trainer, classes, 4, options) for classes in (10, 200))
    assert few == many
    assert {"forward", "backward", "report", "optimiser"} == set(few)
    assert sum(phase.total() for phase in few.values()) <= MAX_KERNELS[method]


def test_kernels_as_a_table(tmp_path, capsys):
    output = tmp_path / "kernels.json"
    assert main(["kernels", "--trainer", "CoOp", "CoPrompt", "--classes", "2", "--json", str(output)]) == 0
    assert "test batch" in capsys.readouterr().out
    rows = json.loads(output.read_text())["rows"]
    assert all(0 < row["kernels"]["test batch"] < row["kernels"]["forward"] for row in rows)


def test_where_the_plain_path_does_not_run_a_line_is_read_and_parity_still_checked(tmp_path, capsys):
    output = tmp_path / "figures.json"
    argv = ["train", "--trainer", "BMIP", "--classes", "130", "--backbone", "tiny", "--batch", "2"]
    rounds = ["--rounds", "1", "--warm-up", "0", "--json", str(output)]
    assert main([*argv, *rounds, "--opts", *SHALLOW["BMIP"]]) == 0
    assert "| ~" in capsys.readouterr().out
    (row,) = json.loads(output.read_text())["rows"]
    assert row["plain_from_classes"] == [10, 120]
    assert row["max_logit_difference"] <= 1e-4
    assert row["min_gradient_cosine"] >= 0.999999


def test_the_line_through_two_counts():
    assert extrapolate(20.0, 130.0, 1010) == 1020.0


def test_a_method_that_reads_all_classes_is_not_sampled():
    trainer = build_trainer("ProDA", random_clip("tiny"), 3, "fast", "cpu", ["TRAINER.PRODA.PREC", "fp32"])
    with pytest.raises(ValueError, match="plain-up-to"), only_classes(trainer.model, [0, 1]):
        pass


@pytest.mark.parametrize("trainer", ["BMIP", "PromptSRC", "CoCoOp"])
def test_operations_are_counted(trainer, capsys):
    argv = ["flops", "--trainer", trainer, "--classes", "2", "--backbone", "tiny", "--opts", *SHALLOW[trainer]]
    assert main(argv) == 0
    assert "plain [GFLOP]" in capsys.readouterr().out


def test_counted_operations_of_the_plain_text_tower_lie_on_a_line():
    model = random_clip("tiny")
    counts = [training_flops(model, "CoOp", n, "plain", 1, ["TRAINER.COOP.PREC", "fp32"]) for n in (2, 4, 6)]
    assert 0 < counts[1] - counts[0] == pytest.approx(counts[2] - counts[1], rel=1e-3)


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
        parity(built["fast"], built["plain"], random_batch(built["fast"], 2), "CoOp")


def test_reuse_over_class_splits_comes_with_equal_metrics(tmp_path, capsys):
    output = tmp_path / "figures.json"
    argv = ["--trainer", "CoOp", "MaPLe", "--backbone", "tiny", "--images", "1", "--rounds", "1"]
    assert main(["splits", *argv, "--output", str(output)]) == 0
    rows = {row["trainer"]: row for row in json.loads(output.read_text())["rows"]}
    assert rows["CoOp"]["ratio_known"]["median"] > 0
    assert rows["MaPLe"]["ratio"]["median"] > 0
    assert "one pass [s]" in capsys.readouterr().out


def test_class_splits_that_do_not_agree_end_with_one_line(monkeypatch, capsys):
    accuracies = iter(range(100))
    monkeypatch.setattr(runs, "evaluate_class_splits", lambda *_: {"base": {"accuracy": next(accuracies)}})
    assert main(["splits", "--trainer", "CoOp", "--backbone", "tiny", "--images", "1"]) == 1
    assert capsys.readouterr().err.startswith("error: CoOp: the metrics of the class splits are not those")


def test_a_long_session_holds_what_it_held(tmp_path, capsys):
    output = tmp_path / "figures.json"
    assert main(["long_session", "--epochs", "2", "--workers", "0", "--json", str(output)]) == 0
    assert "file handles" in capsys.readouterr().out
    assert [row["after epoch"] for row in json.loads(output.read_text())["rows"]] == [1, 2]


def test_the_loaders_ratio_comes_with_equal_batches(tmp_path, capsys):
    output = tmp_path / "figures.json"
    argv = ["loader", "--count", "2", "--size", "96x64", "--rounds", "1", "--batch", "1", "--draft", "1"]
    assert main([*argv, "--output", str(output), "--opts", "INPUT.SIZE", "(32, 32)"]) == 0
    assert "same, bit for bit (4 batches)" in capsys.readouterr().out
    rows = {(row["kind"], row["way"]): row for row in json.loads(output.read_text())["rows"]}
    ways = ("decoded", "cached", "device", "crops", "draft 1")
    assert list(rows) == [*(("train", way) for way in ways), *(("test", way) for way in ways if way not in ways[2:4])]
    assert all(row["ratio"]["median"] > 0 for row in rows.values() if row["way"] != "decoded")
    for kind in ("train", "test"):
        assert rows[kind, "draft 1"]["mean_difference"] > 0


def test_loaders_whose_batches_differ_are_an_error(monkeypatch, capsys, tmp_path):
    assert main(["loader", "--images", str(tmp_path)]) == 2
    assert f"no .jpg file in {tmp_path}" in capsys.readouterr().err
    argv = ["loader", "--count", "1", "--size", "96x64", "--batch", "1"]
    with monkeypatch.context() as patch:
        patch.setattr("extras.device_transform.begins_vertically", lambda height, width, size: True)
        assert main(argv) == 1
        assert "batches with and without the device's transform differ" in capsys.readouterr().err
    monkeypatch.setattr("dassl.data.data_manager.ImageCache.get", lambda self, path: Image.new("RGB", (9, 9)))
    assert main(argv) == 1
    assert "batches with and without the cache differ" in capsys.readouterr().err


def test_class_names_are_distinct_and_as_long_as_imagenets():
    names = class_names(1000)
    assert len(set(names)) == 1000
    assert sum(len(encode(name)) for name in names) == 2200


def test_growth_is_measured_beside_its_count(tmp_path, capsys):
    output = tmp_path / "figures.json"
    argv = ["--backbone", "tiny", "--rounds", "1", "--output", str(output), "--vary", "classes", "pixels"]
    assert main(["slopes", *argv, "--opts", *SHALLOW["BMIP"]]) == 0
    rows = json.loads(output.read_text())["rows"]
    assert [(row["varied"], row["value"]) for row in rows] == [
        *(("classes", 2), ("classes", 4)),
        *(("pixels", 32), ("pixels", 48)),
    ]
    assert all(row["mib"] > 0 for row in rows)
    assert rows[0]["gflop"] < rows[1]["gflop"]
    assert rows[2]["gflop"] < rows[3]["gflop"]
    assert "| class " in capsys.readouterr().out
    assert main(["slopes", "--trainer", "CoOp", "--vary", "depth", "--backbone", "tiny"]) == 2
    assert "the prompts of CoOp have no depth" in capsys.readouterr().err


def test_the_share_of_time_in_which_something_ran():
    assert covered_share([(0, 2), (1, 3), (6, 8), (6.5, 7)]) == 5 / 8
    with pytest.raises(ValueError, match="saw no operation"):
        covered_share([])
    matrix = torch.ones(200, 200)
    assert 0 < device_utilisation(lambda: matrix @ matrix, "cpu") <= 1


def test_kept_loader_processes_come_with_equal_batches(tmp_path, capsys):
    output = tmp_path / "figures.json"
    assert main(["workers", "--workers", "1", "--shots", "1", "--epochs", "1", "--output", str(output)]) == 0
    (row,) = json.loads(output.read_text())["rows"]
    assert row["ratio"]["median"] > 0
    assert "anew / kept" in capsys.readouterr().out
