"""The Slurm launcher: with submitit's own local executor, and on a real Slurm of one node where one is installed.

Debian and Ubuntu: apt-get install slurm-wlm munge. The test starts its own daemons, as root, on ports of its own.
"""

import contextlib
import io
import os
import pickle
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

import sweep
from sweeping.plan import Job
from sweeping.runner import Progress, Stop, earlier_failure, work_off
from sweeping.slurm import Chain, Slurm

pytest.importorskip("submitit", reason="submitit is not installed")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel")


@pytest.fixture
def make_job(tmp_path, request):
    program = str(request.config.rootpath / "tests" / "stand_in_train.py")

    def make(name, behave="finish", needs=None):
        folder = tmp_path / "runs" / name
        arguments = ("--output-dir", str(folder), "--behave", behave, "DATASET.NUM_SHOTS", "16")
        return Job("BMIP", "tiny", "digits", 16, 1, folder, arguments, needs and tmp_path / "runs" / needs, program)

    return make


def launch(jobs, tmp_path, cluster, *options):
    stream = io.StringIO()
    progress = Progress(jobs, 1, stream)
    args = sweep.parse(["--trainers", "BMIP", "--time-limit", "5", "--job-gpus", "0", "--job-cpus", "1", *options])
    work_off(jobs, Slurm(args, jobs, progress, tmp_path / "runs", cluster), progress, Stop())
    return progress, stream.getvalue()


def test_a_chain_survives_pickling_while_it_runs(make_job):
    chain = Chain([make_job("a")], threads=2)
    chain._child = open(os.devnull)  # noqa: SIM115 a handle that cannot be pickled, as a process is
    with contextlib.closing(chain._child):
        copy = pickle.loads(pickle.dumps(chain))
    assert (copy.jobs, copy.threads, copy._child) == (chain.jobs, 2, None)


def test_with_submitits_local_executor(make_job, tmp_path, monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)  # the job's process imports from here
    jobs = [make_job("good"), make_job("bad", "fail"), make_job("test", needs="good")]
    jobs += [make_job("bad test", "fail", needs="good")]
    progress, text = launch(jobs, tmp_path, "local")
    assert {path.name for path in progress.finished} == {"good", "test"}
    assert {path.name for path in progress.failures} == {"bad", "bad test"}
    assert all("exit status 2, error: the data are not there" in reason for reason in progress.failures.values())
    assert all(len(list(job.folder.glob("start*"))) == 1 for job in jobs)
    assert "2 jobs submitted" in text


def test_a_failed_training_fails_the_tests_of_its_weights(make_job, tmp_path, monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    train, test = make_job("train", "fail"), make_job("test", needs="train")
    progress, _ = launch([train, test], tmp_path, "local")
    reason = "exit status 2, error: the data are not there"
    assert progress.failures.pop(train.folder) == earlier_failure(train) == reason
    assert progress.failures.pop(test.folder) == f"needs the run in {train.folder}, which is not finished"


@pytest.fixture
def queued(make_job, tmp_path, monkeypatch):
    """A training that runs with one of its tests, two in one job of an earlier version, and one that waits."""
    jobs = [make_job(name) for name in ("a", "b", "c", "new")]
    jobs += [make_job("test", needs="a"), make_job("test of new", needs="new")]
    for job, name in zip(jobs, ("7_0", "7_0", "8_1"), strict=False):
        job.folder.mkdir(parents=True)
        (job.folder / "slurm_job.txt").write_text(f"{name}\n")
    monkeypatch.setattr(Slurm, "_queue_states", lambda self: {"7_0": "RUNNING", "8_1": "PENDING"})
    progress = Progress(jobs, 1, io.StringIO())
    return jobs, progress, Slurm(sweep.parse(["--trainers", "BMIP"]), jobs, progress, tmp_path)


def test_what_is_queued_is_watched_and_the_rest_submitted_with_the_tests_of_its_weights(queued):
    (a, b, c, new, test, test_of_new), _, slurm = queued
    for job in (a, b, c, new):
        slurm.start(job)
    assert slurm.jobs == [a, b, c, new]
    assert [chain.jobs for chain in slurm._new] == [(new, test_of_new)]
    slurm.start(test)  # its weights are there, and its job is not in the queue
    assert [chain.jobs for chain in slurm._new] == [(new, test_of_new), (test,)]


def test_what_runs_is_told_and_what_waits_is_not(queued):
    (a, b, c, *_), progress, slurm = queued
    for job in (a, b, c):
        slurm.start(job)
    assert slurm.ended() == []
    assert progress.running.keys() == {a.folder}  # the one after it in its Slurm job is next
    assert "0 jobs submitted, 2 were queued before" in progress.stream.getvalue()
    assert "scancel 7 8 cancels them" in progress.stream.getvalue()


class Cluster:
    """A Slurm of one node with its own daemons in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.daemons = folder, []
        for name in ("state", "spool"):
            (folder / name).mkdir(parents=True)
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        self.config = folder / "slurm.conf"
        self.config.write_text(self._settings())

    def _settings(self) -> str:
        host, (controller, node) = socket.gethostname().partition(".")[0], free_ports(2)
        return f"""
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={self.folder}/munge.socket,cred_expire=5
SlurmctldPort={controller}
SlurmdPort={node}
StateSaveLocation={self.folder}/state
SlurmdSpoolDir={self.folder}/spool
SlurmctldPidFile={self.folder}/slurmctld.pid
SlurmdPidFile={self.folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=2
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=1
NodeName={host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""

    def start(self) -> None:
        f = self.folder
        munge = ["--socket", f / "munge.socket", "--key-file", f / "munge.key", "--pid-file", f / "munge.pid"]
        munge += ["--log-file", f / "munge.log", "--seed-file", f / "munge.seed"]
        self._daemon("munged", "--foreground", "--force", *munge)
        self._until(lambda: (f / "munge.socket").exists())
        self._daemon("slurmctld", "-D", "-f", self.config)
        self._daemon("slurmd", "-D", "-f", self.config)
        self._until(lambda: "idle" in command_output("sinfo", "--noheader", "--format=%T"))

    def _daemon(self, *command) -> None:
        log = (self.folder / f"{command[0]}.out").open("wb")
        path = shutil.which(command[0], path=search_path())
        self.daemons.append(subprocess.Popen([path, *map(str, command[1:])], stdout=log, stderr=log))

    def _until(self, ready, seconds=20) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > deadline or any(daemon.poll() is not None for daemon in self.daemons):
                logs = "".join(path.read_text()[-500:] for path in self.folder.glob("*.out"))
                pytest.skip(f"Slurm does not start here: {logs}")
            time.sleep(0.1)

    def stop(self) -> None:
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()


def search_path() -> str:
    return os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def command_output(*command):
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


@pytest.fixture
def cluster(tmp_path, monkeypatch, request):
    missing = [name for name in PROGRAMS if shutil.which(name, path=search_path()) is None]
    if missing:
        pytest.skip(f"Slurm is not installed ({', '.join(missing)}): apt-get install slurm-wlm munge")
    if os.geteuid() != 0:
        pytest.skip("starting Slurm's daemons needs root")
    cluster = Cluster(tmp_path / "slurm")
    monkeypatch.setenv("SLURM_CONF", str(cluster.config))
    monkeypatch.chdir(request.config.rootpath)
    monkeypatch.setattr("sweeping.slurm.POLL_SECONDS", 0.3)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def wait_for(path, seconds=60):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.05)


@pytest.mark.slow
def test_on_a_real_slurm(cluster, make_job, tmp_path):
    """An array with a run that is requeued in the middle, one that fails and one that tests the first one's weights."""
    jobs = [make_job("requeued", "twice"), make_job("bad", "fail"), make_job("test", needs="requeued")]
    requeued, bad, test = jobs
    launch(jobs, tmp_path, "slurm", "--no-wait")
    wait_for(requeued.folder / "start0")
    wait_for(bad.folder / "failed.json")
    time.sleep(0.5)
    job_id = (requeued.folder / "slurm_job.txt").read_text().strip()
    # what Slurm sends when the time limit is near
    subprocess.run(["scancel", f"--signal={signal.Signals.SIGUSR1.name[3:]}", job_id], check=True)
    progress, text = launch([requeued, test], tmp_path, "slurm")  # the next call submits nothing twice
    assert "0 jobs submitted, 1 were queued before" in text
    assert progress.finished == {requeued.folder, test.folder}
    assert earlier_failure(bad) == "exit status 2, error: the data are not there"
    assert len(list(requeued.folder.glob("start*"))) == 2
    assert "ended politely" in (requeued.folder / "console.txt").read_text()
