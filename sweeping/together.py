"""Several seeds of one setting in one process (train.py --seeds): which jobs go together, and their common command."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from sweeping.jobs import Job
from sweeping.protocols import UNTRAINED
from sweeping.settings import SweepError
from sweeping.state import CONSOLE_FILE

VARIABLE = "SEEDS_PER_PROCESS"
# Options of train.py whose values follow the seed.
SEED_OPTION, FOLDER_OPTION = "--seed", "--output-dir"


def seeds_per_process(given: int | None) -> int:
    """How many seeds a process trains at once: as given, else as the environment says, else one.

    Raises:
        SweepError: it is no number above 0.
    """
    text = os.environ.get(VARIABLE, "1") if given is None else str(given)
    if not text.isdecimal() or int(text) < 1:
        raise SweepError(f"{VARIABLE} is {text!r}: give a number of seeds, 1 or more")
    return int(text)


def companions(job: Job, waiting: Sequence[Job], most: int) -> list[Job]:
    """The job and the waiting ones that differ from it in the seed only, at most ``most`` in all.

    Runs that only test gain nothing from company and stay alone.
    """
    alone = _without_seed(job)
    if most < 2 or alone is None:
        return [job]
    others = [other for other in waiting if other is not job and _without_seed(other) == alone]
    return [job, *others[: most - 1]]


def common_arguments(jobs: Sequence[Job]) -> tuple[str, ...]:
    """The arguments of train.py for all of the jobs; of one job, its own."""
    if len(jobs) == 1:
        return jobs[0].arguments
    arguments = list(jobs[0].arguments)
    arguments[arguments.index(FOLDER_OPTION) + 1] = _pattern(jobs[0])
    position = arguments.index(SEED_OPTION)
    arguments[position : position + 2] = ["--seeds", *(str(job.seed) for job in jobs)]
    return tuple(arguments)


def share_console(jobs: Sequence[Job]) -> None:
    """Give every job the console file that the first one's folder has: what failed is read from there."""
    source = jobs[0].folder / CONSOLE_FILE
    for job in jobs[1:]:
        if source.is_file() and job.folder.is_dir():
            shutil.copyfile(source, job.folder / CONSOLE_FILE)


def _pattern(job: Job) -> str:
    """The job's folder with {seed} in place of its number; "" where its name does not end in the seed."""
    folder = Path(job.folder)
    return str(folder.with_name("seed{seed}")) if folder.name == f"seed{job.seed}" else ""


def _without_seed(job: Job) -> tuple[str, ...] | None:
    """What jobs that go together have in common; None for one that goes alone."""
    arguments = list(job.arguments)
    if job.needs is not None or job.trainer in UNTRAINED or SEED_OPTION not in arguments or not _pattern(job):
        return None
    arguments[arguments.index(SEED_OPTION) + 1] = arguments[arguments.index(FOLDER_OPTION) + 1] = ""
    return (job.program, _pattern(job), *arguments)
