"""The writer of files: whole or not at all, and what it leaves when it is killed is known by its name."""

import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from common.files import atomic_write, refuse_existing, remove_dead_temporaries
from results.schema import RECORD_FILES

KILLED = """
import os, sys
from common.files import atomic_write
with atomic_write(sys.argv[1]) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def leftover(tmp_path):
    """What a killed writer of `tmp_path/a.txt` left."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "a.txt")], check=False)
    assert done.returncode == -signal.SIGKILL
    [name] = os.listdir(tmp_path)
    return tmp_path / name


def test_a_leftover_names_target_machine_and_process(leftover):
    assert leftover.name.startswith(f".a.txt.{socket.gethostname()}.")
    assert leftover.read_bytes() == b"half"


def test_the_next_writer_of_the_same_file_removes_it(leftover, tmp_path):
    with atomic_write(tmp_path / "b.txt") as file:
        file.write(b"b")
    assert leftover.exists()
    with atomic_write(tmp_path / "a.txt") as file:
        file.write(b"a")
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "b.txt"]


def test_nothing_else_is_taken_for_a_leftover(leftover, tmp_path):
    host, pid = socket.gethostname(), leftover.name.split(".")[-3]
    others = [
        f".a.txt.{host}.{os.getpid()}.0a1b2c3d.tmp",  # a live process's
        f".a.txt.node17.{pid}.0a1b2c3d.tmp",  # another machine's, whose processes cannot be seen from here
        f".a.txt.{host}.0.0a1b2c3d.tmp",  # no process's number: asking for it asks for one's own group
        f".a.txt.{host}.{'9' * 30}.0a1b2c3d.tmp",
        f".a.txt.{pid}.tmp",
        ".a.txt.tmp",
        ".my_notes.tmp",
        f"a.txt.{host}.{pid}.0a1b2c3d.tmp",
    ]
    below = tmp_path / "below"
    below.mkdir()
    for path in [*(tmp_path / name for name in others), below / leftover.name]:
        path.touch()
    remove_dead_temporaries(tmp_path, lambda target: target == "a.txt")
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "below"])
    assert os.listdir(below) == [leftover.name]
    remove_dead_temporaries(tmp_path / "missing", lambda target: True)


def test_a_live_writers_file_stays(tmp_path):
    with atomic_write(tmp_path / "a.txt") as outer:
        outer.write(b"outer")
        with atomic_write(tmp_path / "a.txt") as inner:  # as another process, or thread, may
            inner.write(b"inner")
        assert (tmp_path / "a.txt").read_bytes() == b"inner"
    assert (tmp_path / "a.txt").read_bytes() == b"outer"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("links", [True, False])
def test_of_several_that_write_a_new_file_one_does(tmp_path, links, monkeypatch):
    if not links:
        monkeypatch.delattr(os, "link")
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError("no links")), raising=False)
        (tmp_path / "new").write_text("0")  # without links, two at the very same moment cannot be told apart
    refused, ready = [], threading.Barrier(4)

    def write(number):
        try:
            with atomic_write(tmp_path / "new", "w", replace=False) as file:
                file.write(str(number))
                ready.wait(10)
        except FileExistsError:
            refused.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == (3 if links else 4)
    assert (tmp_path / "new").read_text() == (({*"0123"} - {str(n) for n in refused}).pop() if links else "0")
    assert os.listdir(tmp_path) == ["new"]


@pytest.mark.parametrize("name", ["results.json", "config.yaml"])
def test_no_output_replaces_a_runs_record(name, tmp_path):
    (tmp_path / name).write_text("{}")
    with pytest.raises(FileExistsError, match="is a run's own record: choose another name"):
        refuse_existing(tmp_path / name, replace=True, records=RECORD_FILES)
