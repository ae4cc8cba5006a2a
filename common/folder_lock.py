"""A folder's lock: `filelock.SoftFileLock`, a small file that names the process at work there.

The library makes the file with O_EXCL, which succeeds for one process only on local disks and on NFS from version 3
on, and takes a dead owner's over. This module says who has a lock, and also finds those owners dead that the library
leaves: zombies, those on file systems that cannot exchange two names (NFS), and earlier lives of a requeued Slurm job.
"""

from __future__ import annotations

import contextlib
import functools
import os
import stat
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from filelock import SoftFileLock, Timeout

from common.commandline import printable
from common.files import is_process_dead

RUN_LOCK = ".lock"  # train.py's, while it works in its output folder
SWEEP_LOCK = ".sweep.lock"  # a sweep's, while it runs the job of a folder
MAX_BYTES = 1024  # of a lock
SETTLE_SECONDS = 1.0  # a lock is empty for a moment; below 2 s, after which the library removes what it cannot read


class LockedError(OSError):
    """A folder that another process works in."""


class NoLockError(LockedError):
    """Something else has a lock's name."""


class Holder(NamedTuple):
    """Who has a lock."""

    pid: int
    host: str  # the machine (with its container) whose number that is
    content: str  # of the file; with the process's start, so that no two locks have the same
    since: float  # when the file was written, in seconds since 1970

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {printable(self.host.partition('?pidns-')[0])}, since {since}"


def read_holder(path: Path) -> Holder:
    """Who has a lock.

    Raises:
        FileNotFoundError: nobody.
        ValueError: the file is no lock, or not yet.
    """
    if not stat.S_ISREG(path.lstat().st_mode):  # a folder, a pipe that would never end, a link to anywhere
        raise ValueError("it is no regular file")
    try:
        unfollowed = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
        with open(os.open(path, os.O_RDONLY | unfollowed), "rb") as file:
            content, since = file.read(MAX_BYTES + 1).decode(), os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(str(error.strerror)) from error
    lines = content.splitlines()
    pid = int(lines[0]) if lines and lines[0].isascii() and lines[0].isdecimal() else 0
    if len(content) > MAX_BYTES or len(lines) not in (2, 3) or not 0 < pid < 2**31:
        raise ValueError("it names no process")
    return Holder(pid, lines[1], content, since)


class FolderLock:
    """The lock in a file, whose folder is made when missing."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._lock = SoftFileLock(self.path, thread_local=False)
        self._job = self.path.with_name(f"{self.path.name}.job")

    def acquire(self) -> None:
        """Take the lock, from a dead owner too.

        Raises:
            LockedError: another process has it, or may have it.
            OSError: the folder cannot be written to.
        """
        deadline = time.monotonic() + SETTLE_SECONDS
        while not self._try():
            try:
                holder = read_holder(self.path)
            except FileNotFoundError:  # released meanwhile
                problem = "it comes and goes"
            except ValueError as error:
                problem = str(error)
            else:
                self._refuse_living(holder)
                problem = f"it is being taken from {holder}"
            if time.monotonic() > deadline:
                raise NoLockError(
                    f"{self.path} cannot be taken ({problem}): delete it if nothing works in its folder"
                ) from None
            time.sleep(0.01)
        self._write_job()

    def _try(self) -> bool:
        """One try of the library's; it takes a dead owner's lock over, or removes it for the next try."""
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            return False
        except OSError:  # a folder of that name, another user's lock
            if not os.path.lexists(self.path):
                raise
            return False
        return True

    def _refuse_living(self, holder: Holder) -> None:
        """Remove a dead owner's lock that the library left; LockedError: its owner lives, or may live."""
        here = holder.host == this_host()
        if not (is_process_dead(holder.pid) if here else self._is_earlier_life(holder)):
            which = f"{self.path.parent} is in use by {holder}"
            if here:
                raise LockedError(f"{which}: wait until it is done, or choose another folder")
            raise LockedError(
                f"{which}, which cannot be looked at from here: wait until it is done or, if it has ended, "
                f"delete {self.path}"
            )
        # Of several processes that see it, one at a time: none may remove the lock that another has taken since.
        with (
            contextlib.suppress(Timeout, FileNotFoundError, ValueError),
            SoftFileLock(f"{self.path}.takeover", blocking=False),
        ):
            if read_holder(self.path) == holder:
                self.path.unlink()

    def _is_earlier_life(self, holder: Holder) -> bool:
        """Whether the owner was this very Slurm job before it was requeued, perhaps to another node."""
        with contextlib.suppress(OSError, ValueError), open(self._job, encoding="utf-8") as file:
            return file.read(2 * MAX_BYTES) in {holder.content + life for life in _slurm_lives()[:-1]}
        return False

    def _write_job(self) -> None:
        """Leave word of the Slurm job beside the lock."""
        with contextlib.suppress(OSError, ValueError):
            self._job.unlink(missing_ok=True)
            if lives := _slurm_lives():
                self._job.write_text(read_holder(self.path).content + lives[-1], encoding="utf-8")

    def release(self) -> None:
        """Give the lock up; a process that was forked from the owner does not hold it."""
        if self._lock.is_locked:
            with contextlib.suppress(OSError):
                self._job.unlink(missing_ok=True)
            self._lock.release()


def _slurm_lives() -> list[str]:
    """This Slurm job's lives: one, and one for each time that it was requeued; none outside Slurm."""
    job, requeued = os.environ.get("SLURM_JOB_ID", ""), os.environ.get("SLURM_RESTART_COUNT", "0")
    count = int(requeued) if requeued.isdecimal() else 0
    return [f"job {job}, requeued {number} times\n" for number in range(count + 1)] if job else []


@functools.cache
def this_host() -> str:
    """This machine's name in locks, with the container's process numbers: what the library writes."""
    with tempfile.TemporaryDirectory() as folder, SoftFileLock(Path(folder) / "lock"):
        return read_holder(Path(folder) / "lock").host
