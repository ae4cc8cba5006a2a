"""The inline launcher: runs one after another in this process, for many short ones on the CPU.

Importing torch takes longer than a run on the bundled data; here it happens once.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sweeping.claims import Claims
from sweeping.jobs import Job
from sweeping.local import POLL_SECONDS, Slot, Stop, outcomes
from sweeping.progress import Progress
from sweeping.state import CONSOLE_FILE, forget_failure, is_finished
from sweeping.together import common_arguments, companions

FAILED = 1


@dataclass
class InlineLauncher:
    """Works off a queue in this process.

    Attributes:
        slot: the threads and devices to use.
        progress: is told what happens.
        stop: is asked whether to go on; a signal also interrupts the run.
        seeds: jobs that differ in the seed only and that are trained at once at most.
    """

    slot: Slot
    progress: Progress
    stop: Stop
    seeds: int = 1

    def run(self, jobs: Sequence[Job]) -> None:
        """Run the jobs in order until all ended or a stop was asked for."""
        os.environ.update(self.slot.environment())
        self.stop.interrupts = True
        claims, waiting = Claims(self.progress), list(jobs)
        try:
            with contextlib.suppress(KeyboardInterrupt):
                self._work_off(waiting, claims)
        finally:  # an error of a full disk, too
            for job in jobs:
                claims.release(job)
        for job in jobs:
            self.progress.drop(job)

    def _work_off(self, waiting: list[Job], claims: Claims) -> None:
        while waiting and not self.stop.signal:
            left = len(waiting)
            for job in list(waiting):
                if job not in waiting or self.stop.signal:
                    continue  # it went with another seed, or nothing is to be begun any more
                for settled in self._settle(job, claims, waiting):
                    waiting.remove(settled)
            if len(waiting) == left:  # other sweeps have them all
                time.sleep(POLL_SECONDS)

    def _settle(self, job: Job, claims: Claims, waiting: Sequence[Job]) -> list[Job]:
        """Run a job, and other seeds with it, or see that another sweep has; the jobs that are done with.

        There are none while another sweep runs the job, or what it needs.
        """
        if claims.settled_elsewhere(job):
            return [job]
        needed_elsewhere = not is_finished(job.needs or job.folder) and job.needs in {other.folder for other in waiting}
        if needed_elsewhere or not claims.take(job):
            return []
        _, *others = companions(job, waiting, self.seeds)
        jobs = [job, *(other for other in others if claims.take(other))]
        if job.needs is not None and not is_finished(job.needs):
            self.progress.fail(job, f"needs the run in {job.needs}, which is not finished")
        else:
            self._run_unfinished(jobs)
        for each in jobs:
            claims.release(each)
        return jobs

    def _run_unfinished(self, jobs: Sequence[Job]) -> None:
        """Run those of the jobs that another sweep has not finished just now."""
        left = [job for job in jobs if not is_finished(job.folder)]
        for job in jobs:
            if job not in left:
                self.progress.finish(job)
        if left:
            self._run(left)

    def _run(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            forget_failure(job)
            job.folder.mkdir(parents=True, exist_ok=True)
            self.progress.start(job)
        with (
            (jobs[0].folder / CONSOLE_FILE).open("w", encoding="utf-8", buffering=1) as console,
            contextlib.redirect_stdout(console),
            contextlib.redirect_stderr(console),
        ):
            status = _main(common_arguments(jobs))
        for job, reason in outcomes(jobs, status):
            if reason is None:
                self.progress.finish(job)
            else:
                self.progress.fail(job, reason)


def _main(arguments: Sequence[str]) -> int:
    """train.py's exit status; an error that it does not know is written out, and the next run goes on."""
    try:
        import train

        return train.main(arguments)
    except SystemExit as stop:
        return _status_of(stop.code)
    except Exception:
        traceback.print_exc(file=sys.stderr)
        return FAILED


def _status_of(code: Any) -> int:
    return code if isinstance(code, int) else FAILED if code else 0
