"""The local launcher: one process on each GPU, or on each share of the CPU's cores."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import FrameType

from sweeping.claims import Claims
from sweeping.jobs import Job
from sweeping.progress import Progress
from sweeping.settings import REPOSITORY, SweepError
from sweeping.state import CONSOLE_FILE, console_tail, forget_failure, is_finished, record_failure
from sweeping.together import common_arguments, companions, share_console

POLL_SECONDS = 0.1
STOP_SECONDS = 30.0  # for a child to write its checkpoint and end
CORES_PER_CPU_SLOT = 4
MOST_SLOTS = 1024
STOPPED = 75  # train.py's exit status when a signal stopped it
NOT_ITS_FAULT = (STOPPED, 69)  # 69: another process works in the folder
STOPPED_REASON = "stopped by a signal, its state is saved: the same command goes on"


@dataclass(frozen=True)
class Slot:
    """A place for one process.

    Attributes:
        gpu: value of CUDA_VISIBLE_DEVICES; "" hides all GPUs.
        threads: OMP_NUM_THREADS.
    """

    gpu: str
    threads: int

    def environment(self) -> dict[str, str]:
        """The environment of the process."""
        threads = {name: str(self.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        return {**os.environ, **threads, "CUDA_VISIBLE_DEVICES": self.gpu}


def slots_for(gpus: Sequence[str] | None, count: int | None) -> list[Slot]:
    """The slots of this machine; the cores are shared out evenly.

    Args:
        gpus: ids to use; None for all that are visible, empty for none.
        count: slots in all; default one per GPU, or one per four cores without a GPU.

    Raises:
        SweepError: no slot at all.
    """
    gpus = visible_gpus() if gpus is None else _checked_gpus(list(gpus))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = (len(gpus) or max(1, cores // CORES_PER_CPU_SLOT)) if count is None else count
    if not 1 <= count <= MOST_SLOTS:
        raise SweepError(f"--slots {count}: at least one process must run, and at most {MOST_SLOTS}")
    # a user who sets it knows why, for example that the machine is not theirs alone
    threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, cores // count))
    return [Slot(gpus[index % len(gpus)] if gpus else "", threads) for index in range(count)]


def _checked_gpus(gpus: list[str]) -> list[str]:
    """The ids themselves, once each is a number or an id of NVIDIA's, none comes twice, and none is known to lack."""
    given = f"--gpus {' '.join(gpus)}"
    for gpu in gpus:
        if not re.fullmatch(r"[0-9]{1,4}|(GPU|MIG)-[0-9A-Za-z/-]+", gpu, flags=re.ASCII):
            raise SweepError(f"{given}: {gpu!r} is no GPU's number; write them with spaces between, for example 0 1")
    numbers = [str(int(gpu)) if gpu.isdecimal() else gpu for gpu in gpus]
    if len(set(numbers)) < len(numbers):
        raise SweepError(f"{given}: a GPU comes twice; --slots sets how many processes share them")
    there = _listed_gpus()
    missing = [gpu for gpu in numbers if gpu.isdecimal() and there and gpu not in there]
    if missing:
        raise SweepError(f"{given}: there is no GPU {missing[0]}; this machine has {', '.join(there)}")
    return numbers


def visible_gpus() -> list[str]:
    """Ids of the GPUs that this process may use, without loading torch."""
    if (given := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [gpu for gpu in given.split(",") if gpu.strip() not in ("", "-1")]
    return _listed_gpus()


def _listed_gpus() -> list[str]:
    """Ids of the machine's GPUs; none where its driver's tool is not there to tell."""
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(
        ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    return listed.stdout.split() if listed.returncode == 0 else []


@dataclass
class Stop:
    """Whether to stop, and how hard; set by signals.

    Attributes:
        signal: the last one received; 0: none.
        at_once: a second one came.
        interrupts: whether a signal also raises KeyboardInterrupt, for work that does not ask.
    """

    signal: int = 0
    at_once: bool = False
    interrupts: bool = False

    def request(self, number: int, _frame: FrameType | None = None) -> None:
        """A first signal asks for an end, a second one for an end at once."""
        self.at_once, self.signal = self.signal != 0, number
        if self.interrupts:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def listening(self) -> Iterator[Stop]:
        """SIGINT, SIGTERM and SIGUSR1 come here while the context lasts."""
        numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
        before = {number: signal.signal(number, self.request) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@dataclass
class LocalLauncher:
    """Works off a queue on this machine.

    Attributes:
        slots: where processes run.
        progress: is told what happens.
        stop: is asked whether to go on.
        foreground: processes write to the terminal instead of into a file.
        seeds: jobs that differ in the seed only and that one process takes at most.
    """

    slots: Sequence[Slot]
    progress: Progress
    stop: Stop
    foreground: bool = False
    seeds: int = 1
    _children: dict[int, tuple[list[Job], subprocess.Popen[bytes]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._claims = Claims(self.progress)

    def run(self, jobs: Sequence[Job]) -> None:
        """Run the jobs in order, each after the one that it needs; returns when all ended or a stop was asked for."""
        waiting = list(jobs)
        try:
            while (waiting or self._children) and not self.stop.signal:
                self._collect()
                self._fill(waiting)
                self.progress.tick()
                time.sleep(POLL_SECONDS)
        finally:
            self._end_children()

    def _fill(self, waiting: list[Job]) -> None:
        """Start ready jobs in free slots; jobs that can never be ready fail."""
        for job in list(waiting):
            if job not in waiting:
                continue  # it went with another seed
            if self._claims.settled_elsewhere(job):
                waiting.remove(job)
                continue
            blocked = self._blocked(job, waiting)
            if blocked is True:
                continue
            free = [index for index in range(len(self.slots)) if index not in self._children]
            if blocked:
                waiting.remove(job)
                self.progress.fail(job, blocked)
            elif free and self._claims.take(job):
                _, *others = companions(job, waiting, self.seeds)
                jobs = [job, *(other for other in others if self._claims.take(other))]
                for started in jobs:
                    waiting.remove(started)
                self._start(jobs, free[0])

    def _blocked(self, job: Job, waiting: Sequence[Job]) -> bool | str:
        """False: ready; True: what it needs is under way; a text: what it needs will not come."""
        if job.needs is None or is_finished(job.needs):
            return False
        under_way = [*waiting, *(other for others, _ in self._children.values() for other in others)]
        if any(other.folder == job.needs for other in under_way):
            return True
        return f"needs the run in {job.needs}, which is not finished"

    def _start(self, jobs: Sequence[Job], index: int) -> None:
        jobs = [job for job in jobs if not self._was_settled_elsewhere(job)]
        if not jobs:
            return
        for job in jobs:
            forget_failure(job)
            job.folder.mkdir(parents=True, exist_ok=True)
        job = jobs[0]
        with contextlib.ExitStack() as stack:
            output = None if self.foreground else stack.enter_context((job.folder / CONSOLE_FILE).open("wb"))
            child = subprocess.Popen(
                replace(job, arguments=common_arguments(jobs)).command(sys.executable),
                cwd=REPOSITORY,
                env=self.slots[index].environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if output else None,
                start_new_session=True,  # Ctrl-C on the terminal is for the sweep, which ends its children itself
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )
        self._children[index] = (jobs, child)
        for job in jobs:
            self.progress.start(job)

    def _was_settled_elsewhere(self, job: Job) -> bool:
        """Whether another sweep has ended a claimed job since this one looked; then the claim is given up."""
        settled = self._claims.settled_elsewhere(job)
        if not settled and is_finished(job.folder):
            self.progress.finish(job)
            settled = True
        if settled:
            self._claims.release(job)
        return settled

    def _collect(self) -> None:
        """Take note of the processes that ended."""
        for index, (jobs, child) in list(self._children.items()):
            status = child.poll()
            if status is None:
                continue
            del self._children[index]
            for job, reason in outcomes(jobs, status):
                self._claims.release(job)
                if reason is None:
                    self.progress.finish(job)
                else:
                    self.progress.fail(job, reason)

    def _end_children(self) -> None:
        """End what still runs: first politely, then, after a while or a second signal, by force."""
        self._signal_all(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while self._alive() and time.monotonic() < deadline and not self.stop.at_once:
            time.sleep(POLL_SECONDS)
        self._signal_all(signal.SIGKILL)
        for jobs, child in self._children.values():
            child.wait()
            for job in jobs:
                self._claims.release(job)
                # one that finished in the meantime is finished
                (self.progress.finish if is_finished(job.folder) else self.progress.drop)(job)
        self._children.clear()

    def _alive(self) -> bool:
        return any(child.poll() is None for _, child in self._children.values())

    def _signal_all(self, number: int) -> None:
        for _, child in self._children.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, number)  # the loader's workers, too


def outcomes(jobs: Sequence[Job], status: int) -> list[tuple[Job, str | None]]:
    """What became of the jobs of a process that ended: why each is not finished, None for those that are.

    Those that failed by themselves have word of it left in their folders.

    Args:
        jobs: several for seeds that were trained together.
        status: of the process; with several seeds, that of the one that fared worst.
    """
    share_console(jobs)
    found = []
    for job in jobs:
        reason = failure_reason(job, 0 if len(jobs) > 1 and is_finished(job.folder) else status)
        if reason is not None and status not in NOT_ITS_FAULT:
            record_failure(job, reason)
        found.append((job, reason))
    return found


def failure_reason(job: Job, status: int) -> str | None:
    """Why a process that ended did not finish its job; None when it did."""
    if status == 0 and is_finished(job.folder):
        return None
    if status == 0:
        return "ended without results"
    if status == STOPPED:
        return STOPPED_REASON
    ending = f"killed by {_signal_name(-status)}" if status < 0 else f"exit status {status}"
    errors = [line for line in console_tail(job.folder) if line.startswith("error:")]
    return f"{ending}, {errors[-1]}" if errors else ending


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _end_with_parent() -> None:
    """In the child: be ended when the sweep dies, however it dies, so that no run goes on unseen beside its retry."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
