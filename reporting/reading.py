"""Numbers as a reader sees them, the same in every format for reading."""

from __future__ import annotations

from reporting.blocks import Row
from reporting.statistics import Summary

MISSING = "-"


def cell_text(cell: Summary | None, seeds_in_row: int, digits: int) -> str:
    """A number for reading: mean, deviation if there is one, and the number of seeds where some are missing."""
    if cell is None:
        return MISSING
    spread = "" if cell.std is None else f" ± {cell.std:.{digits}f}"
    fewer = "" if cell.n == seeds_in_row or cell.deterministic else f" (n={cell.n})"
    return f"{cell.mean:.{digits}f}{spread}{fewer}"


def seeds_text(row: Row) -> str:
    """Which seeds a row's numbers are from, or which footnote names their source."""
    if row.source:
        return f"published [{row.source_number}]"
    if not row.seeds:
        return MISSING
    listed = "deterministic" if row.deterministic else ", ".join(map(str, row.seeds))
    return f"{listed} (n={len(row.seeds)})"
