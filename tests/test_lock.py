"""The lock of an output folder: one owner at a time, dead owners are found out, others are named."""

import os
import signal
import subprocess
import sys
import time

import pytest
from filelock import SoftFileLock

from common import files as module
from common.files import FolderLock, LockedError, NoLockError, read_holder, this_host
from tests.locks import locked

HOLD = (
    "import sys, pathlib; from common.files import FolderLock; "
    "lock = FolderLock(pathlib.Path(sys.argv[1])); lock.acquire(); "
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / ".lock"


@pytest.fixture(params=["exchange", "no exchange"])
def file_system(request, monkeypatch):
    """File systems that exchange two names, and those that do not (NFS), as the library sees them."""
    if request.param == "no exchange":
        monkeypatch.setattr(SoftFileLock, "_take_over", lambda *_: None, raising=False)


def child(code, *arguments, **options):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=os.getcwd(), check=False, capture_output=True, **options
    )


@pytest.fixture(scope="module")
def ended():
    """Number of a process that has ended."""
    return int(child("import os; print(os.getpid())").stdout)


def write(path, pid, host="", start=1):
    path.write_text(f"{pid}\n{host or this_host()}\n{start}\n")


def killed_owner(path, **environment):
    """A process that took the lock and was killed with it; what it left."""
    code = HOLD + "import os; os.kill(os.getpid(), 9)"
    assert child(code, path, env=os.environ | environment).returncode == -signal.SIGKILL
    return read_holder(path)


def test_a_folder_is_ones_own_and_nothing_stays(tmp_path):
    with locked(tmp_path / "new"):
        assert read_holder(tmp_path / "new" / ".lock").pid == os.getpid()
        assert os.listdir(tmp_path / "new") == [".lock"]
    assert os.listdir(tmp_path / "new") == []


def test_the_owner_is_named(tmp_path, path):
    with locked(tmp_path):
        before = path.read_bytes()
        message = f"{tmp_path} is in use by process {os.getpid()} on {os.uname().nodename}, since 20"
        began = time.monotonic()
        with pytest.raises(LockedError, match=message):
            FolderLock(path).acquire()
        assert time.monotonic() - began < module.SETTLE_SECONDS
        assert path.read_bytes() == before


def test_a_dead_owners_lock_is_taken_over(path, file_system):
    killed_owner(path)
    with locked(path.parent):
        assert read_holder(path).pid == os.getpid()
    assert os.listdir(path.parent) == []


def test_a_number_that_was_given_to_another_process_since(path):
    write(path, os.getpid(), start=1)
    with locked(path.parent):
        assert read_holder(path).content.splitlines()[2] != "1"


def test_a_process_that_has_died_but_was_not_waited_for(path):
    """In a container whose first process waits for nobody it stays so."""
    owner = subprocess.Popen([sys.executable, "-c", HOLD, str(path)])
    os.waitid(os.P_PID, owner.pid, os.WEXITED | os.WNOWAIT)
    path.write_text(f"{owner.pid}\n{this_host()}\n")
    with locked(path.parent):
        pass
    owner.wait()


def test_an_owner_on_another_machine_is_left_alone_and_the_cure_is_named(path, ended):
    write(path, ended, "node17\x1b[2J")
    with pytest.raises(
        LockedError, match=rf"on node17.x1b.2J.*cannot be looked at from here.* delete {path}"
    ) as caught:
        FolderLock(path).acquire()
    assert "\x1b" not in str(caught.value)
    assert read_holder(path).pid == ended


@pytest.mark.parametrize(
    ("job", "requeued", "taken"),
    [("7", "1", True), ("7", "2", True), ("7", "0", False), ("8", "1", False), ("", "", False)],
)
def test_a_requeued_slurm_job_takes_over_from_its_earlier_life(path, monkeypatch, job, requeued, taken):
    """On whichever node that was; another task of the same life, and another job, are others."""
    held = killed_owner(path, SLURM_JOB_ID="7", SLURM_RESTART_COUNT="0")
    beside = path.with_name(".lock.job")
    for file in (path, beside):  # as if on another node
        file.write_text(file.read_text().replace(held.host, "node17"))
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setenv("SLURM_RESTART_COUNT", requeued)
    if taken:
        with locked(path.parent):
            assert read_holder(path).pid == os.getpid()
        assert os.listdir(path.parent) == []
    else:
        with pytest.raises(LockedError, match="on node17"):
            FolderLock(path).acquire()


def test_the_word_of_a_job_holds_for_its_own_lock_only(path, monkeypatch, ended):
    killed_owner(path, SLURM_JOB_ID="7", SLURM_RESTART_COUNT="0")
    write(path, ended, "node17")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with pytest.raises(LockedError, match="on node17"):
        FolderLock(path).acquire()


ODD = {
    "empty": lambda path: path.touch(),
    "JSON": lambda path: path.write_text('{"pid": 1}'),
    "bytes": lambda path: path.write_bytes(bytes(range(256))),
    "no number": lambda path: path.write_text("one\nhost\n"),
    "another alphabet's number": lambda path: path.write_text("\u0661\nhost\n"),
    "a number too large": lambda path: path.write_text(f"{'9' * 500}\nhost\n"),
    "a group of processes": lambda path: path.write_text("-1\nhost\n"),
    "huge": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 2**40),
    "a link to nowhere": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a link to a file": lambda path: path.symlink_to("/etc/passwd"),
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
}


@pytest.mark.parametrize("make", ODD.values(), ids=ODD)
def test_something_else_in_the_locks_place(path, make, monkeypatch):
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.1)
    make(path)
    with pytest.raises(NoLockError, match=f"^{path} cannot be taken .*: delete it if nothing works in its folder$"):
        FolderLock(path).acquire()
    assert os.path.lexists(path), "whatever it is, it is somebody's"
    assert os.listdir(path.parent) == [".lock"]


def test_a_forked_child_does_not_give_the_lock_up(path):
    lock = FolderLock(path)
    lock.acquire()
    child = os.fork()
    if child == 0:
        lock.release()
        os._exit(0)
    os.waitpid(child, 0)
    assert read_holder(path).pid == os.getpid()
    lock.release()
    assert not path.exists()


COUNT = """
import os, pathlib, sys, time
from common.files import FolderLock, LockedError
from tests.locks import locked
if sys.argv[2] == "no exchange":
    from filelock import SoftFileLock
    SoftFileLock._take_over = lambda *_: None
folder = pathlib.Path(sys.argv[1])
def patiently(take):
    while True:
        try:
            return take()
        except LockedError:
            time.sleep(0.001)
def add():
    with locked(folder):
        value = int((folder / "count").read_text())
        time.sleep(0.001)
        (folder / "count").write_text(str(value + 1))
for _ in range(5):
    patiently(add)
lock = FolderLock(folder / ".lock")
patiently(lock.acquire)
os._exit(1)
"""


@pytest.mark.parametrize("exchange", ["exchange", "no exchange"])
def test_many_processes_that_die_with_the_lock(tmp_path, exchange):
    """No addition is lost, though each process leaves a lock behind that the others must find to be dead."""
    (tmp_path / "count").write_text("0")
    children = [subprocess.Popen([sys.executable, "-c", COUNT, str(tmp_path), exchange]) for _ in range(6)]
    assert [process.wait(60) for process in children] == [1] * 6
    assert (tmp_path / "count").read_text() == "30"
