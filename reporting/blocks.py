"""What a table is made of, blocks of rows under a heading, and how it reads in each format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from reporting.formats import MISSING, Document, Grid, Line, Number
from reporting.methods import Method
from reporting.stats import Summary


@dataclass(frozen=True)
class Row:
    """A method's numbers in one block."""

    method: Method
    cells: Mapping[Any, Summary | None]  # by the block's columns; None where no run has the number
    source: str = ""  # where the numbers were published; empty for measured ones
    source_number: int = 0  # in the legend

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
    """Rows under one heading."""

    title: str
    columns: Mapping[str, str]  # each column's name in csv and json, and its heading
    rows: tuple[Row, ...]  # the same methods in the same order in every block of a table
    dataset: str | None = None  # that the block is about; None for averages and for blocks about several
    key: str = ""  # in the papers' layout, the column that the block has of every data set

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
        best = {}  # each column's largest measured mean as it is shown, where two rows or more have one
        for key in block.columns:
            measured = [row.cells[key] for row in block.rows if not row.source]
            means = [round(cell.mean, digits) for cell in measured if cell is not None]
            best[key] = max(means) if len(means) > 1 else None
        lines = []
        for row in block.rows:
            numbers = [_number(cell, row, digits, best[key]) for key, cell in row.cells.items()]
            names = (row.method.label, seeds_text(row))
            lines.append(Line(names, numbers, row.method.trainer, published=bool(row.source)))
        headings = ["Method", "Seeds", *block.columns.values()]
        # where the data sets are columns, a column goes with its data set
        columns = () if block.dataset is not None else tuple(block.columns)
        grids.append(Grid(block.title, headings, 2, lines, block.dataset or "", columns))
    blocks = [
        {"title": _block_name(table, block), "columns": [*block.columns], "rows": [*map(_json_row, block.rows)]}
        for block in table.blocks
    ]
    content = {"protocol": table.protocol, "title": table.title, "blocks": blocks}
    content |= {"legend": table.legend, "warnings": table.warnings}
    records = _csv_records(table)
    return Document(table.title, grids, table.legend, table.warnings, records, content, explain_best=True)


def _number(cell: Summary | None, row: Row, digits: int, best: float | None) -> Number:
    """A number for reading: mean, deviation if there is one, and the number of seeds where some are missing."""
    if cell is None:
        return Number()
    spread = "" if cell.std is None else f" ± {cell.std:.{digits}f}"
    fewer = "" if cell.n == len(row.seeds) or cell.deterministic else f" (n={cell.n})"
    leads = not row.source and round(cell.mean, digits) == best
    return Number(f"{cell.mean:.{digits}f}{spread}{fewer}", cell.mean, leads)


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
        for row, key in ((row, key) for row in block.rows for key in block.columns):
            method, cell = row.method, row.cells[key]
            # in a few-shot table, the number of shots is a column's name, or a block's in the papers' layout
            places = (block.key, key) if table.protocol == "few_shot" else ()
            shots = next((place for place in places if place.isdigit()), method.shots)
            record = [table.protocol, _block_name(table, block), method.label, method.trainer, method.setting]
            record += [method.backbone, shots, method.selection_rule, row.source, key]
            record += [0, None, None] if cell is None else [None if row.source else cell.n, cell.mean, cell.std]
            records.append([*record, *(None if cell is None else cell.values.get(seed) for seed in seeds)])
    return records


def _json_row(row: Row) -> dict[str, object]:
    method = row.method
    facts = {"method": method.label}
    facts |= {name: getattr(method, name) for name in ("trainer", "setting", "backbone", "shots", "selection_rule")}
    facts |= {"seeds": row.seeds, "deterministic": row.deterministic, "source": row.source or None}
    return facts | {"cells": {key: _json_cell(cell) for key, cell in row.cells.items()}}


def _json_cell(cell: Summary | None) -> dict[str, object] | None:
    if cell is None:
        return None
    return {"mean": cell.mean, "std": cell.std, "n": cell.n, "seeds": cell.seeds, "values": cell.values}
