"""Files and folders that several processes write: a file whole or not at all, a folder by one process at a time.

Needs no torch, so that what does without can use it, too.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import lzma
import os
import re
import secrets
import socket
import stat
import tempfile
import time
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from filelock import SoftFileLock, Timeout

from common.commandline import printable

StrPath = str | os.PathLike[str]
RUN_LOCK = ".lock"  # train.py's, while it works in its output folder
SWEEP_LOCK = ".sweep.lock"  # a sweep's, while it runs the job of a folder
MAX_LOCK_BYTES = 1024
# What zipfile and NumPy raise for an archive of arrays (.npz) that is not, or not wholly, what was written.
# RuntimeError: an entry that needs a password or a later version of the format. The last line: an array's header, which
# NumPy reads as Python and which may state any size.
DAMAGED_ARCHIVE = (
    *(OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zipfile.LargeZipFile),
    *(zlib.error, lzma.LZMAError),
    *(SyntaxError, tokenize.TokenError, MemoryError, OverflowError),
)
SETTLE_SECONDS = 1.0  # a lock is empty for a moment; below 2 s, after which the library removes what it cannot read


@contextmanager
def atomic_write(path: StrPath, mode: str = "wb", replace: bool = True) -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; it takes the place of `path` only once it is complete and on disk.

    It is removed when anything goes wrong; of a process that is killed it stays, until the next one writes `path`. The
    directory is made when missing; the mode is `wb` or `w`.

    Raises:
        FileExistsError: there is a file, perhaps only just, and `replace` is False.
    """
    folder, name = os.path.split(os.fspath(path))
    os.makedirs(folder or ".", exist_ok=True)
    remove_dead_temporaries(folder, name.__eq__)
    # the number at the end tells writers of one process apart, and those of machines that have one name
    temporary = os.path.join(folder, f".{name}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, mode.replace("w", "x"), encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if not replace:
            try:
                os.link(temporary, path)  # unlike os.replace, it fails on an existing name
            except FileExistsError:
                raise
            except OSError:  # a file system without hard links
                if os.path.lexists(path):
                    raise FileExistsError(path) from None
                replace = True
        if replace:
            os.replace(temporary, path)
        with suppress(OSError):  # have the new name survive a power cut, where system and file system can
            descriptor = os.open(folder or ".", os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    finally:
        with suppress(FileNotFoundError):
            os.remove(temporary)


def refuse_existing(path: StrPath | None, replace: bool, records: Collection[str]) -> None:
    """Refuse an output's path that is taken, before any work is done; ``None`` is the terminal.

    Raises:
        IsADirectoryError: it is a folder.
        FileExistsError: there is a file, and `replace` is False; or it has a name of `records`, which nothing replaces.
    """
    if path is not None and os.path.basename(path) in records and os.path.lexists(path):
        raise FileExistsError(f"{path} is a run's own record: choose another name")
    if path is not None and os.path.isdir(path):
        raise IsADirectoryError(f"{path} is a folder: name a file")
    if path is not None and os.path.lexists(path) and not replace:
        raise FileExistsError(f"{path} exists already: choose another name, or --force to replace it")


def write_csv(path: StrPath, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a table with a column per key that occurs, empty where a row has none; its lines end as on Unix."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


def hash_file(path: StrPath, kind: str = "sha256") -> str:
    """A file's checksum in hexadecimal digits; "git_blob" is the name that git gives its content."""
    digest = hashlib.new("sha1" if kind == "git_blob" else kind)
    if kind == "git_blob":
        digest.update(b"blob %d\0" % os.path.getsize(path))
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def is_zip(path: StrPath) -> bool:
    """Whether a file is a zip archive; one that calls itself a part of several counts, and opening it is an error."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return True


def remove_dead_temporaries(folder: StrPath, is_target: Callable[[str], bool]) -> None:
    """Remove what killed processes of this machine left in a folder of the files that they were writing.

    The folder may be missing. `is_target` says whether a file's name is one whose unfinished versions may go.
    """
    pattern = re.compile(
        rf"\.(?P<target>.+)\.{re.escape(socket.gethostname())}\.(?P<pid>\d{{1,9}})\.[0-9a-f]{{8}}\.tmp"
    )
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder or ".") as entries:
        for match in filter(None, (pattern.fullmatch(entry.name) for entry in entries)):
            if is_target(match["target"]) and is_process_dead(int(match["pid"])):
                with suppress(OSError):  # another process was faster; a folder that is for reading only
                    os.remove(os.path.join(folder, match[0]))


def is_process_dead(pid: int) -> bool:
    """Whether a process of this machine has ended; one that nobody waited for has, too."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False  # another user's
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:  # a system without /proc
        return False
    return state[:1] in (["Z"], ["X"])


# A folder's lock: `filelock.SoftFileLock`, a small file that names the process at work there. The library makes it with
# O_EXCL, which succeeds for one process only on local disks and on NFS from version 3 on, and takes over a dead one.
# Here it is said who has a lock, and those dead owners are found, too, that the library leaves: zombies, those on file
# systems that cannot exchange two names (NFS), and earlier lives of a requeued Slurm job.


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
    """Who has a lock; FileNotFoundError: nobody; ValueError: the file is no lock, or not yet."""
    if not stat.S_ISREG(path.lstat().st_mode):  # a folder, a pipe that would never end, a link to anywhere
        raise ValueError("it is no regular file")
    try:
        unfollowed = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
        with open(os.open(path, os.O_RDONLY | unfollowed), "rb") as file:
            content, since = file.read(MAX_LOCK_BYTES + 1).decode(), os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(str(error.strerror)) from error
    lines = content.splitlines()
    pid = int(lines[0]) if lines and lines[0].isascii() and lines[0].isdecimal() else 0
    if len(content) > MAX_LOCK_BYTES or len(lines) not in (2, 3) or not 0 < pid < 2**31:
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
            LockedError: another process has it, or may have it; another OSError: the folder cannot be written to.
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
            suppress(Timeout, FileNotFoundError, ValueError),
            SoftFileLock(f"{self.path}.takeover", blocking=False),
        ):
            if read_holder(self.path) == holder:
                self.path.unlink()

    def _is_earlier_life(self, holder: Holder) -> bool:
        """Whether the owner was this very Slurm job before it was requeued, perhaps to another node."""
        with suppress(OSError, ValueError), open(self._job, encoding="utf-8") as file:
            return file.read(2 * MAX_LOCK_BYTES) in {holder.content + life for life in _slurm_lives()[:-1]}
        return False

    def _write_job(self) -> None:
        """Leave word of the Slurm job beside the lock."""
        with suppress(OSError, ValueError):
            self._job.unlink(missing_ok=True)
            if lives := _slurm_lives():
                self._job.write_text(read_holder(self.path).content + lives[-1], encoding="utf-8")

    def release(self) -> None:
        """Give the lock up; a process that was forked from the owner does not hold it."""
        if self._lock.is_locked:
            with suppress(OSError):
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
