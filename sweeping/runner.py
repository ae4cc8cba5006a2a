"""Works off a queue on this machine: one loop that claims jobs, starts them and takes note of what became of them.

What runs a job is an executor: `Processes`, one on each GPU or share of the CPU's cores, `Inline`, this process, or
Slurm (sweeping/slurm.py). A job's folder tells its state: finished means that results.json is there; a failure
leaves the command that failed, so that the next call does not fail at the same again unless it is asked to.
"""

from __future__ import annotations

import ast
import contextlib
import ctypes
import datetime
import json
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, BinaryIO, TextIO

from common.commandline import printable
from common.files import SWEEP_LOCK, FolderLock, LockedError, NoLockError, atomic_write
from common.free_options import flatten, is_free
from results.schema import RESULTS_FILE, ResultsError, read_results
from sweeping.plan import Job, SweepError

CONSOLE_FILE = "console.txt"
FAILURE_FILE = "failed.json"
SHOWN_LINES = 8
POLL_SECONDS = 0.1
REFRESH_SECONDS = 1.0  # of the live line
ELSEWHERE_SECONDS = 2.0  # between looks at a job that another sweep runs
STOP_SECONDS = 30.0  # for a child to write its checkpoint and end
CORES_PER_SLOT = 4  # without GPUs
MAX_SLOTS = 1024
PR_SET_PDEATHSIG = 1  # of Linux
FAILED, BUSY, STOPPED = 1, 69, 75  # of train.py's statuses: another process has the folder; a signal stopped it
OVERWRITE = "--overwrite"
Child = subprocess.Popen[bytes]


# ---- what a folder says


def is_finished(folder: Path) -> bool:
    """Whether the folder holds a finished run."""
    return (folder / RESULTS_FILE).is_file()


def is_done(job: Job) -> bool:
    """Whether nothing is left to do for a job."""
    return is_finished(job.folder) and OVERWRITE not in job.arguments


def finished_record(job: Job) -> dict[str, Any]:
    """The results of a finished job.

    Raises:
        ResultsError: they cannot be read, or are those of a run with other settings.
    """
    try:
        record = read_results(job.folder / RESULTS_FILE)
    except ResultsError as error:
        raise ResultsError(
            f"{error}: --overwrite redoes it, with all finished runs of this command; once the file is moved away, the "
            "same command redoes it alone"
        ) from error
    pairs = job.arguments[job.arguments.index("DATASET.NUM_SHOTS") :]
    # the last value of a key wins, as on train.py's command line
    wanted = dict(zip(pairs[::2], pairs[1::2], strict=True)) | {"TRAINER.NAME": job.trainer, "SEED": str(job.seed)}
    wanted.pop("TEST.PROTOCOL", None)  # results.json has it under a name of its own
    config = flatten(record["config"])
    differing = [
        f"{key} was {config[key]!r}, now {value}"
        for key, value in wanted.items()
        if config.get(key) is not None and not is_free(key, config) and config[key] != _parsed(value, config[key])
    ]
    if job.protocol and record["protocol"] != job.protocol:
        differing.append(f"its protocol was {record['protocol']}, now {job.protocol}")
    if differing:
        raise ResultsError(
            f"{job.folder} holds a finished run with other settings ({'; '.join(differing[:3])}): "
            "choose another --output, or remove it"
        )
    return record


def _parsed(text: str, like: Any) -> Any:
    """A command line value as results.json would hold it: yacs reads a Python literal wherever the text is one."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    if isinstance(like, str) and not isinstance(value, str):
        return text
    return list(value) if isinstance(value, tuple) else value


def make_ready(job: Job) -> None:
    """Before a job is started: its folder is there, and no word of an earlier failure in it."""
    (job.folder / FAILURE_FILE).unlink(missing_ok=True)
    job.folder.mkdir(parents=True, exist_ok=True)


def record_failure(job: Job, reason: str) -> None:
    """Leave word in the job's folder that its command failed."""
    with atomic_write(job.folder / FAILURE_FILE, "w") as file:
        file.write(json.dumps({"command": job.command(), "reason": reason}, indent=1) + "\n")


def earlier_failure(job: Job) -> str | None:
    """Why this very command failed in an earlier call; None where it did not, or where another command did."""
    try:
        failure = json.loads((job.folder / FAILURE_FILE).read_text(encoding="utf-8"))
        return failure["reason"] if failure["command"] == job.command() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def console_tail(folder: Path, start: int = 0) -> list[str]:
    """The last lines that a run wrote to its console file, whose first `start` bytes are an earlier attempt's."""
    try:
        with (folder / CONSOLE_FILE).open("rb") as file:
            file.seek(max(start, file.seek(0, os.SEEK_END) - 65536))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.replace("\r", "\n").splitlines() if line.strip()][-SHOWN_LINES:]


def outcome(job: Job, status: int, start: int = 0) -> str | None:
    """Why a run that ended with this status has not finished its job, which its folder tells from now on; else None.

    `start`: bytes of the console file that an earlier attempt wrote.
    """
    if status == 0 and is_finished(job.folder):
        return None
    if status == STOPPED:
        return "stopped by a signal, its state is saved: the same command goes on"
    names = {number.value: number.name for number in signal.Signals}
    killed = f"killed by {names.get(-status, f'signal {-status}')}"
    reason = "ended without results" if status == 0 else f"exit status {status}" if status > 0 else killed
    errors = [line for line in console_tail(job.folder, start) if status and line.startswith("error:")]
    reason = f"{reason}, {errors[-1]}" if errors else reason
    if status != BUSY:
        record_failure(job, reason)
    return reason


# ---- progress: done, running, failed and the time left; one live line on a terminal, plain lines elsewhere


class Progress:
    """Counts the jobs of a queue and says so.

    The number of slots tells how many run at a time; 0: nobody knows, so no time left is told.
    """

    def __init__(self, jobs: list[Job], slots: int, stream: TextIO) -> None:
        self.jobs, self.slots, self.stream = jobs, slots, stream
        self.live = stream.isatty()
        self.finished: set[Path] = set()
        self.failures: dict[Path, str] = {}
        self.has_console: set[Path] = set()  # failed jobs whose console file tells of this very failure
        self.running: dict[Path, float] = {}  # since when
        self._seconds: dict[tuple[Any, ...], list[float]] = defaultdict(list)  # that jobs of a kind took
        self._drawn = 0.0

    def is_settled(self, job: Job) -> bool:
        return job.folder in self.finished or job.folder in self.failures

    @property
    def waiting(self) -> list[Job]:
        """Jobs that are neither settled nor running."""
        return [job for job in self.jobs if not self.is_settled(job) and job.folder not in self.running]

    def skip(self, job: Job, record: dict[str, Any]) -> None:
        """The job was finished before; its time tells how long its like will take."""
        self.finished.add(job.folder)
        self._learn(job, record)

    def _learn(self, job: Job, record: dict[str, Any]) -> None:
        timing = record.get("timing")
        total = timing.get("total") if isinstance(timing, dict) else None
        if isinstance(total, int | float):
            for kind in _kinds(job):
                self._seconds[kind].append(float(total))

    def plan(self, output: Path) -> None:
        """Say what will run, and how long it takes where runs of the same methods with other seeds have told."""
        for job in self.waiting:
            if _kinds(job)[0] not in self._seconds:
                for path in job.folder.parent.glob(f"*/{RESULTS_FILE}"):
                    with contextlib.suppress(OSError, ResultsError):
                        like = replace(job, folder=path.parent, seed=read_results(path)["seed"])
                        self._learn(job, finished_record(like))
        methods = []
        for name in _of(self.jobs, "trainer"):
            settings = _of([job for job in self.jobs if job.trainer == name], "setting")
            methods.append(f"{name} ({', '.join(settings) if len(settings) < 3 else f'{len(settings)} settings'})")
        datasets, shots, seeds = (", ".join(_of(self.jobs, what)) for what in ("dataset", "shots", "seed"))
        n, finished = len(self.jobs), len(self.finished)
        skipped = f", {finished} of them finished already and skipped" if finished else ""
        self._write(printable(f"{n} run{'s' * (n != 1)}{skipped}: {', '.join(methods)}") + "\n")
        where = f"on {datasets}; {shots} shots; seeds {seeds}; written to {output}{self._time_left()}"
        self._write(printable(where) + "\n")

    def start(self, job: Job) -> None:
        self.running[job.folder] = time.monotonic()
        self.line(f"start    {job.label}")

    def finish(self, job: Job) -> None:
        self.finished.add(job.folder)
        took = ""  # nothing is known of another sweep's
        if job.folder in self.running:
            seconds = time.monotonic() - self.running.pop(job.folder)
            for kind in _kinds(job):
                self._seconds[kind].append(seconds)
            took = f" ({duration(seconds)})"
        self.line(f"finished {job.label}{took}")

    def fail(self, job: Job, reason: str, has_console: bool = False) -> None:
        self.running.pop(job.folder, None)
        if has_console:
            self.has_console.add(job.folder)
        self.failures[job.folder] = reason
        self.line(f"FAILED   {job.label}: {reason}")

    def drop(self, job: Job) -> None:
        """The job was stopped and is to be run another time."""
        self.running.pop(job.folder, None)

    def line(self, text: str) -> None:
        """One line, with the counts in front where there is no live line."""
        if not self.live:
            text = f"[{len(self.finished) + len(self.failures)}/{len(self.jobs)}] {text}"
        self._write(printable(text) + ("" if self.live else self._time_left()) + "\n")
        self._drawn = 0.0
        self.tick()

    def tick(self) -> None:
        """Draw the live line anew, about once a second."""
        now = time.monotonic()
        if self.live and now - self._drawn >= REFRESH_SECONDS:
            self._drawn = now
            counts = f"{len(self.finished)} done, {len(self.running)} running, {len(self.failures)} failed"
            text = f"{counts}, {len(self.waiting)} waiting of {len(self.jobs)}{self._time_left()}"
            self._write(text[: shutil.get_terminal_size().columns - 1])

    def close(self) -> None:
        """Leave the terminal with a clean line."""
        self._write("")

    def _write(self, text: str) -> None:
        self.stream.write("\r\x1b[K" * self.live + text)
        self.stream.flush()

    def eta(self) -> tuple[float, bool]:
        """Seconds until all is done, and whether every job left is in that: one without a measured time is not."""
        now, expected, under_way, whole = time.monotonic(), [], [], True
        for job in (job for job in self.jobs if not self.is_settled(job)):
            times = next((self._seconds[kind] for kind in _kinds(job) if kind in self._seconds), None)
            if times is None:
                whole = False
                continue
            running = job.folder in self.running
            expected.append(max(0.0, statistics.fmean(times) - (now - self.running[job.folder] if running else 0.0)))
            under_way += expected[-1:] if running else []
        return max([sum(expected) / self.slots, *under_way]), whole

    def _time_left(self) -> str:
        if not self.slots or not (self.waiting or self.running):
            return ""
        seconds, whole = self.eta()
        if not seconds:
            return ""
        minutes = math.ceil(seconds / 60)
        text = f"{minutes} minute{'s' * (minutes > 1)}" if minutes < 120 else f"{minutes / 60:.1f} hours"
        return f", {'about' if whole else 'at least'} {text} left"


def _of(jobs: Sequence[Job], what: str) -> list[str]:
    """An attribute's values over some jobs, each once."""
    return list(dict.fromkeys(str(getattr(job, what)) for job in jobs))


def _kinds(job: Job) -> list[tuple[Any, ...]]:
    """What else takes as long as a job: the same with another seed; else, about, the same method on other data sets."""
    method = (job.trainer, job.setting, job.shots, job.needs is None)
    return [(*method, job.dataset), method]


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss, as in Dassl's log."""
    return str(datetime.timedelta(seconds=round(seconds)))


# ---- claims: several sweeps may work on one output folder, on several machines too


class Claims:
    """The jobs that this sweep runs, so that no other one runs them at the same time."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._held: dict[Path, FolderLock] = {}
        self.elsewhere: dict[Path, float] = {}  # what another sweep has or had, and when to look again

    def take(self, job: Job) -> bool:
        """Claim a job; False when another sweep has it, or when none can claim it: then it failed."""
        if time.monotonic() < self.elsewhere.get(job.folder, 0.0):
            return False
        lock = FolderLock(job.folder / SWEEP_LOCK)
        try:
            lock.acquire()
        except NoLockError as error:  # something else has the lock's name
            self._progress.fail(job, str(error))
            return False
        except LockedError as error:
            if job.folder not in self.elsewhere:
                self._progress.line(f"elsewhere {job.label}: {error}")
            self.elsewhere[job.folder] = time.monotonic() + ELSEWHERE_SECONDS
            return False
        self._held[job.folder] = lock
        return True

    def release(self, job: Job) -> None:
        if job.folder in self._held:
            self._held.pop(job.folder).release()


def forget_dead_claim(job: Job) -> None:
    """Remove the claim on a finished job of a sweep that was killed before it gave it up."""
    lock = FolderLock(job.folder / SWEEP_LOCK)
    if lock.path.exists():
        with contextlib.suppress(OSError):  # its owner lives; a folder that is for reading only
            lock.acquire()
            lock.release()


# ---- the loop


@dataclass
class Stop:
    """Whether to stop, and how hard; set by signals."""

    signal: int = 0  # the last one received; 0: none
    at_once: bool = False  # a second one came
    interrupts: bool = False  # a signal also raises KeyboardInterrupt, for work that does not ask

    def request(self, number: int, _frame: FrameType | None = None) -> None:
        """A first signal asks for an end, a second one for an end at once."""
        self.at_once, self.signal = self.signal != 0, number
        if self.interrupts:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def listening(self) -> Iterator[Stop]:
        """SIGINT, SIGTERM and SIGUSR1 come here while the context lasts."""
        numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
        before = [(number, signal.signal(number, self.request)) for number in numbers]
        try:
            yield self
        finally:
            for number, handler in before:
                signal.signal(number, handler)


def work_off(jobs: Sequence[Job], executor: Any, progress: Progress, stop: Stop) -> None:
    """Run jobs in order, each after the one that it needs, until all ended or a stop was asked for.

    The executor is `Processes`, `Inline` or `slurm.Slurm`.
    """
    claims, waiting = Claims(progress), list(jobs)
    try:
        while (waiting or executor.jobs) and not stop.signal and not executor.detached:
            for job, reason in executor.ended():
                claims.release(job)
                if reason is None:
                    progress.finish(job)
                else:
                    progress.fail(job, reason, has_console=True)
            under_way = {job.folder for job in (*waiting, *executor.jobs)}
            for job in list(waiting):
                was_elsewhere = job.folder in claims.elsewhere
                if was_elsewhere and is_finished(job.folder):
                    waiting.remove(job)
                    progress.finish(job)
                elif job.needs in under_way:
                    continue
                elif job.needs is not None and not is_finished(job.needs):
                    waiting.remove(job)
                    progress.fail(job, f"needs the run in {job.needs}, which is not finished")
                elif executor.is_free() and not stop.signal and claims.take(job):
                    waiting.remove(job)
                    # another sweep may have ended it since this one looked
                    if is_done(job) or (was_elsewhere and is_finished(job.folder)):
                        claims.release(job)
                        progress.finish(job)
                    elif (reason := earlier_failure(job)) is not None:
                        claims.release(job)
                        where = "its Slurm job" if executor.queues else "another sweep"
                        progress.fail(job, f"{reason} (in {where}; --retry runs it again)", has_console=True)
                    else:
                        make_ready(job)
                        if executor.queues:
                            claims.release(job)
                        else:
                            progress.start(job)
                        executor.start(job)
                elif job.folder in progress.failures:  # nobody can claim it
                    waiting.remove(job)
            progress.tick()
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        if not stop.signal:
            raise
    finally:  # an error of a full disk, too
        stop.interrupts = False
        executor.end()
        for job in jobs:
            claims.release(job)
            if job.folder in progress.running:
                (progress.finish if is_done(job) else progress.drop)(job)


# ---- executors


@dataclass(frozen=True)
class Slot:
    """A place for one process."""

    gpu: str  # value of CUDA_VISIBLE_DEVICES; "" hides all GPUs
    threads: int  # OMP_NUM_THREADS

    def environment(self) -> dict[str, str]:
        threads = {name: str(self.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        return {**os.environ, **threads, "CUDA_VISIBLE_DEVICES": self.gpu}


def slots_for(gpus: Sequence[str] | None, count: int | None) -> list[Slot]:
    """The slots of this machine, as --gpus and --slots say; the cores are shared out evenly."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if gpus is not None:
        gpus = _checked_gpus(gpus)
    elif visible is None:
        gpus = _listed_gpus()
    else:  # all that this process may use, without loading torch
        gpus = [gpu for gpu in visible.split(",") if gpu.strip() not in ("", "-1")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = (len(gpus) or max(1, cores // CORES_PER_SLOT)) if count is None else count
    if not 1 <= count <= MAX_SLOTS:
        raise SweepError(f"--slots {count}: at least one process must run, and at most {MAX_SLOTS}")
    # a user who sets it knows why, for example that the machine is not theirs alone
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # nested teams are a list: 4,2
    threads = int(given) if given.isdecimal() and int(given) > 0 else max(1, cores // count)
    return [Slot(gpus[index % len(gpus)] if gpus else "", threads) for index in range(count)]


def _checked_gpus(gpus: Sequence[str]) -> list[str]:
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


def _listed_gpus() -> list[str]:
    """Ids of the machine's GPUs; none where its driver's tool is not there to tell."""
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    if shutil.which(command[0]) is None:
        return []
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    return listed.stdout.split() if listed.returncode == 0 else []


def start_process(job: Job, output: BinaryIO | None, environment: dict[str, str], **how: Any) -> Child:
    """Start a job; without a file it writes to the terminal."""
    to = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT if output else None}
    return subprocess.Popen(job.command(sys.executable), env=environment, **to, **how)


class Processes:
    """Runs each job in a process of its own; in the foreground they write to the terminal instead of into a file."""

    queues = False  # whether jobs wait elsewhere until they run, and go on when the sweep has ended
    detached = False  # whether what is under way is not to be waited for

    def __init__(self, slots: Sequence[Slot], stop: Stop, foreground: bool = False) -> None:
        self.slots, self.stop, self.foreground = slots, stop, foreground
        self.children: dict[int, tuple[Job, Any]] = {}  # by slot

    @property
    def jobs(self) -> list[Job]:
        return [job for job, _ in self.children.values()]

    def is_free(self) -> bool:
        return len(self.children) < len(self.slots)

    def start(self, job: Job) -> None:
        index = next(index for index in range(len(self.slots)) if index not in self.children)
        if self.foreground:  # what an earlier attempt wrote there is not of this one
            (job.folder / CONSOLE_FILE).unlink(missing_ok=True)
        with contextlib.nullcontext() if self.foreground else (job.folder / CONSOLE_FILE).open("wb") as output:
            # Ctrl-C on the terminal is for the sweep, which ends its children itself
            how = {"start_new_session": True, "preexec_fn": _end_with_parent if sys.platform == "linux" else None}
            self.children[index] = job, start_process(job, output, self.slots[index].environment(), **how)

    def ended(self) -> list[tuple[Job, str | None]]:
        """The jobs that have ended since the last call, each with the reason why it has not finished, or None."""
        gone = [index for index, (_, child) in self.children.items() if child.poll() is not None]
        return [(job, outcome(job, child.returncode)) for job, child in map(self.children.pop, gone)]

    def end(self) -> None:
        """End what still runs: first politely, then, after a while or a second signal, by force."""
        children = [child for _, child in self.children.values()]
        deadline = time.monotonic() + STOP_SECONDS
        for number in (signal.SIGTERM, signal.SIGKILL):
            for child in children:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, number)  # the loader's workers, too
            while any(child.poll() is None for child in children) and not self.stop.at_once:
                if time.monotonic() > deadline:
                    break
                time.sleep(POLL_SECONDS)
        for child in children:
            child.wait()
        self.children.clear()


def _end_with_parent() -> None:
    """In the child: be ended when the sweep dies, however it dies, so that no run goes on unseen beside its retry."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Inline(Processes):
    """Runs one job after another in this process: importing torch takes longer than a run on the bundled data."""

    def __init__(self, slot: Slot, stop: Stop) -> None:
        super().__init__([slot], stop)
        os.environ.update(slot.environment())
        stop.interrupts = True

    def start(self, job: Job) -> None:
        """Run a job to its end; an error that train.py does not know is written out, and the next run goes on."""
        with (
            (job.folder / CONSOLE_FILE).open("w", encoding="utf-8", buffering=1) as console,
            contextlib.redirect_stdout(console),
            contextlib.redirect_stderr(console),
        ):
            try:
                import train

                status = train.main(job.arguments)
            except SystemExit as stop:
                status = stop.code if isinstance(stop.code, int) else FAILED if stop.code else 0
            except Exception:
                traceback.print_exc(file=sys.stderr)
                status = FAILED
        self.children[0] = job, SimpleNamespace(poll=lambda: status, returncode=status)

    def end(self) -> None:
        """Nothing runs on by itself."""
