"""What a job's folder says: finished, failed before, or still to be run.

Finished means that results.json is there. A failure leaves a small file with the command that failed, so that the
next call does not fail at the same again unless it is asked to.
"""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.files import atomic_write
from results.schema import RESULTS_FILE, ResultsError, read_results
from sweeping.jobs import Job

CONSOLE_FILE = "console.txt"
FAILURE_FILE = "failed.json"
SHOWN_LINES = 8
# Keys of this node say what is kept for reuse, not what comes out.
RESULT_FREE = "FEATURES."


def is_finished(folder: Path) -> bool:
    """Whether the folder holds a finished run."""
    return (folder / RESULTS_FILE).is_file()


def finished_record(job: Job) -> dict[str, Any]:
    """The results of a finished job.

    Raises:
        ResultsError: they cannot be read, or are those of a run with other settings.
    """
    record = read_results(job.folder / RESULTS_FILE)
    differing = _differences(job, record["config"])
    if differing:
        raise ResultsError(
            f"{job.folder} holds a finished run with other settings ({'; '.join(differing[:3])}): "
            "choose another --output, or remove it"
        )
    return record


def _differences(job: Job, config: Mapping[str, Any]) -> list[str]:
    """Keys that the job's command line sets to something else than the finished run had."""
    pairs = job.arguments[job.arguments.index("DATASET.NUM_SHOTS") :]
    # the last value of a key wins, as on train.py's command line
    wanted = dict(zip(pairs[::2], pairs[1::2], strict=True)) | {"TRAINER.NAME": job.trainer, "SEED": str(job.seed)}
    return [
        f"{key} was {had!r}, now {value}"
        for key, value in wanted.items()
        if not key.startswith(RESULT_FREE) and (had := _lookup(config, key)) is not None and had != _parsed(value, had)
    ]


def _lookup(config: Mapping[str, Any], key: str) -> Any:
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _parsed(text: str, like: Any) -> Any:
    """A command line value as results.json would hold it."""
    if isinstance(like, str):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return list(value) if isinstance(value, tuple) else value


def record_failure(job: Job, reason: str) -> None:
    """Leave word in the job's folder that its command failed."""
    with atomic_write(job.folder / FAILURE_FILE, "w") as file:
        file.write(json.dumps({"command": job.command(), "reason": reason}, indent=1) + "\n")


def forget_failure(job: Job) -> None:
    """Remove that word, before the command is run again."""
    (job.folder / FAILURE_FILE).unlink(missing_ok=True)


def earlier_failure(job: Job) -> str | None:
    """Why this very command failed in an earlier call; None where it did not, or where another command did."""
    try:
        failure = json.loads((job.folder / FAILURE_FILE).read_text(encoding="utf-8"))
        return failure["reason"] if failure["command"] == job.command() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def console_tail(folder: Path, lines: int = SHOWN_LINES) -> list[str]:
    """The last lines that a run wrote to its console file."""
    try:
        with (folder / CONSOLE_FILE).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 65536))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.replace("\r", "\n").splitlines() if line.strip()][-lines:]
