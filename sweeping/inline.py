"""The inline launcher: runs one after another in this process, for many short ones on the CPU.

Importing torch takes longer than a run on the bundled data; here it happens once.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sweeping.jobs import Job
from sweeping.local import STOPPED, Slot, Stop, failure_reason
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
        with contextlib.suppress(KeyboardInterrupt):
            for job in jobs:
                if self.stop.signal:
                    return
                self._run_or_refuse(job)
        for job in jobs:
            self.progress.drop(job)

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
            if status != STOPPED:
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
