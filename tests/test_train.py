"""train.py end to end on the bundled data: every trainer, class splits, skip, resume, and wrong input."""

import json
import shutil

import pytest
import torch

import train
from dassl.config import KEYS
from dassl.config.defaults import number
from prompting import checkpoint
from reporting import __main__ as reporting
from tests.locks import locked
from tests.trainers.small_runs import data_root

SETTINGS = {
    "ZeroshotCLIP": "tiny",
    "CoOp": "tiny_c4_ep50_batch32",
    "MaPLe": "tiny_c2_ep10_batch4_2ctx",
    "BMIP": "tiny_c2_ep10_batch4_2ctx",
}
QUICK = ["DATASET.NUM_SHOTS", "2", "OPTIM.MAX_EPOCH", "2", "DATALOADER.TRAIN_X.BATCH_SIZE", "5"]
ALL_SPLITS = ["DATASET.SUBSAMPLE_CLASSES", "base", "TEST.CLASS_SPLITS", "('base', 'new', 'all')"]


def arguments(trainer, output, *options, flags=(), seed=1, root="assets"):
    setting = SETTINGS.get(trainer, "tiny_c2_ep10_batch4_2ctx")
    config = trainer if trainer in SETTINGS else "BMIP"
    return [
        *("--root", str(root), "--seed", str(seed), "--trainer", trainer, "--device", "cpu"),
        *("--config-file", f"configs/trainers/{config}/{setting}.yaml"),
        *("--dataset-config-file", "configs/datasets/digits.yaml", "--output-dir", str(output)),
        *flags,
        *QUICK,
        *options,
    ]


def read(folder):
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def repository_folder(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


@pytest.mark.parametrize("trainer", SETTINGS)
def test_base_to_new_and_open_world(trainer, tmp_path, capsys):
    assert train.main(arguments(trainer, tmp_path, *ALL_SPLITS)) == 0
    results = read(tmp_path)
    assert {split: m["num_classes"] for split, m in results["metrics"].items()} == {"base": 5, "new": 5, "all": 10}
    assert sum(results["metrics"][s]["num_images"] for s in ("base", "new")) == results["metrics"]["all"]["num_images"]
    world = results["metrics"]["all"]["open_world"]
    assert world["accuracy_all"] == pytest.approx(results["metrics"]["all"]["accuracy"])
    assert 0 <= world["openworld_auc"] <= 100
    assert results["protocol"] == "open_world"
    assert (results["seed"], results["init_seed"], results["shots"]) == (1, 1, 2)
    assert len(results["data"]["split_sha256"]) == len(results["model"]["backbone_sha256"]) == 64
    assert results["data"]["image_decoding"] == "full size"
    assert results["memory"]["peak_rss_mib"] > 0
    assert results["memory"]["earlier_runs"] >= 0
    # base and new classes' images are all classes' images: their features were known then
    assert "image_seconds" not in results["metrics"]["all"]
    assert results["config"]["TRAINER"]["NAME"] == trainer
    log = capsys.readouterr().out
    assert log.count("=> result") >= 3
    assert (tmp_path / "history.csv").exists() == (trainer != "ZeroshotCLIP")
    if trainer != "ZeroshotCLIP":
        assert "Finish training" in log
        assert [epoch["epoch"] for epoch in results["history"]] == [1, 2]
        assert results["model"]["trainable_parameters"] > 0
        timing = results["timing"]
        assert 0 < timing["data"] < timing["train"] < timing["total"]
        assert 0 < timing["preparation"] < timing["total"]
        assert timing["data_share"] == pytest.approx(timing["data"] / timing["train"])
        assert "data_share" in (tmp_path / "history.csv").read_text().splitlines()[0].split(",")
        assert (tmp_path / "history.csv").read_text().count("\n") == 3  # a head and two epochs
    if trainer == "BMIP":
        assert {"epoch", "vision/1", "vision/2", "text/1", "text/2"} == set(results["gates"]["per_epoch"][0])
        assert "few-shot validation" in results["selection_rule"]


def test_what_differs_from_the_files_is_recorded_and_stands_in_the_legend(tmp_path, capsys):
    """QUICK changes epochs and batch size; seeds, shots, folders and class splits are no change."""
    for epochs in ("1", "2"):
        run = arguments("CoOp", tmp_path / epochs, *ALL_SPLITS, "OPTIM.MAX_EPOCH", epochs, "TRAIN.PRINT_FREQ", "9")
        assert train.main(run) == 0
        changed = {"OPTIM.MAX_EPOCH": int(epochs), "DATALOADER.TRAIN_X.BATCH_SIZE": 5}
        assert read(tmp_path / epochs)["overrides"] == changed
    capsys.readouterr()
    assert reporting.main(["table", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    for epochs in ("1", "2"):
        row = f"CoOp (OPTIM.MAX_EPOCH {epochs})"
        assert f"| {row} |" in table
        assert f"{row}: changed: DATALOADER.TRAIN_X.BATCH_SIZE 5, OPTIM.MAX_EPOCH {epochs}." in table


def test_checkpoints_hold_the_prompts_only(tmp_path):
    assert train.main(arguments("CoOp", tmp_path)) == 0
    checkpoint = torch.load(tmp_path / "prompt_learner" / "model.pth.tar-2", weights_only=True)
    assert {name: tuple(t.shape) for name, t in checkpoint["state_dict"].items()} == {"ctx": (4, 128)}
    assert checkpoint["trainer"] == "CoOp"
    assert checkpoint["classnames"][0] == "digit zero"
    assert checkpoint["backbone"] == "bundled:tiny_clip"


def test_eval_only_gives_the_numbers_of_the_run(tmp_path, capsys):
    assert train.main(arguments("MaPLe", tmp_path / "run", *ALL_SPLITS)) == 0
    flags = ("--eval-only", "--model-dir", str(tmp_path / "run"), "--load-epoch", "2")
    assert train.main(arguments("MaPLe", tmp_path / "eval", *ALL_SPLITS, flags=flags)) == 0
    accuracy = lambda f: {split: m["accuracy"] for split, m in read(f)["metrics"].items()}  # noqa: E731
    assert accuracy(tmp_path / "eval") == accuracy(tmp_path / "run")
    options = ("DATASET.SUBSAMPLE_CLASSES", "new")  # as CoOp's scripts evaluate new classes
    assert train.main(arguments("MaPLe", tmp_path / "new", *options, flags=flags)) == 0
    assert accuracy(tmp_path / "new") == {"new": accuracy(tmp_path / "run")["new"]}
    capsys.readouterr()
    assert checkpoint.main(["export", str(tmp_path / "eval"), str(tmp_path / "out")]) == 1
    assert f"{tmp_path}/eval only tested the run in {tmp_path}/run and holds no" in capsys.readouterr().err


def test_a_finished_run_is_skipped_and_overwrite_redoes_it(tmp_path, capsys):
    assert train.main(arguments("CoOp", tmp_path)) == 0
    first = (tmp_path / "results.json").read_bytes()
    capsys.readouterr()
    assert train.main(arguments("CoOp", tmp_path)) == 0
    assert capsys.readouterr().out.startswith("Finished already")
    assert (tmp_path / "results.json").read_bytes() == first
    assert train.main(arguments("CoOp", tmp_path, flags=("--overwrite",))) == 0
    again = read(tmp_path)
    assert again["finished_at"] >= json.loads(first)["finished_at"]
    assert again["metrics"]["all"]["accuracy"] == json.loads(first)["metrics"]["all"]["accuracy"]


def test_other_settings_in_a_used_folder_are_refused(tmp_path, capsys):
    assert train.main(arguments("CoOp", tmp_path)) == 0
    before = (tmp_path / "results.json").read_bytes()
    assert train.main(arguments("CoOp", tmp_path, "OPTIM.LR", "0.1")) == 2
    assert "OPTIM.LR was 0.002, now 0.1" in capsys.readouterr().err
    assert (tmp_path / "results.json").read_bytes() == before


class Interrupt(Exception):
    """Stands in for a kill after an epoch."""


@pytest.mark.parametrize("trainer", ["CoOp", "MaPLe", "BMIP"])
def test_a_stopped_run_resumes_exactly(trainer, tmp_path, monkeypatch):
    from trainers.base import PromptTrainer

    three = ("OPTIM.MAX_EPOCH", "3", *ALL_SPLITS)
    assert train.main(arguments(trainer, tmp_path / "whole", *three)) == 0
    before_epoch = PromptTrainer.before_epoch

    def stop_before_the_third(self):
        before_epoch(self)
        if self.epoch == 2:
            raise Interrupt

    with monkeypatch.context() as patch:
        patch.setattr(PromptTrainer, "before_epoch", stop_before_the_third)
        with pytest.raises(Interrupt):
            train.main(arguments(trainer, tmp_path / "parts", *three))
    assert not (tmp_path / "parts" / "results.json").exists()
    torch.manual_seed(999)  # whatever else ran in between
    assert train.main(arguments(trainer, tmp_path / "parts", *three)) == 0
    weights = [
        torch.load(tmp_path / part / "prompt_learner" / "model.pth.tar-3", weights_only=True)
        for part in ("whole", "parts")
    ]
    for name, tensor in weights[0]["state_dict"].items():
        assert torch.equal(tensor, weights[1]["state_dict"][name]), name
    whole, parts = read(tmp_path / "whole"), read(tmp_path / "parts")
    accuracies = [{s: m["accuracy"] for s, m in r["metrics"].items()} for r in (whole, parts)]
    assert accuracies[0] == accuracies[1]
    assert [e["epoch"] for e in parts["history"]] == [1, 2, 3]
    assert parts["gates"] == whole["gates"]


@pytest.mark.parametrize(
    ("trainer", "setting"), [("CoOp", "tiny_c4_ep50_batch32"), ("CoPrompt", "tiny_c2_ep8_batch4_2ctx")]
)
def test_the_transform_on_the_device_makes_the_same_run(trainer, setting, tmp_path):
    """CoPrompt trains on two views."""
    for name, options in {"loader": (), "device": ("DATALOADER.DEVICE_TRANSFORM", "True")}.items():
        argv = arguments(trainer, tmp_path / name, *options, root=data_root())
        argv[argv.index("--config-file") + 1] = f"configs/trainers/{trainer}/{setting}.yaml"
        assert train.main(argv) == 0
    loader, device = read(tmp_path / "loader"), read(tmp_path / "device")
    for metric in ("accuracy", "macro_f1"):
        assert device["metrics"]["all"][metric] == loader["metrics"]["all"][metric]
    assert [epoch["loss"] for epoch in device["history"]] == [epoch["loss"] for epoch in loader["history"]]
    assert loader["data"].pop("transform_train_done_by") == "loader"
    assert device["data"].pop("transform_train_done_by") == "loader (crops), cpu (the rest)"
    assert device["data"] == loader["data"]


def test_seeds_are_kept_apart(tmp_path):
    """SEED draws the images, MODEL.INIT_SEED the prompts' start."""
    for name, options in {"a": (), "b": ("MODEL.INIT_SEED", "7")}.items():
        assert train.main(arguments("CoOp", tmp_path / name, *options)) == 0
    a, b = read(tmp_path / "a"), read(tmp_path / "b")
    assert a["data"]["fewshot_sha256"] == b["data"]["fewshot_sha256"]
    assert (a["init_seed"], b["init_seed"]) == (1, 7)
    contexts = [
        torch.load(tmp_path / n / "prompt_learner" / "model.pth.tar-2", weights_only=True)["state_dict"]["ctx"]
        for n in "ab"
    ]
    assert not torch.allclose(*contexts)


def test_several_seeds_are_the_runs_that_they_are_alone(tmp_path, capsys):
    for seed in (1, 2):
        assert train.main(arguments("BMIP", tmp_path / f"alone{seed}", seed=seed, root=data_root())) == 0
    argv = arguments("BMIP", tmp_path / "several{seed}", root=data_root())
    position = argv.index("--seed")
    argv[position : position + 2] = ["--seeds", "1", "2"]
    assert train.main(argv) == 0
    for seed in (1, 2):
        folders = tmp_path / f"alone{seed}", tmp_path / f"several{seed}"
        alone, several = map(read, folders)
        assert several["seed"] == seed
        assert several["data"] == alone["data"]
        assert several["metrics"]["all"]["accuracy"] == alone["metrics"]["all"]["accuracy"]
        assert [epoch["loss"] for epoch in several["history"]] == [epoch["loss"] for epoch in alone["history"]]
        assert several["environment"]["determinism"]["bit_identical"]
        paths = [folder / "prompt_learner" / "model-best.pth.tar" for folder in folders]
        first, second = (torch.load(path, weights_only=True)["state_dict"] for path in paths)
        assert all(torch.equal(second[name], tensor) for name, tensor in first.items())
        log = (tmp_path / f"several{seed}" / "log.txt").read_text()
        assert f"\nSEED: {seed}\n" in log
        assert f"\nSEED: {3 - seed}\n" not in log
        assert log.count("Finish training") == 1
    capsys.readouterr()
    assert train.main(argv) == 0
    assert capsys.readouterr().out.count("Finished already") == 2


def test_a_seed_that_fails_does_not_end_the_others(tmp_path, capsys):
    """The exit status is the worst of theirs."""
    argv = arguments("CoOp", tmp_path / "seed{seed}", root=data_root())
    position = argv.index("--seed")
    argv[position : position + 2] = ["--seeds", "1", "2", "3"]
    (tmp_path / "seed1").write_text("in the way")
    with locked(tmp_path / "seed2"):
        assert train.main(argv) == train.BUSY
    said = capsys.readouterr().err
    assert "cannot write to the output folder" in said
    assert "in use by process" in said
    assert read(tmp_path / "seed3")["seed"] == 3


SEEDS_REFUSED = {
    "one folder for all": (["--seeds", "1", "2", "--output-dir", "out"], r"'out'.*\{seed\}"),
    "a seed twice": (["--seeds", "1", "1", "--output-dir", "out{seed}"], "different numbers"),
    "both options": (["--seed", "1", "--seeds", "1", "2", "--output-dir", "out{seed}"], "exclude each other"),
}


@pytest.mark.parametrize("case", SEEDS_REFUSED)
def test_seeds_that_cannot_run_are_refused(case, capsys):
    import re

    argv, message = SEEDS_REFUSED[case]
    assert train.main(argv) == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "amp"])
@pytest.mark.parametrize("trainer", ["CoOp", "MaPLe", "BMIP"])
def test_precisions_run_on_the_cpu_with_float32_prompts(trainer, precision, tmp_path, capsys):
    node = {"CoOp": "COOP", "MaPLe": "MAPLE", "BMIP": "BMIP"}[trainer]
    options = (f"TRAINER.{node}.PREC", precision, "OPTIM.MAX_EPOCH", "1", "TRAIN.PATIENCE", "0")
    assert train.main(arguments(trainer, tmp_path, *options)) == 0
    results = read(tmp_path)
    replaced = precision in ("fp16", "amp")
    assert results["environment"]["precision"] == (f"fp32 (asked: {precision})" if replaced else precision)
    assert (f"PREC {precision} is computed in fp32" in capsys.readouterr().out) == replaced
    assert 0 < results["history"][0]["loss"] < 20
    checkpoint = torch.load(tmp_path / "prompt_learner" / "model.pth.tar-1", weights_only=True)
    assert {t.dtype for t in checkpoint["state_dict"].values()} == {torch.float32}


def test_half_precision_on_the_cpu_for_those_who_insist(tmp_path):
    options = ("TRAINER.BMIP.PREC", "fp16", "TRAIN.CPU_HALF", "True", "OPTIM.MAX_EPOCH", "1", "TRAIN.PATIENCE", "0")
    assert train.main(arguments("BMIP", tmp_path, *options)) == 0
    assert read(tmp_path)["environment"]["precision"] == "fp16"


def test_output_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert train.main(arguments("CoOp", tmp_path / "file" / "run")) == 2
    assert "cannot write to the output folder" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(request.config.rootpath)
        assert train.main(arguments("BMIP", folder)) == 0
    return folder


def evaluate(trainer, model_dir, output, *options):
    return train.main(arguments(trainer, output, *options, flags=("--eval-only", "--model-dir", str(model_dir))))


def test_checkpoint_of_another_method_is_refused(trained, tmp_path, capsys):
    assert evaluate("MaPLe", trained, tmp_path) == 2
    assert "was trained with BMIP, not MaPLe" in capsys.readouterr().err


def test_checkpoint_of_another_prompt_length_is_refused(trained, tmp_path, capsys):
    assert evaluate("BMIP", trained, tmp_path, "TRAINER.BMIP.N_CTX", "3") == 2
    assert "ctx has shape (2, 128) instead of (3, 128)" in capsys.readouterr().err


def test_checkpoint_of_another_backbone_is_refused(trained, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    for path in (copy / "prompt_learner").glob("model*"):
        torch.save(torch.load(path, weights_only=True) | {"backbone": "ViT-B/16"}, path)
    assert evaluate("BMIP", copy, tmp_path / "run") == 2
    assert "was trained on the backbone ViT-B/16, this run has bundled:tiny_clip" in capsys.readouterr().err


def test_truncated_checkpoint_is_refused(trained, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    for path in (copy / "prompt_learner").glob("model*"):
        path.write_bytes(path.read_bytes()[:1000])
    assert evaluate("BMIP", copy, tmp_path / "eval") == 2
    assert str(copy / "prompt_learner" / "model-best.pth.tar") in capsys.readouterr().err


def copy_of_digits(tmp_path):
    shutil.copytree("assets/digits", tmp_path / "data" / "digits")
    return tmp_path / "data"


def test_unreadable_image_is_named(tmp_path, capsys):
    root = copy_of_digits(tmp_path)
    split = json.loads((root / "digits" / "split_digits.json").read_text())
    first = next((root / "digits").rglob(split["test"][0][0]))
    first.write_bytes(first.read_bytes()[:60])
    assert train.main(arguments("ZeroshotCLIP", tmp_path / "run", root=root)) == 2
    assert first.name in capsys.readouterr().err


def test_empty_split_is_named(tmp_path, capsys):
    root = copy_of_digits(tmp_path)
    path = root / "digits" / "split_digits.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"test": []}))
    assert train.main(arguments("ZeroshotCLIP", tmp_path / "run", root=root)) == 2
    assert "test" in capsys.readouterr().err


def test_label_without_class_name_is_named(tmp_path, capsys):
    root = copy_of_digits(tmp_path)
    path = root / "digits" / "split_digits.json"
    split = json.loads(path.read_text())
    split["train"] = [[p, label, ""] if label == 3 else [p, label, name] for p, label, name in split["train"]]
    path.write_text(json.dumps(split))
    assert train.main(arguments("ZeroshotCLIP", tmp_path / "run", root=root)) == 2
    assert "split_digits.json" in capsys.readouterr().err


def test_more_shots_than_images_is_said_once(tmp_path, capsys):
    options = ("DATASET.NUM_SHOTS", "500", "OPTIM.MAX_EPOCH", "1", "DATALOADER.TRAIN_X.BATCH_SIZE", "64")
    assert train.main(arguments("CoOp", tmp_path, *options)) == 0
    assert capsys.readouterr().out.count("fewer than 500") == 1


def test_a_negative_seed_is_drawn_and_the_run_ends(tmp_path):
    options = ("SEED", "-9", "MODEL.INIT_SEED", "-7")
    assert train.main(arguments("ZeroshotCLIP", tmp_path, *options, root=str(data_root()))) == 0
    assert read(tmp_path)["seed"] == -9


def test_a_loss_that_is_not_finite_stops_with_epoch_and_batch(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(KEYS, "OPTIM.LR", number(above=0))  # a rate that the table refuses
    assert train.main(arguments("CoOp", tmp_path, "OPTIM.LR", "1e30", "OPTIM.WARMUP_EPOCH", "-1")) == train.DIVERGED
    error = capsys.readouterr().err
    assert "epoch" in error
    assert "batch" in error
    assert not (tmp_path / "results.json").exists()


def test_class_specific_context_serves_its_own_classes_only(tmp_path, capsys):
    assert train.main(arguments("CoOp", tmp_path, "TRAINER.COOP.CSC", "True", *ALL_SPLITS[2:])) == 2
    assert "CSC" in capsys.readouterr().err


def test_data_sets_with_test_images_only_are_not_trained_on(tmp_path, capsys, monkeypatch):
    from datasets.standard import Digits

    monkeypatch.setattr(Digits, "test_only", True, raising=False)
    assert train.main(arguments("CoOp", tmp_path)) == 2
    assert "has test images only" in capsys.readouterr().err
