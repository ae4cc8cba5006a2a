"""A table as markdown, LaTeX, HTML, csv or json.

md, latex and html are for reading: rounded, with legend and warnings. csv and json are for further work: full precision
and every seed's value.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tabulate import tabulate

from common.commandline import csv_cell
from reporting.blocks import Block, Row, Table
from reporting.html_tables import table_page
from reporting.reading import cell_text, seeds_text
from reporting.statistics import Summary

_LATEX_SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    # after the end of a line, these would be read as its options
    "[": "{[}",
    "*": "{*}",
    "\n": " ",  # an empty line would end a caption
}
LATEX_PACKAGES = r"% needs \usepackage{booktabs} in the preamble"


def to_markdown(table: Table, digits: int) -> str:
    """GitHub markdown: one table per block, then legend and warnings."""
    parts = [f"## {escape_markdown(table.title)}"]
    for block in table.blocks:
        if block.title != table.title:
            parts.append(f"### {escape_markdown(block.title)}")
        parts.append(_markdown_grid(block, digits))
    parts.append("\n".join(f"- {escape_markdown(line)}" for line in table.legend))
    if table.warnings:
        parts.append("\n".join(f"- **Warning:** {escape_markdown(line)}" for line in table.warnings))
    return "\n\n".join(parts) + "\n"


def to_latex(table: Table, digits: int) -> str:
    """One table environment per block, then legend and warnings in small print; needs LaTeX's booktabs.

    The best of a column's measured numbers are bold; published rows stand below a rule and are never bold.
    """
    parts = [LATEX_PACKAGES]
    for block in (block.for_reading() for block in table.blocks):
        caption = table.title if block.title == table.title else f"{table.title}: {block.title}"
        measured, published = _rows_apart(block)
        best = _best(measured, digits)
        groups = [_latex_rows(measured, digits, best), _latex_rows(published, digits)]
        parts.append(latex_table(caption, ["Method", "Seeds", *block.labels], groups, left=2))
    notes = [
        "Bold: the best measured mean of a column, as rounded here, where several methods have one.",
        *table.legend,
    ]
    return "\n\n".join([*parts, latex_notes([*notes, *(f"Warning: {line}" for line in table.warnings)])]) + "\n"


def latex_table(caption: str, headings: Sequence[str], groups: Sequence[Sequence[Sequence[str]]], left: int) -> str:
    """A table environment with booktabs' rules.

    Args:
        caption: plain text.
        headings: plain text.
        groups: rows of cells in LaTeX; a rule comes between two groups.
        left: how many columns are set flush left; the others are flush right.
    """
    head = [escape_latex(heading) for heading in headings]
    groups = [group for group in groups if group]
    widths = [max(len(row[column]) for group in [[head], *groups] for row in group) for column in range(len(head))]
    lines = []
    for rule, group in zip(["toprule", *("midrule" for _ in groups)], [[head], *groups], strict=True):
        lines.append(f"\\{rule}")
        for row in group:
            cells = zip(row, widths, strict=True)
            padded = [f"{cell:{'<' if column < left else '>'}{width}}" for column, (cell, width) in enumerate(cells)]
            lines.append(f"{' & '.join(padded)} \\\\")
    alignment = "l" * left + "r" * (len(head) - left)
    start = [
        r"\begin{table}",
        r"\centering",
        f"\\caption{{{escape_latex(caption)}}}",
        f"\\begin{{tabular}}{{{alignment}}}",
    ]
    return "\n".join([*start, *lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"])


def latex_notes(notes: Iterable[str]) -> str:
    """Lines of plain text in small print."""
    small_print = "\n".join(f"{escape_latex(line)}\\\\" for line in notes)
    return f"{{\\footnotesize\\noindent\n{small_print}\n}}"


def _rows_apart(block: Block) -> tuple[list[Row], list[Row]]:
    """Measured rows and published ones."""
    return [row for row in block.rows if not row.source], [row for row in block.rows if row.source]


def _best(rows: Sequence[Row], digits: int) -> list[float | None]:
    """Each column's largest mean as it is shown; None where fewer than two rows have a number."""
    best = []
    for cells in zip(*(row.cells for row in rows), strict=True):
        means = [round(cell.mean, digits) for cell in cells if cell is not None]
        best.append(max(means) if len(means) > 1 else None)
    return best


def _latex_rows(rows: Sequence[Row], digits: int, best: Sequence[float | None] = ()) -> list[list[str]]:
    shown = []
    for row in rows:
        texts = [escape_latex(cell_text(cell, len(row.seeds), digits)) for cell in row.cells]
        for column, (cell, largest) in enumerate(zip(row.cells, best, strict=False)):
            if cell is not None and round(cell.mean, digits) == largest:
                mean, *spread = texts[column].split(" ", 1)
                texts[column] = " ".join([f"\\textbf{{{mean}}}", *spread])
        shown.append([escape_latex(row.method.label), escape_latex(seeds_text(row)), *texts])
    return shown


def to_csv(table: Table, digits: int) -> str:
    """One line per number, with a column per seed; `digits` does not apply."""
    seeds = sorted({seed for _, row, _, _ in _numbers(table) for seed in row.seeds})
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    facts = ("protocol", "block", "method", "trainer", "setting", "backbone", "shots", "selection_rule", "source")
    writer.writerow([*facts, "column", "n", "mean", "std", *(f"seed_{seed}" for seed in seeds)])
    for block, row, key, cell in _numbers(table):
        method = row.method
        shots = _shots(table.protocol, block.key, key) or method.shots
        writer.writerow(
            [table.protocol, csv_cell(_block_name(table, block))]
            + [csv_cell(name) for name in (method.label, method.trainer, method.setting, method.backbone)]
            + [shots, csv_cell(method.selection_rule), csv_cell(row.source), csv_cell(key)]
            + _csv_numbers(row, cell)
            + [cell.values.get(seed) if cell is not None else None for seed in seeds]
        )
    return buffer.getvalue()


def to_json(table: Table, digits: int) -> str:
    """Everything, nested as block, row, cell; `digits` does not apply."""
    content = {
        "protocol": table.protocol,
        "title": table.title,
        "blocks": [
            {
                "title": _block_name(table, block),
                "columns": list(block.keys),
                "rows": [_json_row(block, row) for row in block.rows],
            }
            for block in table.blocks
        ],
        "legend": list(table.legend),
        "warnings": list(table.warnings),
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


FORMATS: Mapping[str, Callable[[Table, int], str]] = {
    "md": to_markdown,
    "latex": to_latex,
    "html": table_page,
    "csv": to_csv,
    "json": to_json,
}


def escape_latex(text: str) -> str:
    """`text` with every character that LaTeX gives a meaning made harmless, and the plus-minus sign as mathematics."""
    return "".join(_LATEX_SPECIAL.get(character, character) for character in text)


def escape_markdown(text: str) -> str:
    """`text` with what would end a cell, or begin a tag, a link or emphasis, made harmless."""
    for character in "\\|`*":
        text = text.replace(character, f"\\{character}")
    return text.replace("](", "]\\(").replace("<", "&lt;")


def _markdown_grid(block: Block, digits: int) -> str:
    block = block.for_reading()
    headings = ["Method", "Seeds", *block.labels]
    body = []
    for row in block.rows:
        cells = [cell_text(cell, len(row.seeds), digits) for cell in row.cells]
        body.append([escape_markdown(text) for text in (row.method.label, seeds_text(row), *cells)])
    alignment = ("left", "left", *("right" for _ in block.labels))
    # without disable_numparse, tabulate would reformat the numbers
    headings = [escape_markdown(text) for text in headings]
    return tabulate(body, headings, "github", colalign=alignment, disable_numparse=True)


def _block_name(table: Table, block: Block) -> str:
    """A block in csv and json: "16" where a heading says "16 shots"."""
    return block.key if block.key and table.protocol == "few_shot" else block.title


def _shots(protocol: str, *places: str) -> str | None:
    """In a few-shot table, the number of shots is a column's name, or a block's in the papers' layout."""
    return next((place for place in places if place.isdigit()), None) if protocol == "few_shot" else None


def _csv_numbers(row: Row, cell: Summary | None) -> list[float | None]:
    if cell is None:
        return [0, None, None]
    return [None if row.source else cell.n, cell.mean, cell.std]


def _numbers(table: Table) -> Iterable[tuple[Block, Row, str, Summary | None]]:
    for block in table.blocks:
        for row in block.rows:
            for key, cell in zip(block.keys, row.cells, strict=True):
                yield block, row, key, cell


def _json_row(block: Block, row: Row) -> dict[str, Any]:
    method = row.method
    return {
        "method": method.label,
        "trainer": method.trainer,
        "setting": method.setting,
        "backbone": method.backbone,
        "shots": method.shots,
        "selection_rule": method.selection_rule,
        "seeds": list(row.seeds),
        "deterministic": row.deterministic,
        "source": row.source or None,
        "cells": {key: _json_cell(cell) for key, cell in zip(block.keys, row.cells, strict=True)},
    }


def _json_cell(cell: Summary | None) -> dict[str, Any] | None:
    if cell is None:
        return None
    return {
        "mean": cell.mean,
        "std": cell.std,
        "n": cell.n,
        "seeds": list(cell.seeds),
        "values": {str(seed): value for seed, value in cell.values.items()},
    }
