"""A table as markdown, LaTeX, HTML, csv or json.

md, latex and html are for reading: rounded, with legend and warnings. csv and json are for further work: full precision
and every seed's value.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tabulate import tabulate

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
}


def to_markdown(table: Table, digits: int) -> str:
    """GitHub markdown: one table per block, then legend and warnings."""
    parts = [f"## {escape_markdown(table.title)}"]
    for block in table.blocks:
        if block.title != table.title:
            parts.append(f"### {escape_markdown(block.title)}")
        parts.append(_grid(block, digits, "github", escape_markdown))
    parts.append("\n".join(f"- {escape_markdown(line)}" for line in table.legend))
    if table.warnings:
        parts.append("\n".join(f"- **Warning:** {escape_markdown(line)}" for line in table.warnings))
    return "\n\n".join(parts) + "\n"


def to_latex(table: Table, digits: int) -> str:
    """One table environment per block, then legend and warnings in small print; needs no LaTeX package."""
    parts = []
    for block in table.blocks:
        caption = table.title if block.title == table.title else f"{table.title}: {block.title}"
        grid = _grid(block, digits, "latex_raw", escape_latex)
        parts.append(
            f"\\begin{{table}}\n\\centering\n\\caption{{{escape_latex(caption)}}}\n{grid}\n\\end{{table}}",
        )
    notes = [*table.legend, *(f"Warning: {line}" for line in table.warnings)]
    small_print = "\n".join(f"{escape_latex(line)}\\\\" for line in notes)
    return "\n\n".join([*parts, f"{{\\footnotesize\\noindent\n{small_print}\n}}"]) + "\n"


def to_csv(table: Table, digits: int) -> str:
    """One line per number, with a column per seed; `digits` does not apply."""
    seeds = sorted({seed for _, row, _, _ in _numbers(table) for seed in row.seeds})
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    facts = ("protocol", "block", "method", "trainer", "setting", "backbone", "shots", "selection_rule", "source")
    writer.writerow([*facts, "column", "n", "mean", "std", *(f"seed_{seed}" for seed in seeds)])
    for block, row, key, cell in _numbers(table):
        method = row.method
        shots = _shots(table.protocol, block.title, key) or method.shots
        writer.writerow(
            [table.protocol]
            + [csv_text(name) for name in (block.title, method.label, method.trainer, method.setting, method.backbone)]
            + [shots, csv_text(method.selection_rule), csv_text(row.source), csv_text(key)]
            + _csv_numbers(row, cell)
            + [cell.values.get(seed) if cell is not None else None for seed in seeds]
        )
    return buffer.getvalue()


def csv_text(text: str) -> str:
    """A name as a cell that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def to_json(table: Table, digits: int) -> str:
    """Everything, nested as block, row, cell; `digits` does not apply."""
    content = {
        "protocol": table.protocol,
        "title": table.title,
        "blocks": [
            {"title": block.title, "columns": list(block.keys), "rows": [_json_row(block, row) for row in block.rows]}
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


def _grid(block: Block, digits: int, style: str, escape: Callable[[str], str]) -> str:
    block = block.for_reading()
    headings = ["Method", "Seeds", *block.labels]
    body = []
    for row in block.rows:
        cells = [cell_text(cell, len(row.seeds), digits) for cell in row.cells]
        body.append([escape(text) for text in (row.method.label, seeds_text(row), *cells)])
    alignment = ("left", "left", *("right" for _ in block.labels))
    # without disable_numparse, tabulate would reformat the numbers
    return tabulate(body, [escape(text) for text in headings], style, colalign=alignment, disable_numparse=True)


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
