"""The `html` sub-command: everything about a set of runs on one page that needs nothing but a browser.

python -m reporting html output -o report.html
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from reporting import published_rows
from reporting.checks import print_warnings
from reporting.files import check_target, write_file
from reporting.html_tables import Filters, table_html
from reporting.layouts import PROTOCOLS
from reporting.methods import check_protocol
from reporting.names import dataset_order, trainer_order
from reporting.page import bullets, html_page, text
from reporting.report_plots import Picture, pictures_of
from reporting.report_runs import runs_html
from reporting.selection import add_selection, selected_runs
from reporting.table import build_table
from results.schema import Run

NAME = "html"
HELP = "one self-contained page: tables, plots and every run"
_MOST_UNFOLDED = 6


def build_report(
    runs: Sequence[Run], target: Path, *, title: str = "Results", published: str | None = None, digits: int = 2
) -> tuple[str, list[str]]:
    """The page, and the warnings that it shows.

    Args:
        runs: of any protocols; each protocol gets tables and plots of its own.
        target: where the page will lie, for links to the runs' files.
        title: the page's heading.
        published: which published rows to show, one of `published_rows.CHOICES`; None for none.
        digits: decimals.

    Raises:
        ResultsError: a protocol that no table is known for, or two runs with nothing to tell them apart.
    """
    trainers = sorted({run.trainer for run in runs}, key=trainer_order)
    datasets = sorted({run.dataset for run in runs}, key=dataset_order)
    filters = Filters.of(trainers, datasets)
    warnings: list[str] = []
    sections = []
    for name, group in _by_protocol(runs).items():
        layout = "metric" if len({run.dataset for run in group}) > 1 else "dataset"
        table = build_table(group, name, group=layout, published=published)
        warnings += table.warnings
        pictures, left_out = pictures_of(group, f"{name}-")
        parts = [table_html(table, digits, filters), _figures(pictures, filters)]
        if left_out:
            parts.append(
                f'<details class="notes"><summary>Plots that these runs do not fill</summary>{bullets(left_out)}'
                "</details>"
            )
        sections.append(f'<section id="{text(name)}"><h2>{text(table.title)}</h2>\n{chr(10).join(parts)}\n</section>')
    body = "\n".join(
        [
            f"<header><h1>{text(title)}</h1>\n{_lead(runs, trainers, datasets)}</header>",
            _filters(trainers, datasets),
            "<main>",
            *sections,
            f'<section id="all-runs"><h2>Runs</h2>\n{runs_html(_ordered(runs), filters, target)}</section>',
            "</main>",
        ]
    )
    return html_page(title, body), warnings


def _by_protocol(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs of each protocol, in the order of `PROTOCOLS`; a protocol that none is known for is refused."""
    names = {run.protocol for run in runs}
    groups = {name: [run for run in runs if run.protocol == name] for name in [*PROTOCOLS, *sorted(names)]}
    groups = {name: group for name, group in groups.items() if group}
    for name, group in groups.items():
        check_protocol(group, name)
    return groups


def _ordered(runs: Sequence[Run]) -> list[Run]:
    return sorted(
        runs,
        key=lambda run: (
            run.protocol,
            trainer_order(run.trainer),
            run.setting,
            dataset_order(run.dataset),
            run.shots,
            run.seed,
        ),
    )


def _lead(runs: Sequence[Run], trainers: Sequence[str], datasets: Sequence[str]) -> str:
    newest = max(run.record["finished_at"] for run in runs)
    counts = f"{len(runs)} runs, {len(trainers)} trainers, {len(datasets)} data sets; the newest finished {newest}"
    lead = f'<p class="lead">{text(counts)}.</p>'
    if any(run.demonstration for run in runs):
        lead += (
            '\n<p class="banner">Some runs use a bundled backbone, a small demonstration model: their numbers are not '
            "comparable with any published number.</p>"
        )
    return lead


def _filters(trainers: Sequence[str], datasets: Sequence[str]) -> str:
    groups = []
    for kind, title, names in (("trainer", "Trainers", trainers), ("dataset", "Data sets", datasets)):
        boxes = "".join(
            f'<label><input type="checkbox" name="{kind}" value="{index}" checked>{text(name)}</label>'
            for index, name in enumerate(names)
        )
        both = "".join(
            f'<button type="button" data-all="{kind}" data-tick="{tick}">{word}</button>'
            for tick, word in ((1, "all"), (0, "none"))
        )
        groups.append(f"<fieldset><legend>{title}</legend>{boxes}{both}</fieldset>")
    return (
        '<details class="filters"><summary>Filter: <output>all runs shown</output></summary>\n'
        + "\n".join(groups)
        + '\n<p class="notes">Averages and plots are over everything, whatever is ticked; a plot is hidden when '
        "nothing of it is ticked.</p></details>"
    )


def _figures(pictures: Sequence[Picture], filters: Filters) -> str:
    """The plots about all runs, then those about a part of them, folded away where they are many."""
    overview = [_figure(picture, filters) for picture in pictures if picture.overview]
    parts = [_figure(picture, filters) for picture in pictures if not picture.overview]
    if not parts:
        return "\n".join(overview)
    state = " open" if len(parts) <= _MOST_UNFOLDED else ""
    folded = f'<details class="more"{state}><summary>{len(parts)} plots of single data sets and methods</summary>'
    return "\n".join([*overview, folded, *parts, "</details>"])


def _figure(picture: Picture, filters: Filters) -> str:
    return (
        f"<figure{filters.marks(picture.trainers, picture.datasets)}><figcaption>{text(picture.caption)}</figcaption>"
        f'<div class="scroll">{picture.svg}</div></figure>'
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-command's arguments."""
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="results.json files, or folders to search for them")
    parser.add_argument("--output", "-o", type=Path, required=True, metavar="FILE", help="the page")
    parser.add_argument("--title", default="Results", help="the page's heading (default: %(default)s)")
    published_rows.add_published(parser)
    parser.add_argument("--force", action="store_true", help="replace FILE where it exists")
    add_selection(parser)


def run(arguments: argparse.Namespace) -> None:
    """Build the page and write it.

    Raises:
        ValueError: unusable runs or arguments.
        OSError: a file cannot be read or written.
    """
    check_target(arguments.output, arguments.force)
    runs = selected_runs(arguments)
    page, warnings = build_report(runs, arguments.output, title=arguments.title, published=arguments.published)
    print_warnings(warnings)
    write_file(arguments.output, page, arguments.force)
