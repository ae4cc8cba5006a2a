"""The lock of an output folder: one owner at a time, dead owners are found out, others are named."""

import dataclasses
import errno
import json
import multiprocessing
import os
import subprocess
import sys
import time

import pytest

from sweeping import lock as module
from sweeping.lock import FolderLock, LockedError, Owner, locked, read_owner


@pytest.fixture
def path(tmp_path):
    return tmp_path / ".lock"


@pytest.fixture(params=["link", "exclusive"])
def means(request, monkeypatch):
    """File systems with hard links and without."""

    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")

    if request.param == "exclusive":
        monkeypatch.setattr(os, "link", refuse)


def write(path, **changes):
    """The lock of an owner like this process, with changes."""
    owner = dataclasses.replace(Owner.this_process(), **changes)
    path.write_text(json.dumps(dataclasses.asdict(owner)))
    return owner


def dead_pid():
    return subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)


@pytest.fixture(scope="module")
def ended():
    """Number of a process that has ended."""
    return int(dead_pid().stdout)


def test_a_folder_is_ones_own_and_nothing_stays(tmp_path, means):
    with locked(tmp_path / "new"):
        assert read_owner(tmp_path / "new" / ".lock").pid == os.getpid()
        assert len(os.listdir(tmp_path / "new")) == 1
    assert os.listdir(tmp_path / "new") == []


def test_the_owner_is_named(tmp_path, path, means):
    with locked(tmp_path):
        before = path.read_bytes()
        with pytest.raises(
            LockedError, match=f"{tmp_path} is in use by process {os.getpid()} on {os.uname().nodename}"
        ):
            FolderLock(path).acquire()
        assert path.read_bytes() == before


def test_a_dead_owners_lock_is_taken_over(path, ended, means):
    write(path, pid=ended)
    with locked(path.parent):
        assert read_owner(path).pid == os.getpid()
    assert os.listdir(path.parent) == []


def test_a_number_that_was_given_to_another_process_since(path):
    write(path, started=1)
    with locked(path.parent):
        assert read_owner(path).started > 1


def test_a_process_that_has_died_but_was_not_waited_for(path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    write(path, pid=child.pid, started=0)
    with locked(path.parent):
        pass
    child.wait()


def test_an_owner_on_another_machine_is_left_alone_and_the_cure_is_named(path, ended):
    write(path, pid=ended, host="node17")
    with pytest.raises(LockedError, match=rf"on node17, .*cannot be looked at from here .* delete {path}"):
        FolderLock(path).acquire()
    assert read_owner(path).host == "node17"


@pytest.mark.parametrize(
    ("changes", "dead"),
    [
        ({"boot": "earlier", "machine": "m"}, True),
        ({"boot": "earlier", "machine": "another"}, None),
        ({"boot": "earlier", "machine": ""}, None),
        ({"namespace": "pid:[1]"}, None),
        ({"host": "node17"}, None),
        ({"host": "node17", "job": "7/0"}, True),  # the same Slurm job, requeued to another node
        ({"host": "node17", "job": "7/1"}, None),  # another task of it
        ({"host": "node17", "job": "8/0"}, None),
    ],
)
def test_what_can_be_told(changes, dead):
    here = dataclasses.replace(Owner.this_process(), machine="m", job="7/1")
    assert dataclasses.replace(here, **changes).is_dead(here) is dead


def test_something_else_in_the_locks_place(path, monkeypatch):
    monkeypatch.setattr(module, "UNREADABLE_SECONDS", 0.1)
    for content in ("", "{}", '{"pid": 1}', "[]"):
        path.write_text(content)
        with pytest.raises(LockedError, match=f"{path} cannot be read: delete it"):
            FolderLock(path).acquire()


def test_a_forked_child_does_not_give_the_lock_up(path):
    lock = FolderLock(path)
    lock.acquire()
    child = os.fork()
    if child == 0:
        lock.release()
        os._exit(0)
    os.waitpid(child, 0)
    assert read_owner(path).pid == os.getpid()
    lock.release()
    assert not path.exists()


def _count(folder, rounds):
    """Add to a number in a file, under the lock; sometimes die with it."""
    counter = folder / "count"
    for _ in range(rounds):
        while True:
            try:
                with locked(folder):
                    value = int(counter.read_text())
                    time.sleep(0.001)
                    counter.write_text(str(value + 1))
                break
            except LockedError:
                time.sleep(0.001)
    lock = FolderLock(folder / ".lock")
    while True:
        try:
            lock.acquire()
            os._exit(1)
        except LockedError:
            time.sleep(0.001)


def test_many_processes_that_die_with_the_lock(tmp_path, means):
    """No addition is lost, though each process leaves a lock behind that the others must find to be dead."""
    (tmp_path / "count").write_text("0")
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_count, args=(tmp_path, 5)) for _ in range(6)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert (tmp_path / "count").read_text() == "30"
