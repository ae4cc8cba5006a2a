"""Tables as HTML: sortable, filtered by trainer and data set, the notes below."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from reporting.blocks import Block, Row, Table
from reporting.page import bullets, html_page, text
from reporting.reading import MISSING, cell_text, seeds_text
from reporting.statistics import Summary


@dataclass(frozen=True)
class Filters:
    """Numbers that the page's filters know trainers and data sets by; names may hold any character."""

    trainers: Mapping[str, int] = field(default_factory=dict)
    datasets: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, trainers: Sequence[str], datasets: Sequence[str]) -> Filters:
        """Number the names in their order."""
        return cls(*({name: index for index, name in enumerate(names)} for names in (trainers, datasets)))

    def marks(self, trainers: Collection[str] = (), datasets: Collection[str] = ()) -> str:
        """The attributes of an element that is about these; names that the filters do not know mark nothing."""
        parts = []
        for kind, known, names in (("trainer", self.trainers, trainers), ("dataset", self.datasets, datasets)):
            numbers = [str(known[name]) for name in names if name in known]
            if numbers:
                parts.append(f' data-{kind}="{" ".join(numbers)}"')
        return "".join(parts)


def table_page(table: Table, digits: int) -> str:
    """A page with one table."""
    body = f"<h1>{text(table.title)}</h1>\n{table_html(table, digits)}"
    return html_page(table.title, f"<main>{body}</main>")


def table_html(table: Table, digits: int, filters: Filters | None = None) -> str:
    """A table's blocks, warnings and legend."""
    filters = filters or Filters()
    parts = [_block_html(block, block.title != table.title, digits, filters) for block in table.blocks]
    if table.warnings:
        parts.append(f'<div class="warnings" role="note"><strong>Warnings</strong>{bullets(table.warnings)}</div>')
    parts.append(
        f'<details class="notes" open><summary>How to read these numbers</summary>{bullets(table.legend)}</details>'
    )
    return "\n".join(parts)


def sortable(
    headings: Sequence[tuple[str, bool]], rows: Sequence[str], marks: Sequence[str] = (), name: str = ""
) -> str:
    """A table whose columns can be sorted by their headings.

    Args:
        headings: text, and whether the column holds numbers.
        rows: <tr> elements.
        marks: attributes of each heading.
        name: the table's id.
    """
    marks = marks or [""] * len(headings)
    cells = "".join(
        f'<th scope="col"{" class=number" if number else ""}{mark}><button type="button">{text(heading)}</button></th>'
        for (heading, number), mark in zip(headings, marks, strict=True)
    )
    identity = f' id="{name}"' if name else ""
    return (
        f'<div class="scroll"><table class="sortable"{identity}>\n<thead><tr>{cells}</tr></thead>\n'
        f"<tbody>\n{chr(10).join(rows)}\n</tbody>\n</table></div>"
    )


def _block_html(block: Block, with_title: bool, digits: int, filters: Filters) -> str:
    block = block.for_reading()
    # where the data sets are columns, a column goes with its data set
    marks = [filters.marks(datasets=[key]) if block.dataset is None else "" for key in block.keys]
    headings = [("Method", False), ("Seeds", False), *((label, True) for label in block.labels)]
    rows = [_row_html(row, marks, digits, filters) for row in block.rows]
    title = f"<h3>{text(block.title)}</h3>\n" if with_title else ""
    own_marks = filters.marks(datasets=[block.dataset]) if block.dataset is not None else ""
    return f'<div class="block"{own_marks}>\n{title}{sortable(headings, rows, ["", "", *marks])}\n</div>'


def _row_html(row: Row, marks: Sequence[str], digits: int, filters: Filters) -> str:
    cells = "".join(
        _number_html(cell, mark, len(row.seeds), digits) for cell, mark in zip(row.cells, marks, strict=True)
    )
    kind = ' class="published"' if row.source else ""
    return (
        f'<tr{kind}{filters.marks(trainers=[row.method.trainer])}><th scope="row">{text(row.method.label)}</th>'
        f"<td>{text(seeds_text(row))}</td>{cells}</tr>"
    )


def _number_html(cell: Summary | None, mark: str, seeds: int, digits: int) -> str:
    if cell is None:
        return f'<td class="number"{mark} data-value="">{MISSING}</td>'
    mean, *spread = cell_text(cell, seeds, digits).split(" ", 1)
    small = f' <span class="spread">{text(spread[0])}</span>' if spread else ""
    return f'<td class="number"{mark} data-value="{cell.mean!r}">{text(mean)}{small}</td>'
