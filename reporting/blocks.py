"""What a table is made of before it takes a format: blocks of rows under a heading, and the two ways to turn them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from reporting.methods import Method
from reporting.statistics import Summary


@dataclass(frozen=True)
class Row:
    """A method's numbers in one block.

    Args:
        method: whose.
        cells: one per column; None where no run has the number.
        source: where the numbers were published; empty for measured ones.
        source_number: the source's number in the legend; 0 for measured ones.
    """

    method: Method
    cells: tuple[Summary | None, ...]
    source: str = ""
    source_number: int = 0

    @property
    def seeds(self) -> tuple[int, ...]:
        """Every seed that entered a cell."""
        return tuple(sorted({seed for cell in self.cells if cell is not None for seed in cell.seeds}))

    @property
    def deterministic(self) -> bool:
        """Whether no cell depends on a seed."""
        present = [cell for cell in self.cells if cell is not None]
        return bool(present) and all(cell.deterministic for cell in present)


@dataclass(frozen=True)
class Block:
    """Rows under one heading.

    Args:
        title: the heading.
        keys: the columns' names in csv and json.
        labels: the columns' headings.
        rows: the same methods in the same order in every block of a table.
        dataset: the data set that the block is about; None for averages and for blocks about several.
        key: of the one column of every data set that the block has turned; empty for other blocks.
    """

    title: str
    keys: tuple[str, ...]
    labels: tuple[str, ...]
    rows: tuple[Row, ...]
    dataset: str | None = None
    key: str = ""

    def for_reading(self) -> Block:
        """The block without published rows that have nothing to say in it.

        Missing measured numbers stay visible, but not where only published numbers have a place.
        """
        rows = [row for row in self.rows if not row.source or any(cell is not None for cell in row.cells)]
        if all(cell is None for row in rows if not row.source for cell in row.cells):
            published = [row for row in rows if row.source]
            rows = published or rows
        columns = range(len(self.keys))
        if rows and all(row.source for row in rows):
            columns = [column for column in columns if any(row.cells[column] is not None for row in rows)]
        return replace(
            self,
            keys=tuple(self.keys[column] for column in columns),
            labels=tuple(self.labels[column] for column in columns),
            rows=tuple(replace(row, cells=tuple(row.cells[column] for column in columns)) for row in rows),
        )


@dataclass(frozen=True)
class Table:
    """A table before it takes a format."""

    protocol: str
    title: str
    blocks: tuple[Block, ...]
    legend: tuple[str, ...]
    warnings: tuple[str, ...]


def chosen_columns(blocks: Sequence[Block], keys: Sequence[str]) -> list[Block]:
    """The blocks with these of their columns only, in this order."""
    return [
        replace(
            block,
            keys=tuple(keys),
            labels=tuple(block.labels[block.keys.index(key)] for key in keys),
            rows=tuple(
                replace(row, cells=tuple(row.cells[block.keys.index(key)] for key in keys)) for row in block.rows
            ),
        )
        for block in blocks
    ]


def turned(blocks: Sequence[Block]) -> list[Block]:
    """One block per column in place of one per data set, the data sets as columns: the papers' layout.

    Args:
        blocks: blocks with the same columns and the same methods.
    """
    return [
        Block(
            label,
            tuple(block.title for block in blocks),
            tuple(block.title for block in blocks),
            tuple(_turned_row(blocks, row, column) for row in range(len(blocks[0].rows))),
            key=key,
        )
        for column, (key, label) in enumerate(zip(blocks[0].keys, blocks[0].labels, strict=True))
    ]


def _turned_row(blocks: Sequence[Block], row: int, column: int) -> Row:
    return replace(blocks[0].rows[row], cells=tuple(block.rows[row].cells[column] for block in blocks))
