"""Several runs in one process, one at a time, that meet where their work can be done together.

Each run is a thread of its own, but only one ever runs: control passes on where a run *meets* the others, that is asks
for something that can be computed for all at once (a tower's features, a backward pass), and when it ends. When every
run waits, those that ask for the same kind of thing get it from one computation. So nothing depends on the speed of
threads, and a run needs to know nothing of the others. What Python and PyTorch keep once per process (``sys.stdout``,
the random generators of the CPU) is each run's own.
"""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch

Work = Callable[[list[Any]], Sequence[Any]]
# How the state of something that a process has once is read and put back.
Kept = tuple[Callable[[], Any], Callable[[Any], None]]
GENERATORS: tuple[Kept, ...] = ((random.getstate, random.setstate), (torch.get_rng_state, torch.set_rng_state))


class LockstepStopped(BaseException):
    """Ends a run whose process is asked to stop."""


class Member:
    """One of the runs.

    Args:
        function: what it does.
        lockstep: the runs together.
    """

    def __init__(self, function: Callable[[], Any], lockstep: Lockstep) -> None:
        self.function, self.lockstep = function, lockstep
        self.go = threading.Semaphore(0)
        self.thread = threading.Thread(target=self._live, daemon=True)
        self.thread.member = self
        self.done = False
        self.result: Any = None
        self.trainer: Any = None  # of those that train; for its neighbours to see
        self.error: BaseException | None = None  # that the run ended with
        self.asked: tuple[Hashable, Any, Work, bool] | None = None
        self.answer: Any = None
        self.failure: BaseException | None = None  # of what was computed for it
        self.duty: list[Member] = []  # those whose request it computes
        self.stdout, self.states = sys.stdout, lockstep.states()

    def _live(self) -> None:
        self.go.acquire()
        try:
            if not self.lockstep.stopping:
                self.result = self.function()
        except BaseException as error:
            self.error = error
        self.done = True
        self.lockstep.back.release()

    def meet(self, key: Hashable, request: Any, work: Work, last: bool) -> Any:
        """Wait until every run waits; the answer to the request."""
        self.asked = (key, request, work, last)
        self._pass_on()
        while self.duty:
            self._compute()
            self._pass_on()
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure
        answer, self.answer = self.answer, None
        return answer

    def _pass_on(self) -> None:
        if self.lockstep.stopping:
            raise LockstepStopped
        self.lockstep.back.release()
        self.go.acquire()
        if self.lockstep.stopping:
            raise LockstepStopped

    def _compute(self) -> None:
        """Do the work for all of a group; in this thread, whose autocast and gradient modes are theirs, too."""
        group, self.duty = self.duty, []
        requests = [member.asked[1] for member in group]
        try:
            answers = list(group[0].asked[2](requests))
        except Exception as error:
            for member in group:
                member.failure = error
        else:
            for member, answer in zip(group, answers, strict=True):
                member.answer = answer
        for member in group:
            member.asked = None


class Lockstep:
    """Runs functions side by side.

    Args:
        kept: what else each run has its own state of, beside ``sys.stdout`` and the generators of Python and PyTorch.
    """

    def __init__(self, *kept: Kept) -> None:
        self.kept = GENERATORS + kept
        self.back = threading.Semaphore(0)
        self.members: list[Member] = []
        self.stopping = False

    @property
    def live(self) -> list[Member]:
        """Those that have not ended."""
        return [member for member in self.members if not member.done]

    def states(self) -> list[Any]:
        """Of everything that each run keeps for itself, as it is now."""
        return [read() for read, _ in self.kept]

    def _restore(self, states: list[Any]) -> None:
        for (_, put_back), state in zip(self.kept, states, strict=True):
            put_back(state)

    def run(self, functions: Sequence[Callable[[], Any]]) -> list[Any]:
        """Run the functions to their end, also when one of them fails, and return what they return.

        Raises:
            BaseException: the first error of a function.
        """
        self.members = [Member(function, self) for function in functions]
        for member in self.members:
            member.thread.start()
        try:
            while self.live:
                self._round()
        except BaseException:
            self._stop()
            raise
        for member in self.members:
            if member.error is not None:
                raise member.error
        return [member.result for member in self.members]

    def _round(self) -> None:
        """Let every run that can go on do so, then do what they ask for; the backward pass waits for all of them."""
        for member in self.members:
            while not member.done and member.asked is None:
                self._switch_to(member)
        asking = self.live
        early = [member for member in asking if not member.asked[3]]
        groups: dict[Hashable, list[Member]] = {}
        for member in early or asking:
            groups.setdefault(member.asked[0], []).append(member)
        for group in groups.values():
            group[0].duty = group
            self._switch_to(group[0])

    def _switch_to(self, member: Member) -> None:
        stdout, states = sys.stdout, self.states()
        sys.stdout = member.stdout
        self._restore(member.states)
        member.go.release()
        try:
            self.back.acquire()
        finally:
            member.stdout, member.states = sys.stdout, self.states()
            sys.stdout = stdout
            self._restore(states)

    def _stop(self) -> None:
        """End all runs; the one that computes right now ends when it next meets the others."""
        self.stopping = True
        for member in self.live:
            member.go.release()
        for member in self.members:
            member.thread.join()


def current_member() -> Member | None:
    """The run that this code is part of; None outside :meth:`Lockstep.run`."""
    return getattr(threading.current_thread(), "member", None)
