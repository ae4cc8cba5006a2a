"""A table or comparison as markdown, LaTeX, HTML, csv or json: one writer each.

md, latex and html are for reading: rounded, with legend and warnings. csv and json are for further work: full precision
and every seed's value.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from common.commandline import csv_cell

MISSING = "-"
LATEX_PACKAGES = r"% needs \usepackage{booktabs} in the preamble"
_FOLDER = Path(__file__).parent
_LATEX_SPECIAL = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "±": r"$\pm$"},
    **{"[": "{[}", "*": "{*}"},  # after the end of a line, these would be read as its options
    "\n": " ",  # an empty line would end a caption
}


@dataclass(frozen=True)
class Number:
    """A number for reading, such as "72.00 ± 1.00"; `value` sorts it; `best` where it leads its column."""

    text: str = MISSING
    value: float | None = None
    best: bool = False


@dataclass(frozen=True)
class Line:
    """A row for reading: names first, then numbers. `trainer` is what the page filters by."""

    names: Sequence[str]
    numbers: Sequence[Number]
    trainer: str = ""
    published: bool = False


@dataclass(frozen=True)
class Grid:
    """A table for reading."""

    title: str  # the document's own title is not repeated
    headings: Sequence[str]
    names: int  # how many columns, from the left, hold names
    lines: Sequence[Line]
    dataset: str = ""  # that it is about, if one
    columns: Sequence[str] = ()  # what each column of numbers is about, where the data sets are columns


@dataclass(frozen=True)
class Document:
    """What a table or a comparison hands to the writers, all of it plain text."""

    title: str
    grids: Sequence[Grid]
    notes: Sequence[str]  # how to read them
    warnings: Sequence[str]
    records: Sequence[Sequence[Any]]  # the lines of the csv, its head first; text in them is a name, never a formula
    content: Mapping[str, Any]  # of the json
    lead: Sequence[str] = ()  # sentences above the grids
    explain_best: bool = False  # whether LaTeX's bold numbers need a note


def to_markdown(document: Document) -> str:
    """GitHub markdown: sentences, grids, notes, warnings."""
    parts = [f"## {escape_markdown(document.title)}", _bullets(document.lead)]
    for grid in document.grids:
        if grid.title != document.title:
            parts.append(f"### {escape_markdown(grid.title)}")
        body = [[*line.names, *(number.text for number in line.numbers)] for line in grid.lines]
        body = [[escape_markdown(text) for text in texts] for texts in body]
        alignment = [*["left"] * grid.names, *["right"] * (len(grid.headings) - grid.names)]
        headings = [escape_markdown(text) for text in grid.headings]
        # without disable_numparse, tabulate would reformat the numbers
        parts.append(tabulate(body, headings, "github", colalign=alignment, disable_numparse=True))
    parts += [_bullets(document.notes), _bullets(document.warnings, "**Warning:** ")]
    return "\n\n".join(filter(None, parts)) + "\n"


def _bullets(lines: Sequence[str], start: str = "") -> str:
    return "\n".join(f"- {start}{escape_markdown(line)}" for line in lines)


def escape_markdown(text: str) -> str:
    """`text` with what would end a cell, or begin a tag, a link or emphasis, made harmless."""
    for character in "\\|`*":
        text = text.replace(character, f"\\{character}")
    return text.replace("](", "]\\(").replace("<", "&lt;")


def to_latex(document: Document) -> str:
    """A table environment per grid, then everything else in small print; needs LaTeX's booktabs.

    The best of a column's measured numbers are bold; published rows stand below a rule and are never bold.
    """
    parts = [LATEX_PACKAGES]
    for grid in document.grids:
        caption = document.title if grid.title == document.title else f"{document.title}: {grid.title}"
        head = [escape_latex(heading) for heading in grid.headings]
        groups: list[list[list[str]]] = [[], []]
        for line in grid.lines:
            cells = [escape_latex(name) for name in line.names]
            for number in line.numbers:
                mean, space, spread = escape_latex(number.text).partition(" ")
                cells.append(f"\\textbf{{{mean}}}{space}{spread}" if number.best else f"{mean}{space}{spread}")
            groups[line.published].append(cells)
        groups = [[head], *filter(None, groups)]
        widths = [max(map(len, column)) for column in zip(*(row for group in groups for row in group), strict=True)]
        lines = []
        for rule, group in zip(["toprule", *["midrule"] * len(groups)], groups, strict=False):
            lines.append(f"\\{rule}")
            for row in group:
                padded = [
                    cell.ljust(width) if column < grid.names else cell.rjust(width)
                    for column, (cell, width) in enumerate(zip(row, widths, strict=True))
                ]
                lines.append(f"{' & '.join(padded)} \\\\")
        start = [r"\begin{table}", r"\centering", f"\\caption{{{escape_latex(caption)}}}"]
        start.append(f"\\begin{{tabular}}{{{'l' * grid.names}{'r' * (len(head) - grid.names)}}}")
        parts.append("\n".join([*start, *lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]))
    notes = [*document.lead]
    if document.explain_best:
        notes.append("Bold: the best measured mean of a column, as rounded here, where several methods have one.")
    notes += [*document.notes, *(f"Warning: {line}" for line in document.warnings)]
    small_print = "\n".join(f"{escape_latex(line)}\\\\" for line in notes)
    return "\n\n".join([*parts, f"{{\\footnotesize\\noindent\n{small_print}\n}}"]) + "\n"


def escape_latex(text: str) -> str:
    """`text` with every character that LaTeX gives a meaning made harmless, and the plus-minus sign as mathematics."""
    return "".join(_LATEX_SPECIAL.get(character, character) for character in text)


def to_html(document: Document) -> str:
    """A page with one table or comparison."""
    return html_page(document.title, document=document, all_trainers={}, all_datasets={})


def html_page(title: str, template: str = "page.html.j2", **content: Any) -> str:
    """A page that needs nothing from elsewhere; foreign text in it is escaped. `content` is for the template.

    The content security policy lets no script run but the page's own, so that nothing in a results file can.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    how = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True, "undefined": StrictUndefined}
    pages = Environment(loader=FileSystemLoader(_FOLDER), **how)
    style, script = ((_FOLDER / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return pages.get_template(template).render(
        title=title, style=Markup(style), script=Markup(script), digest=digest, **content
    )


def to_csv(document: Document) -> str:
    """One line per number, full precision."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for record in document.records:
        writer.writerow([csv_cell(value) if isinstance(value, str) else value for value in record])
    return buffer.getvalue()


def to_json(document: Document) -> str:
    """Everything, nested."""
    return json.dumps(document.content, indent=2, ensure_ascii=False) + "\n"


FORMATS = {"md": to_markdown, "latex": to_latex, "html": to_html, "csv": to_csv, "json": to_json}
