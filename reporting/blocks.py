"""What a table is made of, blocks of rows under a heading, and how it reads in each format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from reporting.formats import MISSING, Document, Grid, Line, Number
from reporting.methods import Method
from reporting.stats import Summary


@dataclass(frozen=True)
class Row:
    """A method's numbers in one block.

    Args:
        method: whose.
        cells: by the block's columns; None where no run has the number.
        source: where the numbers were published; empty for measured ones.
        source_number: the source's number in the legend; 0 for measured ones.
    """

    method: Method
    cells: Mapping[str, Summary | None]
    source: str = ""
    source_number: int = 0

    @property
    def present(self) -> list[Summary]:
        """The cells that hold a number."""
        return [cell for cell in self.cells.values() if cell is not None]

    @property
    def seeds(self) -> list[int]:
        """Every seed that entered a cell."""
        return sorted({seed for cell in self.present for seed in cell.seeds})

    @property
    def deterministic(self) -> bool:
        """Whether no cell depends on a seed."""
        return bool(self.present) and all(cell.deterministic for cell in self.present)


@dataclass(frozen=True)
class Block:
    """Rows under one heading.

    Args:
        title: the heading.
        columns: each column's name in csv and json, and its heading.
        rows: the same methods in the same order in every block of a table.
        dataset: the data set that the block is about; None for averages and for blocks about several.
        key: the column that the block has of every data set, in the papers' layout; empty for other blocks.
    """

    title: str
    columns: Mapping[str, str]
    rows: tuple[Row, ...]
    dataset: str | None = None
    key: str = ""

    def with_columns(self, keys: Iterable[str]) -> Block:
        """The block with these of its columns only, in this order."""
        keys = list(keys)
        rows = tuple(replace(row, cells={key: row.cells[key] for key in keys}) for row in self.rows)
        return replace(self, columns={key: self.columns[key] for key in keys}, rows=rows)

    def for_reading(self) -> Block:
        """The block without published rows that have nothing to say in it.

        Missing measured numbers stay visible, but not where only published numbers have a place.
        """
        published = [row for row in self.rows if row.source and row.present]
        measured = [row for row in self.rows if not row.source]
        if any(row.present for row in measured) or not published:
            return replace(self, rows=(*measured, *published))
        filled = [key for key in self.columns if any(row.cells[key] is not None for row in published)]
        return replace(self, rows=tuple(published)).with_columns(filled)


@dataclass(frozen=True)
class Table:
    """A table before it takes a format."""

    protocol: str
    title: str
    blocks: tuple[Block, ...]
    legend: tuple[str, ...]
    warnings: tuple[str, ...]


def document(table: Table, digits: int = 2) -> Document:
    """The table for the writers of `formats`, rounded to so many decimals for reading."""
    grids = []
    for block in map(Block.for_reading, table.blocks):
        best = _best(block, digits)
        lines = []
        for row in block.rows:
            numbers = [
                Number(
                    cell_text(cell, len(row.seeds), digits),
                    None if cell is None else cell.mean,
                    cell is not None and not row.source and round(cell.mean, digits) == best[key],
                )
                for key, cell in row.cells.items()
            ]
            names = (row.method.label, seeds_text(row))
            lines.append(Line(names, numbers, row.method.trainer, published=bool(row.source)))
        headings = ["Method", "Seeds", *block.columns.values()]
        # where the data sets are columns, a column goes with its data set
        columns = () if block.dataset is not None else tuple(block.columns)
        grids.append(Grid(block.title, headings, 2, lines, block.dataset or "", columns))
    content = {
        "protocol": table.protocol,
        "title": table.title,
        "blocks": [
            {
                "title": _block_name(table, block),
                "columns": list(block.columns),
                "rows": [_json_row(row) for row in block.rows],
            }
            for block in table.blocks
        ],
        "legend": list(table.legend),
        "warnings": list(table.warnings),
    }
    return Document(table.title, grids, table.legend, table.warnings, _csv_records(table), content, explain_best=True)


def _best(block: Block, digits: int) -> dict[str, float | None]:
    """Each column's largest measured mean as it is shown; None where fewer than two rows have a number."""
    best = {}
    for key in block.columns:
        cells = [row.cells[key] for row in block.rows if not row.source]
        means = [round(cell.mean, digits) for cell in cells if cell is not None]
        best[key] = max(means) if len(means) > 1 else None
    return best


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


def _block_name(table: Table, block: Block) -> str:
    """A block in csv and json: "16" where a heading says "16 shots"."""
    return block.key if block.key and table.protocol == "few_shot" else block.title


def _csv_records(table: Table) -> list[list[object]]:
    """One line per number, with a column per seed, below the head."""
    seeds = sorted({seed for block in table.blocks for row in block.rows for seed in row.seeds})
    facts = ("protocol", "block", "method", "trainer", "setting", "backbone", "shots", "selection_rule", "source")
    records: list[list[object]] = [[*facts, "column", "n", "mean", "std", *(f"seed_{seed}" for seed in seeds)]]
    for block in table.blocks:
        for row in block.rows:
            method = row.method
            for key, cell in row.cells.items():
                # in a few-shot table, the number of shots is a column's name, or a block's in the papers' layout
                places = (block.key, key) if table.protocol == "few_shot" else ()
                shots = next((place for place in places if place.isdigit()), method.shots)
                record = [table.protocol, _block_name(table, block)]
                record += [method.label, method.trainer, method.setting, method.backbone]
                record += [shots, method.selection_rule, row.source, key]
                record += [0, None, None] if cell is None else [None if row.source else cell.n, cell.mean, cell.std]
                records.append([*record, *(None if cell is None else cell.values.get(seed) for seed in seeds)])
    return records


def _json_row(row: Row) -> dict[str, object]:
    method = row.method
    cells = {
        key: cell
        and {
            "mean": cell.mean,
            "std": cell.std,
            "n": cell.n,
            "seeds": list(cell.seeds),
            "values": {str(seed): value for seed, value in cell.values.items()},
        }
        for key, cell in row.cells.items()
    }
    return {
        "method": method.label,
        "trainer": method.trainer,
        "setting": method.setting,
        "backbone": method.backbone,
        "shots": method.shots,
        "selection_rule": method.selection_rule,
        "seeds": row.seeds,
        "deterministic": row.deterministic,
        "source": row.source or None,
        "cells": cells,
    }
