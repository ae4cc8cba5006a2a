"""A comparison of two methods as markdown, LaTeX, HTML, csv or json."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from common.commandline import csv_cell
from reporting.formats import LATEX_PACKAGES, escape_latex, escape_markdown, latex_notes, latex_table
from reporting.html_tables import sortable
from reporting.page import bullets, html_page, text
from reporting.reading import MISSING

if TYPE_CHECKING:
    from reporting.compare import Comparison, Line


def to_markdown(comparison: Comparison) -> str:
    """Sentences, table, notes."""
    sentences = "\n".join(f"- {escape_markdown(line.sentence)}" for line in comparison.lines)
    notes = [
        *map(escape_markdown, comparison.legend),
        *(f"**Warning:** {escape_markdown(line)}" for line in comparison.warnings),
    ]
    parts = [
        f"## {escape_markdown(comparison.title)}",
        sentences,
        _markdown_grid(comparison),
        "\n".join(f"- {line}" for line in notes),
    ]
    return "\n\n".join(parts) + "\n"


def to_latex(comparison: Comparison) -> str:
    """A table environment and the sentences in small print; needs LaTeX's booktabs."""
    rows = [[escape_latex(cell) for cell in (line.label, *_readable(line))] for line in comparison.lines]
    notes = [line.sentence for line in comparison.lines]
    notes += [*comparison.legend, *(f"Warning: {line}" for line in comparison.warnings)]
    table = latex_table(comparison.title, _headings(comparison), [rows], left=1)
    return "\n\n".join([LATEX_PACKAGES, table, latex_notes(notes)]) + "\n"


def to_html(comparison: Comparison) -> str:
    """A page: sentences, sortable table, notes."""
    headings = [(heading, index > 0) for index, heading in enumerate(_headings(comparison))]
    rows = [_html_row(line) for line in comparison.lines]
    warnings = f'<div class="warnings" role="note">{bullets(comparison.warnings)}</div>' if comparison.warnings else ""
    body = (
        f"<main><h1>{text(comparison.title)}</h1>\n{bullets([line.sentence for line in comparison.lines])}\n"
        f'{sortable(headings, rows)}\n{warnings}<div class="notes">{bullets(comparison.legend)}</div></main>'
    )
    return html_page(comparison.title, body)


def to_csv(comparison: Comparison) -> str:
    """One line per metric, full precision."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    facts = ("protocol", "first", "second", "metric", "label", "n", "mean_first", "mean_second", "difference")
    writer.writerow([*facts, "low", "high", "p_t", "p_signed_rank", "claim"])
    for line in comparison.lines:
        facts = (comparison.protocol, comparison.first, comparison.second, line.key, line.label)
        writer.writerow([*map(csv_cell, facts), line.result.interval.n, *_numbers(line), line.result.claim])
    return buffer.getvalue()


def to_json(comparison: Comparison) -> str:
    """Everything, with every pair."""
    content = {
        "protocol": comparison.protocol,
        "first": comparison.first,
        "second": comparison.second,
        "metrics": [_json_line(line) for line in comparison.lines],
        "legend": list(comparison.legend),
        "warnings": list(comparison.warnings),
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


FORMATS: Mapping[str, Callable[[Comparison], str]] = {
    "md": to_markdown,
    "latex": to_latex,
    "html": to_html,
    "csv": to_csv,
    "json": to_json,
}


def p_text(value: float) -> str:
    """A p-value, not rounded to the level itself nor to 0."""
    return f"{value:.3g}" if value >= 1e-4 else f"{value:.0e}"


def _headings(comparison: Comparison) -> list[str]:
    names = [comparison.first, comparison.second]
    return ["Metric", *names, "Difference", "95 % from", "to", "n", "p (t)", "p (signed rank)"]


def _numbers(line: Line) -> list[float | None]:
    """Means of both, difference, interval, p-values."""
    result = line.result
    pairs, interval = result.pairs, result.interval
    means = [sum(values) / len(pairs) for values in ([p.first for p in pairs], [p.second for p in pairs])]
    return [*means, interval.mean, interval.low, interval.high, result.p_t, result.p_signed_rank]


def _readable(line: Line) -> list[str]:
    first, second, mean, low, high, p_t, p_rank = _numbers(line)
    points = [MISSING if value is None else f"{value:+.2f}" for value in (mean, low, high)]
    tests = [MISSING if value is None else p_text(value) for value in (p_t, p_rank)]
    return [f"{first:.2f}", f"{second:.2f}", *points, str(line.result.interval.n), *tests]


def _markdown_grid(comparison: Comparison) -> str:
    headings = [escape_markdown(heading) for heading in _headings(comparison)]
    body = [[escape_markdown(cell) for cell in (line.label, *_readable(line))] for line in comparison.lines]
    alignment = ("left", *("right" for _ in headings[1:]))
    return tabulate(body, headings, "github", colalign=alignment, disable_numparse=True)


def _html_row(line: Line) -> str:
    values = _numbers(line)
    values.insert(5, line.result.interval.n)
    cells = "".join(
        f'<td class="number" data-value="{"" if value is None else repr(value)}">{text(shown)}</td>'
        for value, shown in zip(values, _readable(line), strict=True)
    )
    return f'<tr><th scope="row">{text(line.label)}</th>{cells}</tr>'


def _json_line(line: Line) -> dict[str, Any]:
    result = line.result
    over = result.by_dataset
    return {
        "metric": line.key,
        "label": line.label,
        "sentence": line.sentence,
        "claim": result.claim,
        "difference": asdict(result.interval),
        "difference_over_datasets": None if over is None else asdict(over),
        "p_t": result.p_t,
        "p_signed_rank": result.p_signed_rank,
        "pairs": [asdict(pair) | {"difference": pair.difference} for pair in result.pairs],
    }
