"""A run's output folder: what a start removes, what it leaves alone, and what it refuses."""

import socket
import subprocess
import sys

import pytest

import train  # noqa: F401  declares all settings
from common.files import LockedError
from common.free_options import FREE_OPTIONS, flatten
from dassl.config import get_cfg_default
from results.rundir import RunDirError, begin_run, earlier_config, prepare_run_dir, remove_leftovers, run_dir
from tests.locks import locked

MODELS = ("prompt_learner",)
RUN = (
    "config.yaml",
    "resume.pth.tar",
    "diverged.json",
    "history.csv",
    "features.npz",
    "predictions.npz",
    "cmat.pt",
    "new/cmat.pt",
    "tensorboard/events.out.tfevents.1700000000.host.1.0",
    *(f"prompt_learner/{name}" for name in ("checkpoint", "model.pth.tar-2", "model.pth.tar-10", "model-best.pth.tar")),
)
USERS = (
    "log.txt",
    "notes.md",
    ".notes.tmp",
    "tensorboard/mine/f",
    "prompt_learner/notes.txt",
    "prompt_learner/model.pth.tar-2.bak",
    "backup/model.pth.tar-2",
    "backup/checkpoint",
    "seed2/results.json",
    "seed2/prompt_learner/model.pth.tar-2",
    "new/mine.txt",
)


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg_default()
    cfg.OUTPUT_DIR = str(tmp_path)
    cfg.TRAINER.NAME = "CoOp"
    cfg.TEST.COMPUTE_CMAT = cfg.TEST.SAVE_FEATURES = True
    return cfg


def write(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_overwriting_a_run_removes_its_own_files_and_no_others(cfg, tmp_path):
    begin_run(cfg, MODELS)
    write(tmp_path, [name for name in RUN if name != "config.yaml"] + list(USERS))
    assert not prepare_run_dir(cfg, overwrite=True)
    assert set(RUN) < set(files(tmp_path)), "a start that fails before it begins has lost nothing"
    begin_run(cfg, MODELS, overwrite=True)
    assert files(tmp_path) == sorted([*USERS, "config.yaml"])
    for name in USERS:
        assert (tmp_path / name).read_text() == "x"


def test_folders_that_are_empty_then_go(cfg, tmp_path):
    begin_run(cfg, MODELS)
    write(tmp_path, [name for name in RUN if name != "config.yaml"])
    begin_run(cfg, MODELS, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_curves_of_a_run_that_kept_none_are_somebody_elses(cfg, tmp_path):
    cfg.TRAIN.TRACKERS = ()
    begin_run(cfg, MODELS)
    write(tmp_path, [RUN[8]])
    begin_run(cfg, MODELS, overwrite=True)
    assert files(tmp_path) == sorted(["config.yaml", RUN[8]])


def test_files_that_a_run_was_not_asked_for_are_somebody_elses(cfg, tmp_path):
    cfg.TEST.COMPUTE_CMAT = cfg.TEST.SAVE_FEATURES = cfg.TEST.SAVE_PREDICTIONS = False
    begin_run(cfg, MODELS)
    write(tmp_path, ["cmat.pt", "features.npz", "predictions.npz"])
    begin_run(cfg, MODELS, overwrite=True)
    assert files(tmp_path) == ["cmat.pt", "config.yaml", "features.npz", "predictions.npz"]


def test_testing_anew_leaves_the_checkpoints(cfg, tmp_path):
    """They may be the very ones that are tested."""
    begin_run(cfg, MODELS)
    write(tmp_path, ["prompt_learner/model.pth.tar-2", "history.csv"])
    begin_run(cfg, overwrite=True)
    assert files(tmp_path) == ["config.yaml", "prompt_learner/model.pth.tar-2"]


def test_a_link_to_another_folder_is_not_followed(cfg, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    write(elsewhere, ["checkpoint"])
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    begin_run(cfg, MODELS)
    (tmp_path / "run/prompt_learner").symlink_to(elsewhere)
    begin_run(cfg, MODELS, overwrite=True)
    assert (elsewhere / "checkpoint").exists()


SETTINGS_FILE = "TRAINER:\n  NAME: CoOp\nOPTIM:\n  LR: 0.1\n"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["config.yaml", "resume.pth.tar", "diverged.json", "history.csv", "new/cmat.pt"])
def test_a_file_that_no_run_wrote_is_not_written_over(cfg, tmp_path, name, overwrite):
    write(tmp_path, USERS)
    (tmp_path / name).write_text(SETTINGS_FILE)
    before = files(tmp_path)
    with pytest.raises(RunDirError, match=f"^{tmp_path / name} is there, but no run that wrote it.*move it away"):
        prepare_run_dir(cfg, overwrite)
    assert files(tmp_path) == before


def test_results_that_are_no_runs_are_not_written_over(cfg, tmp_path):
    write(tmp_path, ["results.json"])
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=str(tmp_path / "results.json")):
            prepare_run_dir(cfg, overwrite)
    assert (tmp_path / "results.json").read_text() == "x"


@pytest.mark.parametrize("name", RUN[-4:])
@pytest.mark.parametrize("overwrite", [False, True])
def test_checkpoints_that_no_run_wrote_are_neither_gone_on_from_nor_written_over(cfg, tmp_path, name, overwrite):
    write(tmp_path, [name])
    assert not prepare_run_dir(cfg, overwrite)
    with pytest.raises(RunDirError, match=f"^{tmp_path / name} is there, but no run that wrote it"):
        begin_run(cfg, MODELS, overwrite)
    assert files(tmp_path) == [name]
    begin_run(cfg, (), overwrite)  # testing them is fine
    assert files(tmp_path) == sorted([name, "config.yaml"])


@pytest.mark.parametrize("name", ["prompt_learner", "tensorboard"])
def test_a_file_in_the_way_of_a_folder_is_said_before_training(cfg, tmp_path, name):
    write(tmp_path, [name])
    with pytest.raises(RunDirError, match=f"^{tmp_path / name} is there"):
        begin_run(cfg, MODELS)


def test_a_folder_without_a_run_loses_nothing(cfg, tmp_path):
    write(tmp_path, USERS)
    assert not prepare_run_dir(cfg, overwrite=True)
    begin_run(cfg, MODELS, overwrite=True)
    assert files(tmp_path) == sorted([*USERS, "config.yaml"])


KILLED = """
import os, sys
from common.files import atomic_write
writers = [atomic_write(path) for path in sys.argv[1:]]
for writer in writers:
    writer.__enter__().write(b"half")
os._exit(9)
"""


def test_what_a_killed_run_left_half_written_is_removed_and_nothing_else(tmp_path):
    ours = [name for name in RUN if not name.startswith("tensorboard")]
    write(tmp_path, USERS)
    foreign = ["seed2/results.json", "seed2/prompt_learner/checkpoint", "prompt_learner/mine.txt", "report.html"]
    command = [sys.executable, "-c", KILLED, *(str(tmp_path / name) for name in [*ours, *foreign])]
    assert subprocess.run(command, check=False).returncode == 9
    assert len(files(tmp_path)) == len(USERS) + len(ours) + len(foreign)
    remove_leftovers(tmp_path)
    left = [name for name in files(tmp_path) if name not in USERS]
    marks = [f"{name.rpartition('/')[2]}.{socket.gethostname()}." for name in foreign]
    assert len(left) == len(foreign)
    assert all(sum(mark in name for name in left) == 1 for mark in marks)


def test_a_busy_folder_is_left_alone(cfg, tmp_path):
    write(tmp_path, USERS)
    with locked(tmp_path), pytest.raises(LockedError), run_dir(cfg):
        pass
    assert files(tmp_path) == sorted(USERS)


@pytest.mark.parametrize("option", FREE_OPTIONS)
def test_what_changes_no_result_may_change(cfg, option, tmp_path):
    begin_run(cfg)
    *nodes, key = option.split(".")
    node = cfg
    for name in nodes:
        node = node[name]
    value = flatten(cfg)[option]
    if option != "OUTPUT_DIR":
        node[key] = not value if isinstance(value, bool) else ("changed",) if isinstance(value, tuple) else 77
    assert not prepare_run_dir(cfg)


def test_other_methods_settings_may_change(cfg):
    """Another version of the code has other defaults; a finished baseline is not for that to be redone."""
    cfg.TRAINER.NAME = "CoOp"
    begin_run(cfg)
    cfg.TRAINER.BMIP.N_CTX = 7
    assert not prepare_run_dir(cfg)
    cfg.TRAINER.COOP.N_CTX = 7
    with pytest.raises(RunDirError, match=r"TRAINER\.COOP\.N_CTX was 16, now 7"):
        prepare_run_dir(cfg)


def test_a_test_batch_that_a_gate_reads_may_not_change(cfg):
    """BMIP's official gate: a prediction depends on the images that share its batch."""
    cfg.TRAINER.BMIP.GATE = "official"
    begin_run(cfg)
    cfg.DATALOADER.TEST.BATCH_SIZE = 7
    with pytest.raises(RunDirError, match=r"DATALOADER\.TEST\.BATCH_SIZE was 32, now 7"):
        prepare_run_dir(cfg)


def test_a_file_of_settings_is_no_runs_configuration(cfg, tmp_path):
    (tmp_path / "config.yaml").write_text(SETTINGS_FILE)
    assert earlier_config(tmp_path) is None
    (tmp_path / "config.yaml").unlink()
    begin_run(cfg)
    assert earlier_config(tmp_path)["TRAINER"]["NAME"] == "CoOp"
