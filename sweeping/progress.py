"""The progress view: done, running, failed and the time left; one live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import shutil
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from common.commandline import printable
from sweeping.plan import Job

REFRESH_SECONDS = 1.0


class Progress:
    """Counts jobs and says so.

    Args:
        jobs: the whole queue.
        slots: how many run at a time; for the time left.
        stream: where to write.
    """

    def __init__(self, jobs: list[Job], slots: int, stream: TextIO) -> None:
        self.jobs, self.slots, self.stream = jobs, max(1, slots), stream
        self.live = stream.isatty()
        self.finished: set[Path] = set()
        self.failures: dict[Path, str] = {}
        self.running: dict[Path, float] = {}
        self._seconds: dict[tuple[str, bool], list[float]] = defaultdict(list)
        self._drawn = 0.0

    @property
    def waiting(self) -> list[Job]:
        """Jobs that are neither done nor running."""
        known = self.finished | self.failures.keys() | self.running.keys()
        return [job for job in self.jobs if job.folder not in known]

    def skip(self, job: Job, record: Mapping[str, object]) -> None:
        """The job was finished before; its time tells how long its like will take."""
        self.finished.add(job.folder)
        timing = record.get("timing")
        total = timing.get("total") if isinstance(timing, Mapping) else None
        if isinstance(total, int | float):
            self._seconds[_kind(job)].append(float(total))

    def start(self, job: Job) -> None:
        """The job runs from now on."""
        self.running[job.folder] = time.monotonic()
        self.line(f"start    {job.label}")

    def finish(self, job: Job) -> None:
        """The job is done."""
        self.finished.add(job.folder)
        took = ""  # nothing is known of another sweep's
        if job.folder in self.running:
            seconds = time.monotonic() - self.running.pop(job.folder)
            self._seconds[_kind(job)].append(seconds)
            took = f" ({duration(seconds)})"
        self.line(f"finished {job.label}{took}")

    def fail(self, job: Job, reason: str) -> None:
        """The job failed, now or before."""
        self.running.pop(job.folder, None)
        self.failures[job.folder] = reason
        self.line(f"FAILED   {job.label}: {reason}")

    def drop(self, job: Job) -> None:
        """The job was stopped and is to be run another time."""
        self.running.pop(job.folder, None)

    def line(self, text: str) -> None:
        """One line, with the counts in front where there is no live line."""
        self._clear()
        counted = text if self.live else f"[{len(self.finished) + len(self.failures)}/{len(self.jobs)}] {text}"
        self.stream.write(printable(counted) + ("\n" if self.live else f"{self._time_left()}\n"))
        self.stream.flush()
        self._drawn = 0.0
        self.tick()

    def tick(self) -> None:
        """Draw the live line anew, about once a second."""
        now = time.monotonic()
        if not self.live or now - self._drawn < REFRESH_SECONDS:
            return
        self._clear()
        self._drawn = now
        counts = f"{len(self.finished)} done, {len(self.running)} running, {len(self.failures)} failed"
        text = f"{counts}, {len(self.waiting)} waiting of {len(self.jobs)}{self._time_left()}"
        self.stream.write(text[: shutil.get_terminal_size().columns - 1])
        self.stream.flush()

    def close(self) -> None:
        """Leave the terminal with a clean line."""
        self._clear()
        self.stream.flush()

    def eta(self) -> float | None:
        """Seconds until all is done, from the times of finished jobs of the same kind; None before the first."""
        known = [value for values in self._seconds.values() for value in values]
        if not known:
            return None
        waiting = sum(self._expected(job, known) for job in self.waiting)
        now = time.monotonic()
        running = [job for job in self.jobs if job.folder in self.running]
        under_way = [max(0.0, self._expected(job, known) - (now - self.running[job.folder])) for job in running]
        return max([(waiting + sum(under_way)) / self.slots, *under_way])

    def _expected(self, job: Job, known: list[float]) -> float:
        return statistics.fmean(self._seconds.get(_kind(job)) or known)

    def _time_left(self) -> str:
        eta = self.eta()
        return f", ETA {duration(eta)}" if eta and (self.waiting or self.running) else ""

    def _clear(self) -> None:
        if self.live:
            self.stream.write("\r\x1b[K")


def _kind(job: Job) -> tuple[str, bool]:
    """Jobs of one trainer take about as long as one another, those that only test much less."""
    return job.trainer, job.needs is None


def duration(seconds: float) -> str:
    """Seconds for people: "42 s", "3 min 20 s", "2 h 05 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
