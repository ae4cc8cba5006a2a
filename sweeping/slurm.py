"""The Slurm launcher: a job array through submitit; jobs that reach their time limit are requeued and resume.

Slurm signals a job before its time is up; the run is ended, the job goes back into the queue, and train.py goes on
from its last checkpoint. Needs `pip install submitit` where the sweep is started and where the jobs run.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sweeping.plan import Job, SweepError
from sweeping.runner import (
    CONSOLE_FILE,
    FAILURE_FILE,
    Child,
    Progress,
    Stop,
    earlier_failure,
    is_finished,
    make_ready,
    outcome,
    start_process,
)

JOB_FILE = "slurm_job.txt"
SUBMITIT_FOLDER = ".slurm"
END_SECONDS = 60  # for a run to end once its job is told to
MAX_REQUEUES = 50  # a run that resumes may reach its time limit often
POLL_SECONDS = 5.0
# How long a job that left the queue may take until its files are seen here (network file systems).
FILES_SECONDS = 60.0


def add_arguments(group: Any) -> None:
    """Declare what every job asks Slurm for on an argparse group."""
    group.add_argument("--time-limit", type=int, default=240, metavar="MINUTES", help="default: %(default)s")
    group.add_argument("--job-gpus", type=int, default=1, metavar="N", help="per job; default: %(default)s")
    group.add_argument("--job-cpus", type=int, default=8, metavar="N", help="per job; default: %(default)s")
    group.add_argument("--partition", default="", help="default: the cluster's")
    group.add_argument("--parallel", type=int, default=256, metavar="N", help="jobs at once; default: %(default)s")
    group.add_argument("--slurm", nargs="+", default=[], metavar="KEY=VALUE", help="mem=16G, account=..., qos=...")
    group.add_argument("--no-wait", action="store_true", help="submit and return; the same command watches")


def parameters(args: argparse.Namespace, cluster: str) -> dict[str, Any]:
    """Those options as submitit's executors take them.

    Raises:
        SweepError: a parameter without a value.
    """
    for text in args.slurm:
        if "=" not in text:
            raise SweepError(f"--slurm {text!r}: write KEY=VALUE")
    asked = {"timeout_min": args.time_limit, "name": "sweep", "cpus_per_task": args.job_cpus}
    asked |= {"gpus_per_node": args.job_gpus} if args.job_gpus else {}
    if cluster != "slurm":
        return asked
    asked |= {"slurm_array_parallelism": args.parallel, "slurm_use_srun": True}
    asked |= {"slurm_partition": args.partition} if args.partition else {}
    return asked | {f"slurm_{key}": value for key, value in (text.split("=", 1) for text in args.slurm)}


class Chain:
    """Runs that one Slurm job does one after another: one that trains, and the tests of its weights."""

    def __init__(self, jobs: Sequence[Job], threads: int) -> None:
        self.jobs, self.threads = tuple(jobs), threads
        self._child: Child | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_child": None}

    def __call__(self) -> int:
        """Run what is not finished; returns the number of runs that are.

        Raises:
            RuntimeError: a run failed.
        """
        failures = []
        for job in self.jobs:
            if is_finished(job.folder) or (job.needs is not None and not is_finished(job.needs)):
                continue
            make_ready(job)
            with (job.folder / CONSOLE_FILE).open("ab") as console:
                environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
                self._child = start_process(job, console, environment, preexec_fn=_ignore_warning)
                reason = outcome(job, self._child.wait())
            if reason is not None:
                failures.append(f"{job.label}: {reason}")
        if failures:
            raise RuntimeError("; ".join(failures))
        return len(self.jobs)

    def checkpoint(self) -> Any:
        """Called by submitit when the job's time is nearly up: end the run and ask for the job to be queued again."""
        import submitit

        if self._child is not None:
            self._child.terminate()
            deadline = time.monotonic() + END_SECONDS
            while _is_alive(self._child.pid) and time.monotonic() < deadline:
                time.sleep(0.1)
        return submitit.helpers.DelayedSubmission(self)


def _ignore_warning() -> None:
    """In the child: Slurm warns every process of the job; the run is to hear it from this one, as SIGTERM."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def _is_alive(pid: int) -> bool:
    """Whether a child runs. This is asked inside a signal handler that interrupted Popen.wait(), which holds a lock."""
    with contextlib.suppress(ChildProcessError):
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    return False


def chains_of(jobs: Sequence[Job], threads: int) -> list[Chain]:
    """Jobs, in order, with those that need them; what needs a finished run stands alone."""
    groups: dict[Path, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.needs if job.needs in groups else job.folder, []).append(job)
    return [Chain(group, threads) for group in groups.values()]


class SlurmLauncher:
    """Submits a queue and watches it; a stop ends the watching, and the jobs go on by themselves.

    The cluster is submitit's name for where jobs run: "slurm", or "local" to try it out without one.
    """

    def __init__(self, args: Any, progress: Progress, stop: Stop, output: Path, cluster: str = "slurm") -> None:
        self.args, self.progress, self.stop, self.output, self.cluster = args, progress, stop, output, cluster
        self.parameters = parameters(args, cluster)
        self._gone: dict[str, float] = {}  # since when, of jobs that have left the queue

    def run(self, jobs: Sequence[Job]) -> None:
        """Submit the jobs that no earlier call has in the queue, and watch until all ended or a stop is asked for.

        Raises:
            SweepError: submitit or Slurm is missing, or refuses.
        """
        folders, ready = {job.folder for job in jobs}, []
        for job in jobs:
            if job.needs is None or is_finished(job.needs) or job.needs in folders:
                ready.append(job)
            else:
                self.progress.fail(job, f"needs the run in {job.needs}, which is not finished")
        watched = self._queued_before(ready, self._queue_states() if self.cluster == "slurm" else {})
        known = {job.folder for chain in watched.values() for job in chain.jobs}
        before, new = len(watched), chains_of([job for job in ready if job.folder not in known], self.args.job_cpus)
        handles = self._submit(new) if new else {}
        watched |= {_job_id(chain.jobs[0]): chain for chain in new}
        if not watched:
            return
        self.progress.line(f"{len(new)} jobs submitted, {before} were queued before")
        self.progress.line(f"scancel {' '.join(sorted({name.partition('_')[0] for name in watched}))} cancels them")
        while not self.args.no_wait and watched and not self.stop.signal:
            self._look_at(watched, handles)
            self.progress.tick()
            deadline = time.monotonic() + (POLL_SECONDS if self.cluster == "slurm" else 0.2)
            while time.monotonic() < deadline and not self.stop.signal:
                time.sleep(0.1)
                self.progress.tick()

    def _queued_before(self, jobs: Sequence[Job], queued: Mapping[str, str]) -> dict[str, Chain]:
        """What earlier calls have in the queue, by id; tests of weights that are being trained belong to that job."""
        ids: dict[Path, str] = {}
        members: dict[str, list[Job]] = {}
        for job in jobs:
            name = ids.get(job.needs, _job_id(job)) if job.needs else _job_id(job)
            if name in queued:
                ids[job.folder] = name
                members.setdefault(name, []).append(job)
        return {name: Chain(group, self.args.job_cpus) for name, group in members.items()}

    def _submit(self, chains: Sequence[Chain]) -> dict[str, Any]:
        """Submit one array; returns submitit's handles by job id."""
        # the user signal that submitit listens to; its own default is USR2
        os.environ.setdefault("SUBMITIT_PREEMPT_SIGNAL", "USR1")
        try:
            import submitit
        except ImportError as error:
            raise SweepError("--launcher slurm needs submitit: pip install submitit") from error
        more = {f"{self.cluster}_max_num_timeout": MAX_REQUEUES} if self.cluster == "slurm" else {}
        try:
            executor = submitit.AutoExecutor(self.output / SUBMITIT_FOLDER / "%j", cluster=self.cluster, **more)
            executor.update_parameters(**self.parameters)
            for chain in chains:
                for job in chain.jobs:
                    (job.folder / FAILURE_FILE).unlink(missing_ok=True)
            with executor.batch():
                submitted = [executor.submit(chain) for chain in chains]
        except (RuntimeError, submitit.core.utils.FailedJobError, NameError) as error:
            raise SweepError(f"Slurm did not take the jobs: {error}") from error
        for chain, handle in zip(chains, submitted, strict=True):
            for job in chain.jobs:
                job.folder.mkdir(parents=True, exist_ok=True)
                (job.folder / JOB_FILE).write_text(handle.job_id + "\n", encoding="utf-8")
        return {handle.job_id: handle for handle in submitted}

    def _look_at(self, watched: dict[str, Chain], handles: Mapping[str, Any]) -> None:
        """Tell the progress view what has changed; ended jobs are watched no more."""
        if self.cluster == "slurm":
            states = self._queue_states()
        else:
            states = {name: "RUNNING" for name in watched if name in handles and not handles[name].done()}
        for name, chain in list(watched.items()):
            self._settle(chain, states.get(name))
            if name in states:
                self._gone.pop(name, None)
                continue
            since = self._gone.setdefault(name, time.monotonic())
            if not self._unsettled(chain) or time.monotonic() - since > FILES_SECONDS:
                del watched[name]
                for job in self._unsettled(chain):
                    self.progress.fail(job, f"its Slurm job {_job_id(job)} ended without results")

    def _queue_states(self) -> dict[str, str]:
        """State of every job of this user that Slurm has not done with, by id."""
        command = ["squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i %T"]
        try:
            listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        except FileNotFoundError as error:
            raise SweepError(
                "--launcher slurm: there is no squeue on this machine; start the sweep on a login node"
            ) from error
        except subprocess.CalledProcessError as error:
            raise SweepError(f"squeue failed: {error.stderr.strip()}") from error
        ended = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"}
        return dict(pair for line in listed.splitlines() if (pair := line.split())[1] not in ended)

    def _settle(self, chain: Chain, state: str | None) -> None:
        """Take note of a chain's finished, failed and running jobs."""
        for job in self._unsettled(chain):
            if is_finished(job.folder):
                self.progress.finish(job)
            elif (reason := earlier_failure(job)) is not None:
                self.progress.fail(job, reason)
            elif job.needs in self.progress.failures:
                self.progress.fail(job, f"needs the run in {job.needs}, which failed")
        for job in self._unsettled(chain)[:1]:  # at work, or next
            if state == "RUNNING" and job.folder not in self.progress.running:
                self.progress.start(job)
            elif state is not None and state != "RUNNING":
                self.progress.drop(job)  # waiting, or back in the queue

    def _unsettled(self, chain: Chain) -> list[Job]:
        known = self.progress.finished | self.progress.failures.keys()
        return [job for job in chain.jobs if job.folder not in known]


def _job_id(job: Job) -> str:
    """The Slurm job that has or had the run; "" for none."""
    try:
        return (job.folder / JOB_FILE).read_text(encoding="utf-8").strip()
    except OSError:
        return ""
