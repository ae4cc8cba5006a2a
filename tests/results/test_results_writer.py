import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from yacs.config import CfgNode

from results import schema
from results.schema import (
    REQUIRED_KEYS,
    SCHEMA_VERSION,
    ResultsError,
    Run,
    collect_environment,
    git_state,
    peak_memory,
    read_results,
    write_results,
)


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

    monkeypatch.setattr(schema.os, "replace", interrupted)
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
    monkeypatch.setattr(schema, "PACKAGES", ("no-such-package-here",))
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
