"""Sweeps that train several seeds of a setting in one process."""

import io
import json
import subprocess
import sys
import types
from dataclasses import replace

import pytest

import sweep
from sweeping.claims import Claims
from sweeping.inline import InlineLauncher
from sweeping.jobs import Job, Plan, build_queue
from sweeping.local import LocalLauncher, Slot, Stop
from sweeping.progress import Progress
from sweeping.settings import SweepError
from sweeping.state import console_tail, finished_record, is_finished
from sweeping.together import common_arguments, companions, seeds_per_process


@pytest.fixture
def make_job(tmp_path, request):
    program = str(request.config.rootpath / "tests" / "stand_in_train.py")

    def make(seed, setting="tiny", behave="finish", needs=None):
        folder = tmp_path / setting / f"seed{seed}"
        arguments = ("--seed", str(seed), "--output-dir", str(folder), "--behave", behave, "DATASET.NUM_SHOTS", "16")
        return Job("BMIP", setting, "digits", 16, seed, folder, arguments, needs, program)

    return make


@pytest.fixture
def launch_inline(monkeypatch, make_job):
    """Launch in this process, with the stand-in in train.main's place."""
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(variable, "1")  # set by the launcher, put back after the test

    def main(arguments):
        command = [sys.executable, make_job(1).program, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        print(done.stdout)
        print(done.stderr, file=sys.stderr)
        return done.returncode

    module = types.ModuleType("train")
    module.main = main
    monkeypatch.setitem(sys.modules, "train", module)

    def launch(jobs, seeds):
        progress = Progress(jobs, 1, io.StringIO())
        InlineLauncher(Slot("", 1), progress, Stop(), seeds).run(jobs)
        return progress

    return launch


def launch(jobs, seeds):
    progress = Progress(jobs, 1, io.StringIO())
    LocalLauncher([Slot("", 1)], progress, Stop(), seeds=seeds).run(jobs)
    return progress


@pytest.fixture(params=["local", "inline"])
def launch_either(request):
    """Either launcher of this machine."""
    return launch if request.param == "local" else request.getfixturevalue("launch_inline")


def test_seeds_of_one_setting_share_a_command():
    plan = Plan(protocol="open_world", trainers=("CoOp", "ZeroshotCLIP"), datasets=("digits",), seeds=(1, 2, 3))
    jobs = build_queue(plan)
    group = companions(jobs[0], jobs, 3)
    assert [(job.trainer, job.seed) for job in group] == [("CoOp", 1), ("CoOp", 2), ("CoOp", 3)]
    arguments = common_arguments(group)
    position = arguments.index("--seeds")
    assert arguments[position : position + 4] == ("--seeds", "1", "2", "3")
    assert "--seed" not in arguments
    pattern = arguments[arguments.index("--output-dir") + 1]
    assert [pattern.replace("{seed}", str(job.seed)) for job in group] == [str(job.folder) for job in group]
    assert common_arguments(group[:1]) == group[0].arguments
    assert len(companions(jobs[0], jobs, 2)) == 2
    zero_shot = next(job for job in jobs if job.trainer == "ZeroshotCLIP")
    assert companions(zero_shot, jobs, 3) == [zero_shot]


def test_other_settings_and_tests_of_weights_stay_alone(make_job, tmp_path):
    job, other, test = make_job(1), make_job(2, "other"), make_job(3, needs=tmp_path / "run")
    assert companions(job, [job, other, test], 3) == [job]
    assert companions(test, [job, other, test], 3) == [test]


def test_a_sweep_starts_one_process_for_several_seeds(make_job, launch_either):
    jobs = [make_job(1), make_job(1, "other"), make_job(2), make_job(3)]
    progress = launch_either(jobs, seeds=2)
    assert all(is_finished(job.folder) for job in jobs)
    assert not progress.failures
    consoles = [console_tail(job.folder) for job in jobs]
    assert len(consoles[0]) == 2  # seeds 1 and 2 wrote to one console, which both folders have
    assert consoles[0] == consoles[2]
    assert [len(consoles[1]), len(consoles[3])] == [1, 1]


def test_a_seed_that_fails_is_told_from_those_that_finish(make_job, launch_either):
    jobs = [make_job(seed, behave="odd") for seed in (1, 2, 3)]
    progress = launch_either(jobs, seeds=3)
    assert progress.failures == {jobs[1].folder: "exit status 2, error: an even seed"}
    assert [is_finished(job.folder) for job in jobs] == [True, False, True]


def test_seeds_that_another_sweep_has_or_has_finished_are_left_out(make_job, launch_either):
    jobs = [make_job(seed) for seed in (1, 2, 3)]
    launch([jobs[1]], seeds=1)
    other = Claims(Progress(jobs, 1, io.StringIO()))
    assert other.take(jobs[2])
    progress = launch_either(jobs[:2], seeds=3)
    assert progress.finished == {jobs[0].folder, jobs[1].folder}
    assert len(list(jobs[1].folder.glob("start*"))) == 1
    assert not jobs[2].folder.joinpath("console.txt").exists()
    other.release(jobs[2])


def test_where_features_are_kept_makes_no_other_run(make_job):
    job = make_job(1)
    launch([job], seeds=1)
    elsewhere = replace(job, arguments=(*job.arguments, "FEATURES.FOLDER", "features"))
    path = job.folder / "results.json"
    record = json.loads(path.read_text())
    record["config"]["FEATURES"] = {"FOLDER": ""}
    path.write_text(json.dumps(record))
    assert finished_record(elsewhere)["config"]["FEATURES"] == {"FOLDER": ""}


def test_the_number_comes_from_the_option_or_the_environment(monkeypatch, capsys):
    monkeypatch.delenv("SEEDS_PER_PROCESS", raising=False)
    assert seeds_per_process(None) == 1
    monkeypatch.setenv("SEEDS_PER_PROCESS", "3")
    assert seeds_per_process(None) == 3
    assert seeds_per_process(2) == 2
    for wrong in ("many", "0", "-1"):
        monkeypatch.setenv("SEEDS_PER_PROCESS", wrong)
        with pytest.raises(SweepError, match="SEEDS_PER_PROCESS"):
            seeds_per_process(None)
    argv = ["--trainers", "CoOp", "--datasets", "digits", "--seeds-per-process", "0"]
    assert sweep.main(argv) == 2
    assert "SEEDS_PER_PROCESS is '0'" in capsys.readouterr().err
