"""The figures on the terminal, as Markdown that docs/ can take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate


def print_lines(lines: Sequence[Mapping[str, Any]]) -> None:
    """Print a table; the keys of a line are the heads of the columns, its values stand as they are."""
    print(tabulate(lines, headers="keys", tablefmt="github", disable_numparse=True))
