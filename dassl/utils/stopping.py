"""Stopping a run by a signal: SIGTERM, as schedulers end a job, and SIGUSR1, as Slurm warns before it does.

A run that computes nothing worth keeping ends at once. Training finishes its batch and writes its state first.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.util
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SECONDS_TO_END = 1.0  # for daemons that obey SIGTERM
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))


class RunStopped(BaseException):
    """A run that a signal stopped, its state saved; no error, so that no `except Exception` takes it for one."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal = number


class StopRequest:
    """Whether a signal asked the run to stop."""

    def __init__(self) -> None:
        self.signal = 0  # number of the first that did; 0: none. Later ones change nothing: the run is ending already
        self._deferrals = 0
        self._process = os.getpid()

    @contextmanager
    def listening(self, until_exit: bool = False) -> Iterator[StopRequest]:
        """Take the signals while the context lasts.

        A signal that the process was started to ignore stays ignored. Where somebody else listened before, the signal
        is handed on to them at the end. Outside the main thread, which alone gets signals, nothing is done.
        `until_exit`: the process ends after this, and signals that still come are ignored, as they would end it with a
        status that says nothing.
        """
        before: dict[int, Any] = {}
        try:
            if threading.current_thread() is threading.main_thread():
                for number in SIGNALS:
                    if (handler := signal.getsignal(number)) is not signal.SIG_IGN:
                        before[number] = handler
                        signal.signal(number, self._take)  # which may end this at once
            yield self
        finally:
            self._deferrals += 1  # a first signal that comes now waits until all handlers are put back
            heeded = self.signal
            for number, handler in before.items():
                signal.signal(number, signal.SIG_IGN if until_exit else handler)
            self._deferrals -= 1
            if callable(before.get(self.signal)) and not until_exit:
                signal.raise_signal(self.signal)
            if not heeded:
                self.check()

    def _take(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # in a loader's worker, which inherits this
            return
        first = not self.signal
        self.signal = self.signal or number
        if first and not self._deferrals:
            raise RunStopped(number)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let a signal wait for the next `check` while the context lasts."""
        self._deferrals += 1
        try:
            yield
        finally:
            self._deferrals -= 1
        self.check()

    def check(self) -> None:
        """End the run by `RunStopped` if that was asked for."""
        if self.signal:
            raise RunStopped(self.signal)


def leave_signals_to_the_run(_worker: int) -> None:
    """In a loader's worker: outlive one signal, since schedulers signal all processes of a run and it needs them still.

    A second SIGTERM ends the worker, so that the run can always get rid of it; see `end_workers_with_this_process`.
    """
    signal.signal(signal.SIGTERM, lambda number, _frame: signal.signal(number, signal.SIG_DFL))
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


_watched_process = 0  # has its finalizer; a number, as processes forked from it inherit the variable and not that


def end_workers_with_this_process() -> None:
    """Have the loaders' workers end when this process does, with an error that nothing caught, too.

    Such an error keeps the loader's iterator, which else ends its workers. At its exit `multiprocessing` sends the
    daemons one SIGTERM and waits for them without end, and these workers outlive one.
    """
    global _watched_process
    if _watched_process != os.getpid():
        _watched_process = os.getpid()
        multiprocessing.util.Finalize(None, _end_daemons, exitpriority=0)  # before multiprocessing ends them


def _end_daemons() -> None:
    if hasattr(signal, "SIGCHLD"):  # whose handler, PyTorch's, would make another error of the workers' end
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    daemons = [child for child in multiprocessing.active_children() if child.daemon]
    for child in daemons:
        child.terminate()
    deadline = time.monotonic() + SECONDS_TO_END
    for child in daemons:
        child.join(max(0.0, deadline - time.monotonic()))
        if child.is_alive():
            child.kill()
