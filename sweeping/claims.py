"""Which jobs of a queue this sweep runs: several sweeps may work on one output folder, on several machines too."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from common.folder_lock import SWEEP_LOCK, FolderLock, LockedError, NoLockError
from sweeping.jobs import Job
from sweeping.progress import Progress
from sweeping.state import earlier_failure, is_finished

ELSEWHERE_SECONDS = 2.0  # between looks at a job that another sweep runs


class Claims:
    """The jobs that this sweep runs, so that no other one runs them at the same time.

    Args:
        progress: is told of jobs that others have, and of what became of them.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._held: dict[Path, FolderLock] = {}
        self._elsewhere: dict[Path, float] = {}  # when to look again
        self._blocked: dict[Path, str] = {}  # something else has the lock's name, and says nothing of when it goes

    def take(self, job: Job) -> bool:
        """Claim a job; False when another sweep has it."""
        if time.monotonic() < self._elsewhere.get(job.folder, 0.0):
            return False
        lock = FolderLock(job.folder / SWEEP_LOCK)
        try:
            lock.acquire()
        except LockedError as error:
            if isinstance(error, NoLockError):
                self._blocked[job.folder] = str(error)
            elif job.folder not in self._elsewhere:
                self._progress.line(f"elsewhere {job.label}: {error}")
            self._elsewhere[job.folder] = time.monotonic() + ELSEWHERE_SECONDS
            return False
        self._held[job.folder] = lock
        return True

    def settled_elsewhere(self, job: Job) -> bool:
        """Whether another sweep has finished the job meanwhile, or failed at it; the progress view is told.

        So is a job that no sweep can claim.
        """
        if job.folder in self._blocked:
            self._progress.fail(job, self._blocked[job.folder])
            return True
        if job.folder not in self._elsewhere:
            return False
        if is_finished(job.folder):
            self._progress.finish(job)
            return True
        under_way = job.folder not in self._held and (job.folder / SWEEP_LOCK).exists()
        reason = None if under_way else earlier_failure(job)
        if reason is not None:
            self._progress.fail(job, f"{reason} (in another sweep; --retry runs it again)")
        return reason is not None

    def release(self, job: Job) -> None:
        """Give a claim up."""
        if job.folder in self._held:
            self._held.pop(job.folder).release()


def forget_dead_claim(job: Job) -> None:
    """Remove the claim on a finished job of a sweep that was killed before it gave it up."""
    lock = FolderLock(job.folder / SWEEP_LOCK)
    if lock.path.exists():
        with contextlib.suppress(LockedError, OSError):  # its owner lives; a folder that is for reading only
            lock.acquire()
            lock.release()
