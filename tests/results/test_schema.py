"""results.json: what is worked out for it, written and refused; tests/reporting reads it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from yacs.config import CfgNode

from dassl.config import get_cfg_default, read_yaml
from dassl.data import DatasetWrapper
from results.record import collect_environment, describe_decoding, git_state, overrides_of, peak_memory, write_results
from results.rundir import RunDirError, begin_run, prepare_run_dir
from results.schema import REPOSITORY, REQUIRED_KEYS, SCHEMA_VERSION, ResultsError, Run, dataset_label, read_results

DATASET_FILES = REPOSITORY / "configs" / "datasets"


@pytest.fixture
def record():
    return {
        "protocol": "base_to_new",
        "trainer": "CoOp",
        "setting": "tiny",
        "dataset": "digits",
        "backbone": "bundled:tiny",
        "seed": 2,
        "init_seed": 2,
        "shots": 16,
        "train_classes": "base",
        "selection_rule": "last_step",
        "config": CfgNode({"OPTIM": {"LR": 0.002}, "TEST": {"CLASS_SPLITS": ("base", "new")}}),
        "environment": collect_environment("cpu", "fp32"),
        "data": {"split_file": "split.json", "split_sha256": "aa", "classnames": ["zero", "one"]},
        "model": {"trainable_parameters": 512, "trainable_tensors": {"ctx": torch.Size([4, 128])}},
        "metrics": {"base": {"accuracy": 72.5, "num_images": np.int64(100)}, "new": {"accuracy": np.float32(60.5)}},
        "history": [{"epoch": 1, "loss": torch.tensor(0.5)}],
        "gates": {"vision": np.array([0.25, 0.5]), "path": Path("a") / "b"},
        "timing": {"train": 1.5},
        "memory": peak_memory(),
    }


def test_what_is_written_is_what_the_reporting_package_reads(record, tmp_path):
    path = tmp_path / "run" / "results.json"
    written = write_results(path, record)
    read = read_results(path)
    assert read == written
    assert set(REQUIRED_KEYS) <= set(read)
    assert next(iter(read)) == "schema_version"
    assert (read["schema_version"], read["status"]) == (SCHEMA_VERSION, "finished")
    run = Run.read(path)
    assert (run.trainer, run.seed, run.accuracy("new")) == ("CoOp", 2, 60.5)


def test_values_become_plain_json(record, tmp_path):
    read = write_results(tmp_path / "results.json", record)
    assert read["config"] == {"OPTIM": {"LR": 0.002}, "TEST": {"CLASS_SPLITS": ["base", "new"]}}
    assert read["model"]["trainable_tensors"] == {"ctx": [4, 128]}
    assert read["metrics"]["base"]["num_images"] == 100
    assert read["history"] == [{"epoch": 1, "loss": 0.5}]
    assert read["gates"] == {"vision": [0.25, 0.5], "path": "a/b"}


def test_a_matrix_takes_a_line_per_row_and_no_text_is_touched(record, tmp_path):
    record["metrics"]["base"]["confusion"] = [[7, -1], [0, 12]]
    record["selection_rule"] = "[\n 1,\n 2\n]"
    path = tmp_path / "results.json"
    written = write_results(path, record)
    text = path.read_text()
    assert "[7, -1],\n" in text
    assert json.loads(text) == written
    assert json.loads(text)["selection_rule"] == "[\n 1,\n 2\n]"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), r"results.timing.train is nan"),
        (np.float64("inf"), r"results.timing.train is inf"),
        ([1.0, object()], r"results.timing.train\[1\] is a object, which JSON cannot hold"),
    ],
)
def test_what_is_no_json_is_named_and_nothing_is_written(record, tmp_path, value, message):
    record["timing"]["train"] = value
    with pytest.raises(ValueError, match=message):
        write_results(tmp_path / "results.json", record)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_key_is_named_and_an_older_file_stays(record, tmp_path):
    path = tmp_path / "results.json"
    write_results(path, record)
    before = path.read_bytes()
    del record["metrics"]
    with pytest.raises(ResultsError, match="missing keys: metrics"):
        write_results(path, record)
    assert path.read_bytes() == before


def test_an_interrupted_write_leaves_the_older_file_and_no_other(record, tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    write_results(path, record)
    before = path.read_bytes()

    def interrupted(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr("results.record.os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_results(path, record | {"seed": 3})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_the_environment_names_versions_device_and_precision():
    environment = collect_environment(torch.device("cpu"), "bf16")
    assert environment["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert set(environment["packages"]) == {"torch", "torchvision", "numpy", "clip-anytorch", "yacs"}
    assert (environment["device"], environment["precision"]) == ("cpu", "bf16")
    assert environment["device_name"]
    assert environment["threads"] == torch.get_num_threads()
    assert environment["python"] == ".".join(map(str, sys.version_info[:3]))
    json.dumps(environment)


def test_packages_that_are_not_installed_have_no_version(monkeypatch):
    monkeypatch.setattr("results.record.PACKAGES", ("no-such-package-here",))
    assert collect_environment("cpu", "fp32")["packages"] == {"no-such-package-here": None}


def git(folder, *arguments):
    identity = ["-c", "user.name=Tester", "-c", "user.email=tester@example.org"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    for variable in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "file").write_text("one")
    git(tmp_path, "init")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "first")
    return tmp_path


def test_git_revision_and_changes(checkout):
    revision, dirty = git_state(checkout)
    assert len(revision) == 40
    assert dirty is False
    (checkout / "untracked").write_text("")
    assert git_state(checkout) == (revision, False)
    (checkout / "file").write_text("two")
    assert git_state(checkout) == (revision, True)


def test_a_copy_inside_another_repository_does_not_claim_its_revision(checkout):
    inner = checkout / "inner"
    inner.mkdir()
    assert git_state(inner) == (None, None)


def test_variables_of_a_git_hook_do_not_lead_astray(checkout, tmp_path_factory, monkeypatch):
    revision, _ = git_state(checkout)
    monkeypatch.setenv("GIT_DIR", str(tmp_path_factory.mktemp("other") / ".git"))
    assert git_state(checkout)[0] == revision


def test_no_checkout_and_no_git_are_no_error(tmp_path, monkeypatch):
    assert git_state(tmp_path) == (None, None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) == (None, None)
    assert collect_environment("cpu", "fp32")["git_revision"] is None


def test_peak_memory_is_in_mib():
    memory = peak_memory()
    assert 50 < memory["peak_rss_mib"] < 2**20
    assert (memory["peak_cuda_mib"] is None) == (not torch.cuda.is_available())


@pytest.mark.parametrize(
    ("factor", "text"), [(0.0, "full size"), (1.5, "JPEG at 1, 1/2, 1/4 or 1/8 size, at least 336x336")]
)
def test_the_size_at_which_images_are_decoded_is_stated(factor, text):
    cfg = get_cfg_default()
    cfg.INPUT.JPEG_DRAFT = factor
    assert describe_decoding(DatasetWrapper(cfg, [])) == text


def test_a_run_goes_on_with_another_cache_but_not_with_another_decoding(tmp_path):
    cfg = get_cfg_default()
    cfg.OUTPUT_DIR = str(tmp_path)
    begin_run(cfg)
    cfg.DATALOADER.CACHE_MB = 0
    assert not prepare_run_dir(cfg)
    cfg.INPUT.JPEG_DRAFT = 1.0
    with pytest.raises(RunDirError, match=r"INPUT\.JPEG_DRAFT was 0\.0, now 1\.0"):
        prepare_run_dir(cfg)


@pytest.mark.parametrize(
    ("settings", "label"),
    [
        ({"NAME": "folder", "PATH": "x/birds"}, "birds"),
        ({"NAME": "Csv", "PATH": "x/birds.CSV"}, "birds"),
        ({"NAME": "csv", "PATH": "x/birds.csv", "LABEL": "all-birds"}, "all-birds"),
        ({"NAME": "folder", "PATH": "birds of\x1b[31m prey"}, "birds_of__31m_prey"),
        ({"NAME": "folder", "PATH": "", "ROOT": "/data/birds"}, "birds"),
        ({"NAME": "folder", "PATH": "/data/x/.."}, "data"),
        ({"NAME": "folder", "PATH": "eurosat"}, "folder_eurosat"),
        ({"NAME": "folder", "PATH": "digits"}, "folder_digits"),
        ({"NAME": "folder", "PATH": "___"}, "folder"),
        ({"NAME": "EuroSAT"}, "EuroSAT"),
    ],
)
def test_the_name_of_a_data_set(settings, label):
    assert dataset_label(settings) == label


@pytest.mark.parametrize("label", ["a/b", "..", ".x", "a b", "a\x1b", "eurosat", "x" * 81])
def test_a_label_that_cannot_be_a_folder_is_refused(label):
    with pytest.raises(ValueError, match="DATASET.LABEL"):
        dataset_label({"NAME": "folder", "PATH": "x", "LABEL": label})


BUNDLED_FILES = [
    path for kind in ("digits", "emoji_*", "mini_*") for path in sorted(DATASET_FILES.glob(f"{kind}.yaml"))
]


@pytest.mark.parametrize("file", BUNDLED_FILES, ids=lambda file: file.stem)
def test_own_images_cannot_take_the_name_of_a_bundled_data_set(file):
    name = read_yaml(file)["DATASET"]["NAME"]
    with pytest.raises(ValueError, match=f"DATASET.LABEL is '{name}', as tables call a published or bundled data set"):
        dataset_label({"NAME": "folder", "PATH": "x", "LABEL": name})
    assert dataset_label({"NAME": "folder", "PATH": name}) == f"folder_{name}"


def test_images_that_are_turned_upright_are_stated():
    cfg = get_cfg_default()
    cfg.INPUT.EXIF_ORIENTATION = True
    assert describe_decoding(DatasetWrapper(cfg, [])) == "full size, turned upright by EXIF"


@pytest.mark.parametrize(
    ("pairs", "changed"),
    [
        (["OPTIM.MAX_EPOCH", "3"], {"OPTIM.MAX_EPOCH": 3}),
        (["INPUT.SIZE", "(32, 32)"], {"INPUT.SIZE": [32, 32]}),
        (["OPTIM.MAX_EPOCH", "10"], {}),  # as it was
        (["SEED", "3", "OUTPUT_DIR", "x", "RESUME", "x", "DATASET.ROOT", "x", "USE_CUDA", "False"], {}),
        (["TRAINER.NAME", "CoOp", "MODEL.BACKBONE.NAME", "RN50"], {}),  # keys of the record
        (["DATASET.NUM_SHOTS", "4", "TEST.FINAL_MODEL", "best_val"], {}),  # of the protocol
        (["TEST.SPLIT", "val", "TEST.PER_CLASS_RESULT", "True"], {"TEST.SPLIT": "val"}),
        (["TEST.EVALUATOR", "Mine"], {"TEST.EVALUATOR": "Mine"}),
        (["DATALOADER.NUM_WORKERS", "0", "DATALOADER.TEST.BATCH_SIZE", "8", "TRAIN.PRINT_FREQ", "5"], {}),
    ],
)
def test_only_what_decides_numbers_counts_as_changed(pairs, changed):
    cfg = get_cfg_default()
    cfg.merge_from_list(pairs)
    assert overrides_of(cfg, get_cfg_default()) == changed
