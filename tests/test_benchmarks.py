"""A smoke run of every benchmark: two classes, a tiny model. The figures themselves are not looked at."""

import json
import time
import warnings
from argparse import Namespace

import pytest
import torch
from PIL import Image

from benchmarks import cost, gpu, runs
from benchmarks.__main__ import main
from benchmarks.measure import (
    TOLERANCES,
    ParityError,
    build_trainer,
    class_names,
    covered_share,
    extrapolate,
    only_classes,
    parity,
    profiled,
    random_batch,
    random_clip,
    rounded,
)
from benchmarks.steps import count_training, training_flops
from prompting.tokens import encode
from sweeping.plan import FITTED, SETTINGS, TAUGHT, UNTRAINED
from tests.trainers.replaying import record_on_cpu

SHALLOW = {
    "BMIP": ["TRAINER.BMIP.PROMPT_DEPTH", "3"],
    "MaPLe": ["TRAINER.MAPLE.PROMPT_DEPTH", "3"],
    "PromptSRC": ["TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION", "3", "TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT", "3"],
    "CoOp": ["TRAINER.COOP.N_CTX", "4"],
    "CoCoOp": ["TRAINER.COCOOP.N_CTX", "4"],
    "MMRLpp": ["TRAINER.MMRLPP.REP_LAYERS", "(3, 4)"],  # factors start at zero: some gradients are
}
COPROMPT = ["TRAINER.COPROMPT.PROMPT_DEPTH", "3", "TRAINER.COPROMPT.PREC", "fp32", "DATALOADER.K_TRANSFORMS", "2"]


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


@pytest.mark.parametrize(("precision", "furthest"), [("fp16", 0.1), ("bf16", 1.0), ("amp", 1.0)])
def test_a_precision_is_that_of_a_run_and_both_paths_are_held_to_fp32(precision, furthest, tmp_path, capsys):
    output = tmp_path / "figures.json"
    argv = ["train", "--trainer", "BMIP", "--classes", "2", "--backbone", "tiny", "--rounds", "1", "--batch", "2"]
    assert main([*argv, "--precision", precision, "--json", str(output), "--opts", *SHALLOW["BMIP"]]) == 0
    content = json.loads(output.read_text())
    (row,) = content["rows"]
    for path in ("", "plain_"):
        assert 1e-3 < row[f"{path}max_logit_difference"] < furthest, "half precision is not fp32"
        assert 0.99 < row[f"{path}min_gradient_cosine"] < 1
    assert row["driver"] == {"fast": "hooks", "plain": "hooks"}
    assert content["machine"]["precision"] == precision
    assert "steps by" in capsys.readouterr().out


def test_towers_are_those_of_the_precision():
    model = random_clip("tiny")
    for precision, dtype in (("fp32", torch.float32), ("fp16", torch.float16), ("amp", torch.float32)):
        options = ["TRAINER.COOP.PREC", precision, "TRAIN.CPU_HALF", "True"]
        trainer = build_trainer("CoOp", model, 2, "plain", "cpu", options)
        assert trainer.model.image_encoder.visual.conv1.weight.dtype == dtype
    weight = rounded(model, torch.float16).visual.conv1.weight
    assert torch.equal(weight, model.visual.conv1.weight.half().float())
    assert model.visual.conv1.weight.dtype == torch.float32, "what they share stays"


def test_numbers_beyond_the_precisions_tolerance_are_an_error(monkeypatch, capsys):
    monkeypatch.setitem(TOLERANCES, torch.bfloat16, (1e-4, 0.9))
    argv = [
        "train",
        "--trainer",
        "CoOp",
        "--classes",
        "2",
        "--backbone",
        "tiny",
        "--rounds",
        "1",
        "--precision",
        "bf16",
    ]
    assert main([*argv, "--opts", *SHALLOW["CoOp"]]) == 1
    assert "do not agree (fast in bf16 with plain in fp32)" in capsys.readouterr().err


def test_kernels_are_those_of_the_precision():
    options = ["TRAIN.CPU_HALF", "True", "TRAINER.COOP.PREC"]
    counts = {precision: count_training("CoOp", 3, 4, [*options, precision]) for precision in ("fp32", "fp16", "amp")}
    casts = {precision: phases["forward"]["_to_copy"] for precision, phases in counts.items()}
    assert casts["fp32"] < casts["fp16"]
    assert casts["fp32"] < casts["amp"]


def test_batches_for_cuda_lie_in_pinned_memory(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: (pinned.append(tensor), tensor)[1])
    trainer = build_trainer("CoPrompt", random_clip("tiny"), 3, "plain", "cpu", COPROMPT)
    random_batch(trainer, 2)
    assert not pinned
    trainer.device = torch.device("cuda")
    batch = random_batch(trainer, 2)
    assert [id(tensor) for tensor in pinned] == [id(tensor) for tensor in (*batch["img"], batch["label"])]


# The most kernels of a training step; neither the number of classes nor the lengths of their names add any.
MAX_KERNELS = {
    "BMIP": 1320,
    "BMIP TRAINER.BMIP.GATE official": 1135,
    "MaPLe": 805,
    "CoOp TRAINER.COOP.N_CTX 16": 545,
    "PromptSRC": 940,
    "ProGrad": 795,
    "TCP": 605,
    "MMA": 930,
    "CoOp_DePT": 595,
    "PromptSRC_DePT": 995,
    "MMRL": 915,
    "MMRLpp": 1110,
    "HiCroPL": 1535,
    "BMIP TRAINER.BMIP.PREC fp16 TRAIN.CPU_HALF True": 1710,
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
    assert all(row["kernels"]["step"] < row["plain_kernels"]["step"] for row in rows)


@pytest.mark.parametrize(
    ("what", "ignored"),
    [
        ("kernels", ["--backbone", "--device", "--plain-up-to", "--rounds", "--warm-up"]),
        ("flops", ["--device", "--plain-up-to", "--rounds", "--warm-up"]),
        ("memory", ["--rounds", "--warm-up", "--threads"]),
        ("loader", ["--precision"]),
        ("workers", ["--rounds", "--device"]),
        ("long_session", ["--rounds", "--device"]),
    ],
)
def test_what_a_measurement_does_not_read_is_refused(what, ignored, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([what, "--help"])
    shown = capsys.readouterr().out
    for option in ignored:
        with pytest.raises(SystemExit, match="2"):
            main([what, option, "tiny" if option == "--backbone" else "cpu" if option == "--device" else "1"])
        assert f"unrecognized arguments: {option}" in capsys.readouterr().err
        assert option not in shown


def test_cost_takes_no_data_set_but_the_bundled_ones(capsys):
    with pytest.raises(SystemExit, match="2"):
        cost.main(["--datasets", "eurosat", "mini", "--trainers", "CoOp"])
    assert "invalid choice: 'eurosat'" in capsys.readouterr().err


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


def test_time_per_image_is_that_of_the_images_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "interleave", lambda works, *rest: {name: [1.0] for name in works})
    output = tmp_path / "figures.json"
    options = ["--draft", "--json", str(output), "--opts", "INPUT.SIZE", "(32, 32)"]
    for count, batch, per_epoch in ((2, 32, {"train": 2, "test": 2}), (3, 2, {"train": 2, "test": 3})):
        assert main(["loader", "--count", str(count), "--size", "96x64", "--batch", str(batch), *options]) == 0
        for row in json.loads(output.read_text())["rows"]:
            assert row["ms_per_image"]["median"] == 1000 / per_epoch[row["kind"]]


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
    argv = ["--backbone", "tiny", "--rounds", "1", "--output", str(output), "--vary", "classes"]
    assert main(["slopes", *argv, "--opts", *SHALLOW["BMIP"]]) == 0
    rows = json.loads(output.read_text())["rows"]
    assert [(row["varied"], row["value"]) for row in rows] == [("classes", 2), ("classes", 4)]
    assert all(row["mib"] > 0 for row in rows)
    assert rows[0]["gflop"] < rows[1]["gflop"]
    assert "| class " in capsys.readouterr().out
    assert main(["slopes", "--trainer", "CoOp", "--vary", "depth", "--backbone", "tiny"]) == 2
    assert "the prompts of CoOp have no depth" in capsys.readouterr().err


def test_the_share_of_time_in_which_something_ran():
    assert covered_share([(0, 2), (1, 3), (6, 8), (6.5, 7)]) == 5 / 8
    with pytest.raises(ValueError, match="saw no operation"):
        covered_share([])
    matrix = torch.ones(200, 200)
    found = profiled(lambda: matrix @ matrix, "cpu")
    assert 0 < found["utilisation"] <= 1
    assert found["kernels"] >= 1


def test_kept_loader_processes_come_with_equal_batches(tmp_path, capsys):
    output = tmp_path / "figures.json"
    assert main(["workers", "--workers", "1", "--shots", "1", "--epochs", "1", "--output", str(output)]) == 0
    (row,) = json.loads(output.read_text())["rows"]
    assert row["ratio"]["median"] > 0
    assert "anew / kept" in capsys.readouterr().out


# First contact with a card


def small_card(folder):
    return gpu.Card(Namespace(device="cpu", rounds=1), folder)


def test_first_contact_runs_small_on_the_cpu(tmp_path, capsys):
    output = tmp_path / "gpu.json"
    assert main(["gpu", "--device", "cpu", "--json", str(output)]) == 0
    rows = {row["item"]: row for row in json.loads(output.read_text())["rows"]}
    needing = {name for name, row in rows.items() if row["status"] == "needs cuda"}
    assert {row["status"] for name, row in rows.items() if name not in needing} == {"ok"}
    assert all({"environment", "graph", "waits", "compile"} & {*name.split()} for name in needing)
    parities = [name for name in rows if name.startswith("parity")]
    assert len(parities) == 6 * 4
    assert rows["parity BMIP bf16"]["plain_max_logit_difference"] > rows["parity BMIP fp32"]["max_logit_difference"]
    assert rows["train BMIP 3 fast"]["ratio"] > 0
    assert rows["whole run"]["metrics"]["base"]["accuracy"] > 20
    assert rows["resumed run"]["off"] == {"repeated": 0, "resumed": 0}
    assert list(rows)[:2] == ["environment", "parity BMIP fp32"]
    assert "needs cuda" in capsys.readouterr().out


def test_an_item_that_fails_is_a_line_and_what_the_time_does_not_suffice_for_is_skipped(tmp_path, monkeypatch, capsys):
    def broken():
        raise RuntimeError("no such\nkernel")

    def sound():
        return {"ms": {"median": 2}}

    def endless():
        time.sleep(60)

    output = tmp_path / "gpu.json"
    monkeypatch.setattr(gpu.measure, "random_clip", lambda size: None)
    items = [("broken", broken), ("sound", sound), ("endless", endless)]
    monkeypatch.setattr(gpu.Card, "items", lambda self: items)
    assert main(["gpu", "--device", "cpu", "--minutes", "0.05", "--json", str(output)]) == 1
    broken_row, sound_row, endless_row = json.loads(output.read_text())["rows"]
    assert (broken_row["status"], broken_row["error"]) == ("failed", "RuntimeError: no such; kernel")
    assert sound_row["status"] == "ok"
    assert endless_row["status"] == "skipped", "it is broken off"
    said = capsys.readouterr()
    assert "RuntimeError: no such; kernel" in said.out
    assert said.err == "error: 1 items failed: broken\n"
    assert main(["gpu", "--device", "cpu", "--minutes", "0", "--json", str(output)]) == 0
    assert {row["status"] for row in json.loads(output.read_text())["rows"]} == {"skipped"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_without_a_card_first_contact_says_what_to_do(capsys):
    assert main(["gpu"]) == 2
    assert "--device cpu runs the same small" in capsys.readouterr().err


def test_on_a_card_what_is_worth_most_comes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu.measure, "random_clip", lambda size: None)
    names = [name for name, *_ in gpu.Card(Namespace(device="cuda", rounds=1), tmp_path).items()]
    assert len(set(names)) == len(names) == 1 + 2 * 6 * 4 + 6 + 1 + 5 * 3 + 5 * 2 + 2 + 5 * 2
    firsts = ["environment", "parity BMIP fp32", "graph BMIP fp32", "waits BMIP", "device transform"]
    firsts += [f"train BMIP {n} {way}" for n in (10, 100, 1000) for way in ("plain", "fast", "graph")]
    firsts += ["eval BMIP 10 plain", "whole run", "resumed run", "train BMIP 10 compile", "eval CoOp 100 compile"]
    assert [name for name in names if name in firsts] == firsts


@pytest.mark.parametrize("method", ["BMIP official", "PromptSRC"])
def test_a_graph_is_compared_with_the_step(method, tmp_path, monkeypatch):
    card, step = small_card(tmp_path), gpu.DeviceStep
    monkeypatch.setattr(gpu, "record_on_cuda", record_on_cpu)
    assert set(card.graph(method, "fp32")["off"]) == {0.0}

    def other(trainer, recorder):
        for group in trainer.optim.param_groups:
            group["lr"] *= 1.01
        return step(trainer, recorder)

    monkeypatch.setattr(gpu, "DeviceStep", other)
    with pytest.raises(ParityError, match="losses and gates step by step"):
        card.graph(method, "fp32")


@pytest.mark.parametrize("method", ["BMIP", "CoCoOp"])
def test_waits_are_counted_and_named(method, tmp_path, monkeypatch):
    mode, tolist = ["default"], torch.Tensor.tolist

    def waiting(tensor):
        if mode[-1] == "warn":
            warnings.warn("called a synchronizing CUDA operation", stacklevel=2)
        return tolist(tensor)

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", mode.append)
    monkeypatch.setattr(torch.Tensor, "tolist", waiting)
    monkeypatch.setattr(gpu, "WAYS", {"fast": ["off"], "graph": ["off"]})
    card = small_card(tmp_path)
    waits = card.waits(method)["waits"]
    assert waits["fast"][0].startswith("step.py:")
    assert waits["test"][-1].startswith("evaluation.py:")
    monkeypatch.setattr(gpu.Card, "test", lambda self, trainer, batch: [batch["label"].tolist() for _ in range(3)])
    with pytest.raises(ParityError, match="waits for the device"):
        card.waits(method)


def test_cost_has_a_row_for_every_method_that_needs_no_other_run(capsys):
    names = [name for name in SETTINGS if name not in TAUGHT]
    assert cost.main(["--datasets", "bundled", "--trainers", *names]) == 0
    lines = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    rows = {cells[0].strip(): [cell.strip() for cell in cells[2:]] for cells in lines[1:]}
    assert list(rows) == names
    parameters = {name: row[0] for name, row in rows.items()}
    assert (parameters["TipAdapter"], parameters["TaskRes"]) == ("3,072", "192")  # 16 shots, 3 classes, width 64
    assert {name for name, row in rows.items() if row[1] == "0"} == {*UNTRAINED, *FITTED}
    assert float(rows["TaskRes"][1]) < 0.001  # on features: the towers are not run
    assert all(float(row[2]) > 0 and (name == "CoCoOp" or float(row[3]) > 0) for name, row in rows.items())


def test_cost_refuses_what_learns_from_a_run_before_it_counts(capsys):
    assert cost.main(["--datasets", "bundled", "--trainers", "BMIP", "PromptKD"]) == 2
    assert capsys.readouterr().err == (
        "error: --trainers: PromptKD learns from a finished run, and a random CLIP has none: leave it out\n"
    )
