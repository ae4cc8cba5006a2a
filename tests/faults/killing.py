"""Start processes, strike them at moments drawn by a seed, and check what they leave."""

import contextlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from dassl.utils import load_checkpoint
from reporting.runs import read_results
from tests.faults.children import REPOSITORY, Limits, run

SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGUSR1": signal.SIGUSR1}
FAULTS = (*SIGNALS, "file size", "full disk", "memory")
SECONDS = 300  # for a process to end


def server_of_children() -> Any:
    """The server that children are forked from, one thread each."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.children"])
    return context


class Victim:
    """A command that can be run again and again in new processes.

    Args:
        target: a function of `tests.faults.children`.
        arguments: of it, without the console's path and the limits.
        consoles: folder for what the processes print.
        log: is told of every fault.
    """

    def __init__(
        self, target: Callable[..., None], arguments: tuple[Any, ...], consoles: Path, log: Callable[..., None]
    ) -> None:
        self.target, self.arguments, self.consoles, self.log = target, arguments, consoles, log
        self._context, self._number = server_of_children(), 0

    def start(self, limits: Limits) -> Any:
        self._number += 1
        self.consoles.mkdir(parents=True, exist_ok=True)
        process = self._context.Process(target=self.target, args=(*self.arguments, str(self.console), limits))
        process.start()
        return process

    @property
    def console(self) -> Path:
        return self.consoles / f"console{self._number}.txt"

    def printed(self) -> str:
        return self.console.read_text(encoding="utf-8", errors="replace") if self.console.exists() else ""

    def finish(self) -> float:
        """Run to the end; returns the seconds it took."""
        began = time.monotonic()
        process = self.start(Limits())
        process.join(SECONDS)
        assert process.exitcode == 0, self.printed()
        return time.monotonic() - began

    def strike(self, fault: str, rng: random.Random, seconds: float) -> int:
        """Run with a fault, at a moment within `seconds` for a signal; returns the exit status."""
        limits = Limits()
        if fault == "file size":
            limits = Limits(file_size=int(2 ** rng.uniform(6, 17)))
        elif fault == "memory":
            limits = Limits(memory=int(2 ** rng.uniform(20, 29)))
        process = self.start(limits)
        moment = rng.uniform(0, seconds)
        if fault in SIGNALS:
            process.join(moment)
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, SIGNALS[fault])
        process.join(SECONDS)
        assert process.exitcode is not None, f"it hangs: {self.printed()}"
        self.log(fault=fault, status=process.exitcode, moment=moment, limits=vars(limits))
        if self.target is run and (fault == "SIGUSR1" or "Setting fixed seed" in self.printed()) and fault in SIGNALS:
            assert process.exitcode in (0, 75, -SIGNALS[fault]), self.printed()
        return process.exitcode


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Callable[[], None]]:
    """A file system of a few kilobytes at a folder; the function that it gives makes it large."""
    folder.mkdir(parents=True)
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
    """All that two runs must agree in: trained weights to the last bit, history and results without the seconds."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*.pth.tar*")):
        state = load_checkpoint(path)
        weights = {name: tensor.tolist() for name, tensor in state["state_dict"].items()}
        found[str(path.relative_to(folder))] = [weights, state["epoch"], state["val_result"]]
    for path in sorted(folder.rglob("results.json")):
        record = read_results(path)
        kept = [record["metrics"], record["history"], record["gates"]]
        found[str(path.relative_to(folder))] = json.loads(json.dumps(kept), object_hook=_without_seconds)
    return found


def _without_seconds(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if not key.endswith(("seconds", "share"))}


def leftovers(folder: Path) -> list[str]:
    """Files that no finished run leaves; a lock's temporary file, which may be a live process's, is not among them."""
    names = (".lock", ".sweep.lock", "resume.pth.tar")
    return [str(path) for path in folder.rglob("*") if _is_left(path.name) or path.name in names]


def _is_left(name: str) -> bool:
    return name.endswith(".tmp") and not name.startswith((".lock.", ".sweep.lock."))
