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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sweeping.plan import Job, SweepError
from sweeping.runner import (
    CONSOLE_FILE,
    Child,
    Progress,
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
    """Those options as submitit's executors take them."""
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
        """Run what is not finished; returns the number of runs, RuntimeError where one failed."""
        failures = []
        for job in self.jobs:
            if is_finished(job.folder) or (job.needs is not None and not is_finished(job.needs)):
                continue
            make_ready(job)
            with (job.folder / CONSOLE_FILE).open("ab") as console:
                environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
                start = console.tell()
                self._child = start_process(job, console, environment, preexec_fn=_ignore_warning)
                reason = outcome(job, self._child.wait(), start)
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


class Slurm:
    """Submits jobs as one array and watches them; a stop ends the watching, and the jobs go on by themselves.

    The cluster is submitit's name for where jobs run: "slurm", or "local" to try it out without one. A SweepError where
    submitit or Slurm is missing, or refuses.
    """

    queues = True

    def __init__(self, args: Any, jobs: list[Job], progress: Progress, output: Path, cluster: str = "slurm") -> None:
        self.args, self.progress, self.output, self.cluster = args, progress, output, cluster
        self.parameters = parameters(args, cluster)
        self.detached = False
        self.jobs: list[Job] = []
        self._tests = {folder: [job for job in jobs if job.needs == folder] for folder in {job.needs for job in jobs}}
        self._new: list[Chain] = []  # to be submitted at the next look
        self._handles: dict[str, Any] = {}  # submitit's, by id
        self._gone: dict[Path, float] = {}  # since when a job has not been in the queue
        self._announce, self._looked = True, 0.0
        self._states = self._queue_states()

    def is_free(self) -> bool:
        return True

    def start(self, job: Job) -> None:
        """Take a job that is in the queue already, or have it submitted with the tests of its weights."""
        self.jobs.append(job)
        if _job_id(job) not in self._states:
            self._new.append(Chain([job, *self._tests.get(job.folder, ())], self.args.job_cpus))
            self._announce = True

    def ended(self) -> list[tuple[Job, str | None]]:
        """As that of `Processes`; looks every few seconds, and also tells the progress view what runs."""
        if self._announce and self.jobs:
            self._submit()
        now = time.monotonic()
        if now - self._looked < (POLL_SECONDS if self.cluster == "slurm" else 0.2):
            return []
        self._looked, self._states = now, self._queue_states()
        ended, at_work = [], set()
        for job in self.jobs:
            name = _job_id(job)
            state, since = self._states.get(name), self._gone.setdefault(job.folder, now)
            if is_finished(job.folder):
                ended.append((job, None))
            elif (reason := earlier_failure(job)) is not None:
                ended.append((job, reason))
            elif state is None:
                if now - since > FILES_SECONDS:
                    ended.append((job, f"its Slurm job {name} ended without results"))
                continue
            elif state == "RUNNING" and name not in at_work:  # the others of its chain come after it
                at_work.add(name)
                if job.folder not in self.progress.running:
                    self.progress.start(job)
            else:
                self.progress.drop(job)  # waiting, or back in the queue
            del self._gone[job.folder]
        gone = {job.folder for job, _ in ended}
        self.jobs = [job for job in self.jobs if job.folder not in gone]
        return ended

    def end(self) -> None:
        """Nothing: the jobs go on by themselves."""

    def _submit(self) -> None:
        """Submit what is new as one array, and say so."""
        new, self._new, self._announce = self._new, [], False
        if new:
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
                with executor.batch():
                    submitted = [executor.submit(chain) for chain in new]
            except (RuntimeError, submitit.core.utils.FailedJobError, NameError) as error:
                raise SweepError(f"Slurm did not take the jobs: {error}") from error
            for chain, handle in zip(new, submitted, strict=True):
                self._handles[handle.job_id] = handle
                for job in chain.jobs:
                    job.folder.mkdir(parents=True, exist_ok=True)
                    (job.folder / JOB_FILE).write_text(handle.job_id + "\n", encoding="utf-8")
        names = {_job_id(job) for job in self.jobs}
        self.progress.line(f"{len(new)} jobs submitted, {len(names) - len(new)} were queued before")
        self.progress.line(f"scancel {' '.join(sorted({name.partition('_')[0] for name in names}))} cancels them")
        self.detached = self.args.no_wait

    def _queue_states(self) -> dict[str, str]:
        """State of every job of this user that Slurm has not done with, by id."""
        if self.cluster != "slurm":
            return {name: "RUNNING" for name, handle in self._handles.items() if not handle.done()}
        command = ["squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i %T"]
        try:
            listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        except FileNotFoundError as error:
            raise SweepError("--launcher slurm: no squeue on this machine; start the sweep on a login node") from error
        except subprocess.CalledProcessError as error:
            raise SweepError(f"squeue failed: {error.stderr.strip()}") from error
        ended = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"}
        return dict(pair for line in listed.splitlines() if (pair := line.split())[1] not in ended)


def _job_id(job: Job) -> str:
    """The Slurm job that has or had the run; "" for none."""
    try:
        return (job.folder / JOB_FILE).read_text(encoding="utf-8").strip()
    except OSError:
        return ""
