"""Sweeps on this machine: processes in slots, what is skipped, failures, retries, signals and the progress view."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import types
from dataclasses import replace

import pytest

import sweep
from common.files import SWEEP_LOCK, FolderLock
from sweeping.plan import REPOSITORY, Job, SweepError
from sweeping.runner import (
    Claims,
    Processes,
    Progress,
    Slot,
    Stop,
    duration,
    earlier_failure,
    finished_record,
    is_finished,
    record_failure,
    slots_for,
    work_off,
)


@pytest.fixture
def make_job(tmp_path, request):
    program = str(request.config.rootpath / "tests" / "stand_in_train.py")

    def make(name, behave="finish", needs=None, options=("OPTIM.MAX_EPOCH", "1")):
        folder = tmp_path / name
        arguments = ("--output-dir", str(folder), "--behave", behave, "DATASET.NUM_SHOTS", "16", *options)
        return Job("BMIP", "tiny", "digits", 16, 1, folder, arguments, needs, program)

    return make


@pytest.fixture
def run(monkeypatch, tmp_path):
    """sweep.main on a given queue."""

    def start(jobs, *options):
        monkeypatch.setattr(sweep, "build_queue", lambda plan: jobs)
        argv = ["--trainers", "BMIP", "--datasets", "digits", "--output", str(tmp_path), "--gpus", *options]
        return sweep.main(argv)

    return start


def test_runs_are_done_once_and_skipped_after(make_job, run, capsys):
    jobs = [make_job("a"), make_job("b"), make_job("c")]
    assert run(jobs, "--slots", "2") == 0
    assert "3 runs: 3 finished, 0 failed, 0 to be run" in capsys.readouterr().out
    assert run(jobs) == 0
    assert "start " not in capsys.readouterr().out
    assert all(len(list(job.folder.glob("start*"))) == 1 for job in jobs)


def test_every_slot_has_its_gpu_and_share_of_the_cores(make_job):
    jobs = [make_job("a"), make_job("b")]
    stop = Stop()
    work_off(jobs, Processes([Slot("3", 5), Slot("", 2)], stop), Progress(jobs, 2, io.StringIO()), stop)
    environments = [json.loads((job.folder / "results.json").read_text())["environment"] for job in jobs]
    assert environments == [
        {"CUDA_VISIBLE_DEVICES": "3", "OMP_NUM_THREADS": "5"},
        {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "2"},
    ]


# Claims a folder and is killed before it gives it up.
CLAIM = (
    "import os, sys, pathlib; from common.files import FolderLock; "
    "lock = FolderLock(pathlib.Path(sys.argv[1])); lock.acquire(); "
    "os._exit(0)"
)


def test_slots_of_the_machine(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert slots_for(["0", "1"], None) == [Slot("0", 8), Slot("1", 8)]
    assert slots_for(["0", "1"], 4) == [Slot("0", 4), Slot("1", 4), Slot("0", 4), Slot("1", 4)]
    assert slots_for([], None) == [Slot("", 4)] * 4
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert [slot.gpu for slot in slots_for(None, None)] == ["5", "7"]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert slots_for([], 2) == [Slot("", 3)] * 2
    monkeypatch.setenv("OMP_NUM_THREADS", "3,1")  # of nested teams
    assert slots_for([], 2) == [Slot("", 3)] * 2
    with pytest.raises(SweepError):
        slots_for([], 0)


def test_failures_are_told_with_the_logs_last_lines_and_retried_on_request(make_job, run, capsys):
    jobs = [make_job("bad", "fail"), make_job("good")]
    assert run(jobs) == 1
    out = capsys.readouterr().out
    assert "exit status 2, error: the data are not there" in out
    assert f"    started {jobs[0].folder}" not in out  # its error line says it
    assert str(jobs[0].folder / "console.txt") in out
    assert "2 runs: 1 finished, 1 failed, 0 to be run" in out
    assert run(jobs) == 1
    out = capsys.readouterr().out
    assert "--retry runs it again" in out
    assert str(jobs[0].folder / "console.txt") in out
    assert len(list(jobs[0].folder.glob("start*"))) == 1
    assert run(jobs, "--retry") == 1
    assert len(list(jobs[0].folder.glob("start*"))) == 2


def test_a_mended_command_needs_no_retry(make_job, run):
    assert run([make_job("a", "fail")]) == 1
    assert run([make_job("a", "finish")]) == 0
    assert earlier_failure(make_job("a", "finish")) is None


def test_a_run_that_somebody_stopped_goes_on_without_retry(make_job, run, capsys):
    assert run([make_job("a", "stopped")]) == 1
    assert "stopped by a signal, its state is saved: the same command goes on" in capsys.readouterr().out
    assert run([make_job("a", "stopped")]) == 0


def test_what_another_sweep_runs_is_waited_for(make_job, run, capsys, monkeypatch):
    """The lock of a live process stands for the other sweep, which finishes one job and fails at another."""
    monkeypatch.setattr("sweeping.runner.ELSEWHERE_SECONDS", 0.1)
    jobs = [make_job("theirs"), make_job("failing"), make_job("ours")]
    locks = []
    for job in jobs[:2]:
        job.folder.mkdir()
        locks.append(FolderLock(job.folder / SWEEP_LOCK))
        locks[-1].acquire()

    def end_the_other_sweep():
        while not is_finished(jobs[2].folder):
            time.sleep(0.05)
        subprocess.run(jobs[0].command(sys.executable), check=True)
        record_failure(jobs[1], "exit status 2")
        for lock in locks:
            lock.release()

    thread = threading.Thread(target=end_the_other_sweep)
    thread.start()
    assert run(jobs) == 1
    thread.join()
    out = capsys.readouterr().out
    assert out.count("elsewhere BMIP") == 2
    assert f"in use by process {os.getpid()}" in out
    assert "exit status 2 (in another sweep; --retry runs it again)" in out
    assert "3 runs: 2 finished, 1 failed, 0 to be run" in out
    assert len(list(jobs[0].folder.glob("start*"))) == 1, "this sweep did not start it, too"
    assert not list(jobs[1].folder.glob("start*"))


def test_what_another_sweep_fails_at_just_before_the_claim_is_not_run(make_job, run, capsys, monkeypatch):
    monkeypatch.setattr("sweeping.runner.ELSEWHERE_SECONDS", 0)
    job = make_job("failing")
    job.folder.mkdir()
    lock = FolderLock(job.folder / SWEEP_LOCK)
    lock.acquire()
    take, looks = Claims.take, []

    def take_late(claims, job):
        looks.append(job)
        if len(looks) == 2:  # it was seen elsewhere before
            record_failure(job, "exit status 2")
            lock.release()
        return take(claims, job)

    monkeypatch.setattr(Claims, "take", take_late)
    assert run([job]) == 1
    assert "exit status 2 (in another sweep; --retry runs it again)" in capsys.readouterr().out
    assert not list(job.folder.glob("start*"))
    assert not (job.folder / SWEEP_LOCK).exists()


def test_the_claim_of_a_killed_sweep_on_a_finished_job_is_removed(make_job, run):
    job, others = make_job("killed"), make_job("others")
    assert run([job, others]) == 0
    dead = subprocess.run(
        [sys.executable, "-c", CLAIM, str(job.folder / SWEEP_LOCK)], cwd=REPOSITORY, check=True, capture_output=True
    )
    assert (job.folder / SWEEP_LOCK).exists(), dead
    living = FolderLock(others.folder / SWEEP_LOCK)
    living.acquire()
    assert run([job, others]) == 0
    assert not (job.folder / SWEEP_LOCK).exists()
    assert living.path.exists()
    living.release()


def test_a_job_that_nobody_can_claim_fails_and_holds_nothing_up(make_job, run, capsys):
    jobs = [make_job("odd"), make_job("ours")]
    jobs[0].folder.mkdir()
    (jobs[0].folder / SWEEP_LOCK).write_text("no lock")
    assert run(jobs) == 1
    assert f"{SWEEP_LOCK} cannot be taken (it names no process): delete it" in capsys.readouterr().out
    assert is_finished(jobs[1].folder)
    assert not list(jobs[0].folder.glob("start*"))


def test_two_sweeps_share_a_queue(make_job, tmp_path):
    """Each job is run once, by whichever sweep comes to it first."""
    jobs = [make_job(name) for name in "abcdef"]
    views = [Progress(jobs, 1, io.StringIO()) for _ in range(2)]
    threads = [
        threading.Thread(target=work_off, args=(jobs, Processes([Slot("", 1)], Stop()), view, Stop())) for view in views
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(view.finished == {job.folder for job in jobs} for view in views)
    assert all(len(list(job.folder.glob("start*"))) == 1 for job in jobs)
    assert not list(tmp_path.rglob("*.lock*"))


def test_a_run_that_leaves_no_results_has_failed(make_job, run, capsys):
    assert run([make_job("a", "nothing")]) == 1
    assert "ended without results" in capsys.readouterr().out


def test_a_test_waits_for_the_weights_it_needs(make_job, run, tmp_path):
    train, test = make_job("train"), make_job("test", needs=tmp_path / "train")
    assert run([test, train], "--slots", "2") == 0
    first, second = (job.folder / "results.json" for job in (train, test))
    assert (second.parent / "start0").stat().st_mtime_ns >= first.stat().st_mtime_ns


def test_a_test_without_its_weights_fails_and_is_not_held_against_it(make_job, run, tmp_path, capsys):
    jobs = [make_job("train", "fail"), make_job("test", needs=tmp_path / "train")]
    assert run(jobs) == 1
    assert f"needs the run in {tmp_path / 'train'}, which is not finished" in capsys.readouterr().out
    assert earlier_failure(jobs[1]) is None


def test_a_finished_run_with_other_settings_is_named(make_job, run, capsys):
    assert run([make_job("a")]) == 0
    assert run([make_job("a", options=("OPTIM.MAX_EPOCH", "5"))]) == 1
    assert "finished run with other settings (OPTIM.MAX_EPOCH was 1, now 5)" in capsys.readouterr().out


def test_where_data_and_features_are_kept_makes_no_other_run(make_job, run):
    job = make_job("a")
    assert run([job]) == 0
    path = job.folder / "results.json"
    record = json.loads(path.read_text())
    record["config"]["FEATURES"] = {"FOLDER": ""}
    record["config"]["DATASET"]["ROOT"] = "y"
    path.write_text(json.dumps(record))
    elsewhere = make_job("a", options=("OPTIM.MAX_EPOCH", "1", "FEATURES.FOLDER", "features", "DATASET.ROOT", "x"))
    assert finished_record(elsewhere)["config"]["FEATURES"] == {"FOLDER": ""}


@pytest.mark.parametrize("typed", ["a photo of a", "'a photo of a'"])
def test_a_text_is_the_same_with_and_without_quotes(typed, make_job, run):
    assert run([make_job("a")]) == 0
    path = make_job("a").folder / "results.json"
    record = json.loads(path.read_text())
    record["config"]["TRAINER"] = {"COOP": {"CTX_INIT": "a photo of a"}}
    path.write_text(json.dumps(record))
    job = make_job("a", options=("OPTIM.MAX_EPOCH", "1", "TRAINER.COOP.CTX_INIT", typed))
    assert finished_record(job)["config"]["TRAINER"] == {"COOP": {"CTX_INIT": "a photo of a"}}


def test_a_run_of_another_protocol_is_named(make_job, run, capsys):
    job = replace(make_job("a"), protocol="open_world")
    assert run([job]) == 0
    assert run([job]) == 0
    assert run([replace(job, protocol="base_to_new")]) == 1
    assert "its protocol was open_world, now base_to_new" in capsys.readouterr().out


@pytest.mark.parametrize("launcher", ["local", "inline"])
def test_overwrite_redoes_what_is_finished_once(launcher, make_job, run, run_inline):
    train = make_job("train")
    redone = replace(train, arguments=(*train.arguments[:4], "--overwrite", *train.arguments[4:]))
    test = make_job("test", needs=train.folder)
    assert run([train, test]) == 0
    run_inline([train, test])
    assert run([redone, test], "--overwrite", "--launcher", launcher) == 0
    assert [len(list(job.folder.glob("start*"))) for job in (train, test)] == [2, 1]


def test_damaged_results_are_named(make_job, run, capsys):
    assert run([make_job("a")]) == 0
    path = make_job("a").folder / "results.json"
    path.write_text(path.read_text()[:50])
    assert run([make_job("a")], "--retry") == 1
    out = capsys.readouterr().out
    assert re.search("cut short or damaged.*--overwrite redoes it", out)
    assert "console.txt" not in out  # which is of the run that was good


def test_a_failure_without_an_error_line_shows_its_own_last_lines_only(make_job, run, capsys):
    job = make_job("a", "nothing")
    job.folder.mkdir()
    (job.folder / "console.txt").write_text("of an earlier attempt\n")
    assert run([job]) == 1
    out = capsys.readouterr().out
    assert f"    started {job.folder}\n    all of it: {job.folder / 'console.txt'}\n" in out
    assert run([job], "--retry", "--foreground") == 1
    assert "console.txt" not in capsys.readouterr().out  # it was on the terminal


DRIVER = """
import sys, sweep
from pathlib import Path
from sweeping.plan import Job
jobs = []
for name, behave in (("a", "finish"), ("b", "BEHAVE"), ("c", "finish")):
    folder = Path(r"OUTPUT") / name
    arguments = ("--output-dir", str(folder), "--behave", behave, "DATASET.NUM_SHOTS", "16")
    jobs.append(Job("BMIP", "tiny", "digits", 16, 1, folder, arguments, None, r"PROGRAM"))
sweep.build_queue = lambda plan: jobs
sys.exit(sweep.main(["--trainers", "BMIP", "--datasets", "digits", "--output", r"OUTPUT", "--gpus", "--slots", "1"]))
"""


def start_driver(request, tmp_path, behave):
    program = str(request.config.rootpath / "tests" / "stand_in_train.py")
    code = DRIVER.replace("OUTPUT", str(tmp_path)).replace("PROGRAM", program).replace("BEHAVE", behave)
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=request.config.rootpath, stdout=subprocess.PIPE, text=True
    )


def wait_for(path, seconds=30):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_children_and_the_next_call_goes_on(number, request, tmp_path):
    driver = start_driver(request, tmp_path, "sleep")
    wait_for(tmp_path / "b" / "console.txt")
    while "started" not in (tmp_path / "b" / "console.txt").read_text():
        time.sleep(0.02)
    time.sleep(0.2)  # its handler
    driver.send_signal(number)
    out, _ = driver.communicate(timeout=60)
    assert driver.returncode == 128 + number
    assert "1 finished, 0 failed, 2 to be run; stopped: the same command goes on" in out
    assert "ended politely" in (tmp_path / "b" / "console.txt").read_text()
    assert not (tmp_path / "c").exists()
    again = start_driver(request, tmp_path, "finish")
    out, _ = again.communicate(timeout=60)
    assert again.returncode == 0
    assert "3 runs: 3 finished" in out
    assert len(list((tmp_path / "a").glob("start*"))) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="children are tied to the sweep on Linux only")
def test_children_end_with_a_sweep_that_is_killed(request, tmp_path):
    driver = start_driver(request, tmp_path, "sleep")
    wait_for(tmp_path / "b" / "start0")
    time.sleep(0.2)
    driver.kill()
    driver.communicate(timeout=60)
    deadline = time.monotonic() + 30
    while "ended politely" not in (tmp_path / "b" / "console.txt").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_child_killed_from_outside_is_named(request, tmp_path, make_job):
    job, stream, stop = make_job("a", "sleep"), io.StringIO(), Stop()
    processes = Processes([Slot("", 1)], stop)
    job.folder.mkdir()
    processes.start(job)
    processes.children[0][1].kill()
    work_off([], processes, Progress([job], 1, stream), stop)
    assert "killed by SIGKILL" in stream.getvalue()
    assert not is_finished(job.folder)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_lines_when_not_a_terminal_and_one_live_line_on_one(make_job):
    jobs = [make_job("a"), make_job("b")]
    plain, live = io.StringIO(), Terminal()
    for stream in (plain, live):
        progress = Progress(jobs, 1, stream)
        progress.start(jobs[0])
        progress.finish(jobs[0])
    assert "\r" not in plain.getvalue()
    assert plain.getvalue().splitlines()[1].startswith("[1/2] finished BMIP tiny digits 16 shots seed 1 (0:00:00)")
    assert "\r\x1b[K" in live.getvalue()
    assert "1 done, 0 running, 0 failed, 1 waiting of 2" in live.getvalue()


def test_the_time_left_follows_from_measured_runs_of_the_same_kind_only(make_job, tmp_path):
    jobs = [make_job(name) for name in "abc"] + [make_job("test", needs=tmp_path / "a")]
    progress = Progress(jobs, 2, stream := io.StringIO())
    assert progress.eta() == (0, False)
    progress.skip(jobs[0], {"timing": {"total": 3600.0}})
    assert progress.eta() == (
        pytest.approx(3600.0),
        False,
    )  # two like it in two slots, and one that nothing is known of
    progress.line("before")
    assert stream.getvalue() == "[1/4] before, at least 60 minutes left\n"
    progress.skip(jobs[3], {"timing": {"total": 10.0}})
    assert progress.eta() == (pytest.approx(3600.0), True)
    other = replace(jobs[1], dataset="emoji", folder=tmp_path / "emoji")
    progress = Progress([jobs[0], other], 1, io.StringIO())
    progress.skip(jobs[0], {"timing": {"total": 60.0}})
    assert progress.eta() == (pytest.approx(60.0), True)  # the same method on other data


def test_a_sweep_says_first_what_it_runs_and_how_long_that_takes(make_job, run, capsys, tmp_path):
    jobs = [make_job("seed1"), replace(make_job("seed2"), seed=2)]
    assert run(jobs[:1]) == 0
    assert capsys.readouterr().out.startswith(
        f"1 run: BMIP (tiny)\non digits; 16 shots; seeds 1; written to {tmp_path}\n[0/1] start "
    )
    assert run(jobs[1:]) == 0  # beside the first, which took 10 seconds
    assert f"seeds 2; written to {tmp_path}, about 1 minute left\n" in capsys.readouterr().out
    assert run([jobs[0], make_job("third")]) == 0
    assert capsys.readouterr().out.startswith("2 runs, 1 of them finished already and skipped: BMIP (tiny)\n")


@pytest.mark.parametrize(("seconds", "text"), [(41.6, "0:00:42"), (200, "0:03:20"), (7500, "2:05:00")])
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.fixture
def train_inline(monkeypatch):
    """Put a function in train.main's place."""

    def put(main):
        module = types.ModuleType("train")
        module.main = main
        monkeypatch.setitem(sys.modules, "train", module)

    return put


@pytest.fixture
def run_inline(train_inline, monkeypatch):
    """Let the inline launcher run the jobs' own program in train.main's place."""
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(variable, "1")  # set by the launcher, put back after the test

    def put(jobs):
        def main(arguments):
            subprocess.run([sys.executable, jobs[0].program, *arguments], check=True, stdout=subprocess.DEVNULL)
            return 0

        train_inline(main)

    return put


def test_inline_runs_go_on_after_an_error(make_job, run, train_inline, capsys, monkeypatch):
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(variable, "1")  # set by the launcher, put back after the test

    def main(arguments):
        folder = arguments[arguments.index("--output-dir") + 1]
        if folder.endswith("bad"):
            raise ZeroDivisionError("a bug")
        subprocess.run([sys.executable, jobs[0].program, *arguments], check=True, stdout=subprocess.DEVNULL)
        return 0

    train_inline(main)
    jobs = [make_job("bad"), make_job("good")]
    assert run(jobs, "--launcher", "inline") == 1
    assert "ZeroDivisionError: a bug" in capsys.readouterr().out
    assert not is_finished(jobs[0].folder)
    assert is_finished(jobs[1].folder)


def test_a_signal_interrupts_an_inline_run(make_job, run, train_inline, capsys, monkeypatch):
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(variable, "1")

    def main(arguments):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(30)
        return 0

    train_inline(main)
    jobs = [make_job("a"), make_job("b")]
    assert run(jobs, "--launcher", "inline") == 130
    assert "0 finished, 0 failed, 2 to be run; stopped" in capsys.readouterr().out
    assert earlier_failure(jobs[0]) is None
