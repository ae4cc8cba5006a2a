"""A folder's lock: a small file that names the process at work there.

It needs no flock, which network file systems may lack or ignore: making a hard link, or a file with O_EXCL, succeeds
for one process only on local disks and on NFS from version 3 on. A lock whose owner is dead is taken over, which can be
told on the owner's own machine; of an owner on another machine the error says who it is and which file to delete.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

RUN_LOCK = ".lock"  # train.py's, while it works in its output folder
SWEEP_LOCK = ".sweep.lock"  # a sweep's, while it runs the job of a folder
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
UNREADABLE_SECONDS = 2.0


class LockedError(OSError):
    """A folder that another process works in."""


@dataclass(frozen=True)
class Owner:
    """A process, and what tells it from others of the same number.

    Attributes:
        token: of this very lock.
        host, machine, boot, namespace: where its number counts: names of the machine, of its installation, of its
            start and of the container's process numbers; "" where the system does not tell.
        pid, started: its number, and when it began in the system's clock ticks; 0 where the system does not tell.
        job: the Slurm job and how often it was requeued; "" outside Slurm.
        command, since: for people.
    """

    token: str
    host: str
    machine: str
    boot: str
    namespace: str
    pid: int
    started: int
    job: str
    command: str
    since: str

    @classmethod
    def this_process(cls) -> Owner:
        """The process that asks."""
        job = os.environ.get("SLURM_JOB_ID", "")
        return cls(
            token=uuid.uuid4().hex[:12],
            host=socket.gethostname(),
            machine=_text("/etc/machine-id"),
            boot=_text("/proc/sys/kernel/random/boot_id"),
            namespace=_link("/proc/self/ns/pid"),
            pid=os.getpid(),
            started=_started(os.getpid()),
            job=job and f"{job}/{os.environ.get('SLURM_RESTART_COUNT', '0')}",
            command=" ".join(sys.argv)[:200],
            since=time.strftime("%Y-%m-%d %H:%M:%S"),
        )

    def is_dead(self, here: Owner) -> bool | None:
        """Whether the process has ended; None where that cannot be told from `here`."""
        if self.job and here.job and self.job != here.job and self.job.split("/")[0] == here.job.split("/")[0]:
            return True  # an earlier life of the same Slurm job, which has one life at a time
        if self.host != here.host:
            return None
        if self.boot != here.boot:
            return True if self.machine and self.machine == here.machine else None
        if self.namespace != here.namespace:
            return None
        return not _is_alive(self.pid, self.started)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since} ({self.command})"


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _stat(pid: int) -> list[str]:
    """State, parent, ... of a process on Linux; empty elsewhere. The name before them may hold anything."""
    return _text(f"/proc/{pid}/stat").rpartition(")")[2].split()


def _started(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[19]) if len(fields) > 19 else 0


def _is_alive(pid: int, started: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # another user's
    fields = _stat(pid)
    if fields[:1] in (["Z"], ["X"]):
        return False
    return not (started and fields and _started(pid) != started)


class FolderLock:
    """The lock in a file.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.owner: Owner | None = None

    def acquire(self) -> None:
        """Take the lock, from a dead owner too.

        Raises:
            LockedError: another process has it, or may have it.
        """
        own = Owner.this_process()
        deadline = time.monotonic() + UNREADABLE_SECONDS
        while self.owner is None:
            if self._create(own):
                self.owner = own
                return
            try:
                held = read_owner(self.path)
            except FileNotFoundError:
                continue  # released meanwhile
            except ValueError:
                if time.monotonic() > deadline:
                    raise LockedError(f"{self.path} cannot be read: delete it if nothing works in its folder") from None
                time.sleep(0.05)  # where there are no links, a lock is empty for a moment
                continue
            self._take_over(held, own)

    def _create(self, own: Owner) -> bool:
        """Make the file; False when there is one."""
        temporary = self._write_aside(own)
        try:
            os.link(temporary, self.path)
        except FileExistsError:
            # a network file system may say so of a link that it has just made
            return temporary.stat().st_nlink == 2
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            return self._create_without_link(temporary.read_bytes())
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def _write_aside(self, own: Owner) -> Path:
        temporary = self.path.with_name(f"{self.path.name}.{own.token}.tmp")
        try:
            with temporary.open("w", encoding="utf-8") as file:
                json.dump(asdict(own), file)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:  # a full disk, a signal
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    def _create_without_link(self, content: bytes) -> bool:
        try:
            with self.path.open("xb") as file:
                file.write(content)
                os.fsync(file.fileno())
        except FileExistsError:
            return False
        return True

    def _take_over(self, held: Owner, own: Owner) -> None:
        """Replace a dead owner's lock; of several processes that see it, one does, under a lock named after it."""
        dead = held.is_dead(own)
        if dead is None:
            raise LockedError(
                f"{self.path.parent} is in use by {held}, which cannot be looked at from here ({own.host}): "
                f"wait until it is done or, if it has ended, delete {self.path}"
            )
        if not dead:
            raise LockedError(
                f"{self.path.parent} is in use by {held}: wait until it is done, or choose another folder"
            )
        guard = FolderLock(self.path.with_name(f"{self.path.name}.{held.token}"))
        guard.acquire()
        try:
            with contextlib.suppress(FileNotFoundError, ValueError):
                if read_owner(self.path) == held:
                    os.replace(self._write_aside(own), self.path)
                    self.owner = own
        finally:
            guard.release()

    def release(self) -> None:
        """Give the lock up; a process that was forked from the owner does not hold it."""
        own, self.owner = self.owner, None
        if own is None or own.pid != os.getpid():
            return
        with contextlib.suppress(OSError, ValueError):
            if read_owner(self.path) == own:
                self.path.unlink()


def read_owner(path: Path) -> Owner:
    """Who has a lock.

    Raises:
        FileNotFoundError: nobody.
        ValueError: the file is no lock, or not yet.
    """
    try:
        return Owner(**json.loads(path.read_text(encoding="utf-8")))
    except TypeError as error:
        raise ValueError(f"{path} is no lock") from error


@contextmanager
def locked(folder: Path, name: str = RUN_LOCK) -> Iterator[None]:
    """Have a folder, which is made where it is missing, to oneself.

    Raises:
        LockedError: another process has it.
        OSError: the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(folder / name)
    lock.acquire()
    try:
        yield
    finally:
        lock.release()
