"""The log of a run: everything printed also goes to `log.txt`."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import Any, TextIO

from .files import mkdir_if_missing


class Logger:
    """A stand-in for `sys.stdout` that also writes to a file; closing it puts the former `sys.stdout` back.

    Args:
        fpath: file to write; None writes to the console only. An existing file is never overwritten.
    """

    def __init__(self, fpath: str | os.PathLike[str] | None = None) -> None:
        self.console: TextIO = sys.stdout
        self.file: TextIO | None = None
        if fpath is not None:
            mkdir_if_missing(os.path.dirname(fpath))
            # Line by line, so that the log of a killed run is complete; "x" refuses an existing file.
            self.file = open(fpath, "x", encoding="utf-8", buffering=1)  # noqa: SIM115

    def __enter__(self) -> Logger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["console"], name)

    def write(self, msg: str) -> int:
        """Write to console and file."""
        if self.file is not None:
            self.file.write(msg)
        return self.console.write(msg)

    def flush(self) -> None:
        """Flush console and file."""
        self.console.flush()
        if self.file is not None:
            self.file.flush()

    def close(self) -> None:
        """Close the file and restore `sys.stdout`; the console stays open."""
        if sys.stdout is self:
            sys.stdout = self.console
        if self.file is not None:
            self.file.close()
            self.file = None


def setup_logger(output: str | os.PathLike[str] | None = None) -> Logger | None:
    """Copy everything printed from now on to a log file.

    Args:
        output: a directory (the log is its `log.txt`), a file ending in `.txt` or `.log`, or None for no log. Where
            there is a log already, it stays, and the new one has the time appended to its name.

    Returns:
        The logger, whose `close()` ends the copying; None without `output`. A logger set up before is closed.
    """
    if not output:
        return None
    output = os.fspath(output)
    path = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")
    if isinstance(sys.stdout, Logger):
        sys.stdout.close()
    logger = Logger(_free_name(path))
    sys.stdout = logger  # type: ignore[assignment]
    return logger


def _free_name(path: str) -> str:
    if not os.path.exists(path):
        return path
    stamped = candidate = path + time.strftime("-%Y-%m-%d-%H-%M-%S")
    number = 1
    while os.path.exists(candidate):
        number += 1
        candidate = f"{stamped}-{number}"
    return candidate
