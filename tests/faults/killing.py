"""Start processes, strike them at moments drawn by a seed, and check what they leave."""

import contextlib
import functools
import json
import math
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from dassl.utils import load_checkpoint
from results.schema import read_results
from tests.faults.children import REPOSITORY, nothing, run

SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGUSR1": signal.SIGUSR1}
FAULTS = (*SIGNALS, "file size", "full disk", "memory")
PAGE = os.sysconf("SC_PAGE_SIZE")
SECONDS = 300  # for a process to end


@functools.cache
def server_of_children() -> Any:
    """The server that children are forked from, one thread each; it is ready when this returns."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.children"])
    first = context.Process(target=nothing)
    first.start()
    first.join(SECONDS)
    return context


@dataclass(frozen=True)
class Need:
    """What a process takes when nothing strikes it; faults are drawn from this, so that most of them strike.

    Attributes:
        seconds: from its start to its end.
        largest: bytes of the largest file that it leaves.
        kilobytes: what its files take on a disk.
    """

    seconds: float
    largest: int
    kilobytes: int

    def moment(self, rng: random.Random) -> float:
        """Seconds after the start: early, late, or any time, each as often."""
        low, high = rng.choice([(0.0, 0.3), (0.0, 0.95), (0.6, 0.95)])
        return self.seconds * rng.uniform(low, high)

    def disk(self, rng: random.Random) -> int:
        """Kilobytes of a disk that is too small."""
        return rng.randrange(8, self.kilobytes + 1)

    def file_size(self, rng: random.Random) -> int:
        """Bytes of a limit that the largest file exceeds."""
        return int(math.exp(rng.uniform(math.log(64), math.log(self.largest))))


@dataclass
class Record:
    """What was done in a round and what came of it, a line of JSON for the counts of docs/figures.md.

    Attributes:
        victim, fault, round: what was struck, by what, and the number that seeds the moments.
        strikes: of each, the exit status (other than 0: it struck) and the drawn numbers.
        as_if_nothing: the end was that of an uninterrupted process.
    """

    victim: str
    fault: str
    round: int
    strikes: list[dict[str, Any]] = field(default_factory=list)
    as_if_nothing: bool = False


class Victim:
    """A command that can be run again and again in new processes.

    Args:
        target: a function of `tests.faults.children`.
        arguments: of it, without the console's path.
        consoles: folder for what the processes print.
    """

    def __init__(self, target: Callable[..., None], arguments: tuple[Any, ...], consoles: Path) -> None:
        self.target, self.arguments, self.consoles = target, arguments, consoles
        self._context, self._number = server_of_children(), 0

    def start(self) -> Any:
        self._number += 1
        self.consoles.mkdir(parents=True, exist_ok=True)
        process = self._context.Process(target=self.target, args=(*self.arguments, str(self.console)))
        process.start()
        return process

    @property
    def console(self) -> Path:
        return self.consoles / f"console{self._number}.txt"

    def printed(self) -> str:
        return self.console.read_text(encoding="utf-8", errors="replace") if self.console.exists() else ""

    def finish(self) -> None:
        """Run to the end."""
        process = self.start()
        process.join(SECONDS)
        assert process.exitcode == 0, self.printed()

    def strike(self, fault: str, rng: random.Random, need: Need, record: Record) -> int:
        """Run, with a fault at a moment of its time (a full disk is full from the start); returns the exit status."""
        process = self.start()
        moment, size, memory = need.moment(rng), need.file_size(rng), int(2 ** rng.uniform(12, 26))
        if fault != "full disk":
            process.join(moment)
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                inflict(fault, process.pid, size, memory)
        process.join(SECONDS)
        assert process.exitcode is not None, f"it hangs: {self.printed()}"
        record.strikes.append({"status": process.exitcode, "moment": moment, "size": size, "memory": memory})
        if self.target is run and (fault == "SIGUSR1" or "Setting fixed seed" in self.printed()) and fault in SIGNALS:
            assert process.exitcode in (0, 75, -SIGNALS[fault]), self.printed()
        return process.exitcode


def measure(victim_of: Callable[[Path], Victim], folder: Path) -> Need:
    """Run to the end three times, undisturbed, in folders `0`, `1`, `2`: the shortest time, and what the files take."""
    seconds = []
    for number in range(3):
        began = time.monotonic()
        victim_of(folder / str(number)).finish()
        seconds.append(time.monotonic() - began)
    sizes = [path.stat().st_size if path.is_file() else 1 for path in (folder / "0").rglob("*")]
    return Need(min(seconds), max(sizes), sum(-(-size // PAGE) * PAGE for size in sizes) // 1024)


def inflict(fault: str, process: int, size: int, memory: int) -> None:
    """Signal a process, or limit it from now on: to files of `size` bytes, or to `memory` bytes beyond what it has."""
    if fault in SIGNALS:
        os.kill(process, SIGNALS[fault])
    elif fault == "file size":
        resource.prlimit(process, resource.RLIMIT_FSIZE, (size, size))
    elif fault == "memory":
        pages = int(Path(f"/proc/{process}/statm").read_text(encoding="utf-8").split()[0])
        limit = pages * PAGE + memory
        resource.prlimit(process, resource.RLIMIT_AS, (limit, limit))


@contextmanager
def small_disk(fault: str, folder: Path, kilobytes: int) -> Iterator[Callable[[], None]]:
    """For a full disk, a file system of a few kilobytes at a folder; the function that it gives makes it large."""
    folder.mkdir(parents=True)
    if fault != "full disk":
        yield lambda: None
        return
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", folder], capture_output=True)
    if made.returncode:
        pytest.skip("mounting a small file system needs rights that this user lacks; the file size limit stands in")
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,size=100m", folder], check=True)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def assert_sound(folder: Path) -> None:
    """No half-written file bears the name of a finished one."""
    for path in folder.rglob("*"):
        if path.name.endswith(".tmp"):
            continue
        if ".pth.tar" in path.name:
            load_checkpoint(path)
        elif path.name == "results.json":
            read_results(path)
        elif path.name == "config.yaml":
            assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)


def finished(folder: Path) -> dict[str, bytes]:
    """The results of finished runs, byte by byte."""
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("results.json"))}


def outcome(folder: Path) -> dict[str, Any]:
    """All that two runs must agree in: trained weights to the last bit, history and results without what they cost."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("model*.pth.tar*")):
        state = load_checkpoint(path)
        weights = {name: tensor.tolist() for name, tensor in state["state_dict"].items()}
        found[str(path.relative_to(folder))] = [weights, state["epoch"], state["val_result"]]
    for path in sorted(folder.rglob("results.json")):
        record = read_results(path)
        kept = [record["metrics"], record["history"], record["gates"]]
        found[str(path.relative_to(folder))] = json.loads(json.dumps(kept), object_hook=_without_costs)
    return found


def _without_costs(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if not key.endswith(("seconds", "share", "gflop"))}


def leftovers(folder: Path) -> list[str]:
    """Files that no finished run leaves.

    The state to go on from of a run that was killed just after it had written its results is not among them: its next
    command removes that.
    """
    return [str(path) for path in folder.rglob("*") if _is_left(path)]


def _is_left(path: Path) -> bool:
    if path.name == "resume.pth.tar":
        return not (path.parent / "results.json").exists()
    return path.name.endswith(".tmp") or path.name.startswith((".lock", ".sweep.lock"))
