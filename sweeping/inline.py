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
from sweeping.local import NOT_ITS_FAULT, POLL_SECONDS, Slot, Stop, failure_reason
from sweeping.progress import Progress
from sweeping.state import CONSOLE_FILE, forget_failure, is_finished, record_failure

FAILED = 1


@dataclass
class InlineLauncher:
    """Works off a queue in this process.

    Attributes:
        slot: the threads and devices to use.
        progress: is told what happens.
        stop: is asked whether to go on; a signal also interrupts the run.
    """

    slot: Slot
    progress: Progress
    stop: Stop

    def run(self, jobs: Sequence[Job]) -> None:
        """Run the jobs in order until all ended or a stop was asked for."""
        os.environ.update(self.slot.environment())  # before torch is imported, which reads them once
        self.stop.interrupts = True
        claims, waiting = Claims(self.progress), list(jobs)
        with contextlib.suppress(KeyboardInterrupt):
            while waiting and not self.stop.signal:
                left = len(waiting)
                for job in list(waiting):
                    if not self.stop.signal and self._is_settled(job, claims, waiting):
                        waiting.remove(job)
                if len(waiting) == left:  # other sweeps have them all
                    time.sleep(POLL_SECONDS)
        for job in jobs:
            claims.release(job)
            self.progress.drop(job)

    def _is_settled(self, job: Job, claims: Claims, waiting: Sequence[Job]) -> bool:
        """Run a job, or see that another sweep has; False while another one runs it, or what it needs."""
        if claims.settled_elsewhere(job):
            return True
        needed_elsewhere = not is_finished(job.needs or job.folder) and job.needs in {other.folder for other in waiting}
        if needed_elsewhere or not claims.take(job):
            return False
        if is_finished(job.folder):
            self.progress.finish(job)
        else:
            self._run_or_refuse(job)
        claims.release(job)
        return True

    def _run_or_refuse(self, job: Job) -> None:
        if job.needs is not None and not is_finished(job.needs):
            self.progress.fail(job, f"needs the run in {job.needs}, which is not finished")
        else:
            self._run(job)

    def _run(self, job: Job) -> None:
        forget_failure(job)
        job.folder.mkdir(parents=True, exist_ok=True)
        self.progress.start(job)
        with (
            (job.folder / CONSOLE_FILE).open("w", encoding="utf-8", buffering=1) as console,
            contextlib.redirect_stdout(console),
            contextlib.redirect_stderr(console),
        ):
            status = _main(job.arguments)
        reason = failure_reason(job, status)
        if reason is None:
            self.progress.finish(job)
        else:
            if status not in NOT_ITS_FAULT:
                record_failure(job, reason)
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
