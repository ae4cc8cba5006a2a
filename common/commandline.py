"""What every entry point does with an error: one line that says what is wrong and the cure; --debug for the traceback.

    def main(argv=None):
        return guarded(run, build_parser().parse_args(argv))

Needs the standard library only, so that every command can use it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TextIO

# What wrong input and a machine's limits raise; anything else is a mistake of ours and keeps its traceback
EXPECTED = (ValueError, KeyError, OSError, FloatingPointError, MemoryError, RecursionError)
WRONG_INPUT = 2
LISTED = 5  # values that a message names, of many


def add_debug(parser: argparse.ArgumentParser) -> None:
    """Declare ``--debug``."""
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def guarded(
    run: Callable[[argparse.Namespace], int | None],
    args: argparse.Namespace,
    statuses: Mapping[type[Exception], int] | None = None,
    status: int = WRONG_INPUT,
) -> int:
    """Run a command, turn an expected error into one line on stderr, and return the exit status.

    It is what the command returns, ``None`` standing for 0; of an error, the first of ``statuses`` that fits its kind,
    else ``status``. When the reader of the output has gone away, as ``head`` does, it is 1 and nothing is said.
    ``args.debug`` shows the traceback before the line.
    """
    statuses = statuses or {}
    try:
        with printable_output():
            return run(args) or 0
    except BrokenPipeError:
        if sys.stdout is sys.__stdout__:  # keeps the interpreter from writing what is left to a pipe that nobody reads
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (*EXPECTED, *statuses) as error:
        if getattr(args, "debug", False):
            traceback.print_exc()
        print(f"error: {one_line(error)}", file=sys.stderr)
        return next((number for kind, number in statuses.items() if isinstance(error, kind)), status)


def one_line(error: BaseException) -> str:
    """An error's message without line breaks and without characters that a terminal would obey."""
    return printable("; ".join(line.strip() for line in shown(error).splitlines() if line.strip()))


def printable(text: str) -> str:
    """Text from a file, with every character that a terminal would obey written as its escape (``\\x1b``)."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


class PrintableStream:
    """A stand-in for `sys.stdout` that writes what a terminal would obey as its escape; lines end and tabs stay."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["stream"], name)

    def write(self, text: str) -> int:
        if text.isprintable():
            return self.stream.write(text)
        parts = re.split(r"(\r?\n|\t)", text)
        self.stream.write("".join(part if index % 2 else printable(part) for index, part in enumerate(parts)))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)


@contextlib.contextmanager
def printable_output() -> Iterator[None]:
    """Let nothing through to `sys.stdout` inside that a terminal would obey: names and paths come from files."""
    stream = sys.stdout
    sys.stdout = PrintableStream(stream)
    try:
        yield
    finally:
        sys.stdout = stream


def listed(values: Iterable[object], limit: int = LISTED, number: int | None = None, separator: str = ", ") -> str:
    """The first few values; `number` of them in all, where `values` does not go on to the end."""
    texts = [str(value) for value in values]
    left = (number or len(texts)) - limit
    return separator.join(texts[:limit]) + (f" and {left} more" if left > 0 else "")


def csv_cell(text: str) -> str:
    """A name as a cell that no spreadsheet takes for a formula: it begins with an apostrophe if it looks like one."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def shown(error: BaseException) -> str:
    """An error's message; ``str()`` of a KeyError is in quotes, and some errors have none."""
    if isinstance(error, KeyError) and len(error.args) == 1:
        return str(error.args[0])
    if isinstance(error, RecursionError):
        return "the input is nested too deeply: no file of this project's is; make it anew or take another"
    if isinstance(error, MemoryError) and not str(error):
        return "out of memory: take a smaller DATALOADER.*.BATCH_SIZE or fewer DATALOADER.NUM_WORKERS"
    return str(error) or type(error).__name__
